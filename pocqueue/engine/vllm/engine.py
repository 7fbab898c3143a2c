"""The vLLM engine: a vLLM of our own, for this one GPU queue, behind the engine protocol.

It serves nobody, so it keeps the smallest KV cache that vLLM accepts and leaves the memory to batches.
vLLM's core runs in this process and, on one device, its worker too; with tensor parallelism each
device has a worker process of vLLM's, which ends when this process does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from pocqueue.engine import EngineOptions
from pocqueue.engine.base import EXTENSION, Engine, EngineInfo, OnProgress
from pocqueue.engine.devices import keep_freed_memory
from pocqueue.engine.models import ResolvedModel, fingerprint_with_progress, resolve_model
from pocqueue.engine.vllm.ranks import BatchLimits, RankTimer, read_description, read_values
from pocqueue.engine.vllm.versions import file_as_stdout, find_vllm
from pocqueue.errors import EngineError, ModelNotFound, PocqueueError, SettingsError, first_line
from pocqueue.poc.batch import Batch

#: Longest sequence, even if the model takes longer ones: vLLM wants KV cache for one such request.
MAX_SEQ_LEN = 4096
#: Most sequences of a batch; buffers of attention backends are made for that many.
MAX_BATCH_SIZE = 1024
#: Tokens whose activations vLLM prepares for: the default batch.
_MAX_BATCHED_TOKENS = 32 * 256


@dataclass(eq=False)
class VllmEngine(Engine):
    """A vLLM of our own as a function from batches to values; see ``Engine``.

    Used by one thread, the one that loaded it.
    """

    engine: Any  #: vLLM's ``LLMEngine`` whose workers have ``PoCWorker`` mixed in; None once closed
    info: EngineInfo
    limits: BatchLimits  #: what it can run

    @override
    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        self.limits.check(self.info, batch)
        if not batch.nonces:
            return []
        following = None if upcoming is None else upcoming.to_wire()
        return read_values(
            self.call_ranks("poc_values", batch.to_wire(), following), len(batch.nonces)
        )

    @override
    def timer(self) -> RankTimer:
        return RankTimer(self.call_ranks)

    @override
    def close(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.engine_core.shutdown()

    def call_ranks(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension on every rank; return what each answers.

        Raises:
            EngineError: the engine is closed.
        """
        if self.engine is None:
            raise EngineError("This engine is closed; load the model again.")
        answers: list[Any] = self.engine.collective_rpc(method, args=args)
        return answers


def load_vllm_engine(
    options: EngineOptions, on_progress: OnProgress, extension: str = EXTENSION
) -> VllmEngine:
    """Resolve, fingerprint and load a model; arguments and errors are those of ``load_engine``.

    Args:
        options: what to load.
        on_progress: told in one line each what is being done.
        extension: worker extension, by qualified name: ``PoCWorker`` or a class that extends it.
    """
    device = options.device
    find_vllm()
    resolved = resolve_model(options.model, options.state_dir, on_progress)
    digits = fingerprint_with_progress(resolved, on_progress)
    _prepare_environment(options)
    on_progress(f"Loading {resolved.display_name} with vLLM on {device}")
    try:
        with file_as_stdout():
            engine = _start(resolved, options, extension)
        info, limits = read_description(engine.collective_rpc("poc_describe"))
    except PocqueueError:
        raise
    except Exception as exc:
        # vLLM answers a model that it cannot run with errors of many classes.
        raise ModelNotFound(
            f"Model {resolved.display_name!r} cannot be loaded by vLLM: "
            f"{first_line(exc)} Name another model, or use POCQUEUE_ENGINE=torch."
        ) from exc
    info = replace(info, model=resolved.display_name, fingerprint=digits, device=device)
    on_progress(f"Loaded {info.model} with vLLM on {device} ({info.device_name}) in {info.dtype}")
    return VllmEngine(engine, info, limits)


def _prepare_environment(options: EngineOptions) -> None:
    """Set what vLLM reads from the environment, unless the operator has."""
    # The core in this process: one batch less on its way, and no process that could outlive us.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # With several devices vLLM would fork workers from this process, which has looked at CUDA by now.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if options.device != "cpu":
        return
    keep_freed_memory()
    size, cores = options.tensor_parallel, sorted(os.sched_getaffinity(0))[: options.num_threads]
    if size > len(cores):
        raise SettingsError(
            f"POCQUEUE_TENSOR_PARALLEL is {size}; allowed on this CPU: 1 to {len(cores)}, a core for "
            "each rank."
        )
    if size > 1:
        shares = [",".join(map(str, cores[rank::size])) for rank in range(size)]
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(shares))
    elif options.num_threads is not None:
        import torch

        torch.set_num_threads(options.num_threads)


def _start(model: ResolvedModel, options: EngineOptions, extension: str) -> Any:
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments: dict[str, Any] = {
        "model": str(model.path),
        "dtype": options.dtype,
        "tensor_parallel_size": options.tensor_parallel,
        "worker_extension_cls": extension,
        # The proof feeds embeddings and reads logits.
        "skip_tokenizer_init": True,
        # The pass skips compiled graphs, so making them would only delay the start.
        "enforce_eager": True,
        "max_num_seqs": MAX_BATCH_SIZE,
        "max_num_batched_tokens": _MAX_BATCHED_TOKENS,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    if options.device != "cpu":
        first = int(options.device.removeprefix("cuda:"))
        arguments["device_ids"] = list(range(first, first + options.tensor_parallel))
    config = EngineArgs(**arguments).create_model_config()
    arguments["max_model_len"] = min(MAX_SEQ_LEN, int(config.max_model_len))
    arguments["kv_cache_memory_bytes"] = _kv_cache_bytes(config, arguments["max_model_len"])
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def _kv_cache_bytes(config: Any, max_model_len: int) -> int:
    """Return room for the keys and values of one longest request, and some blocks to spare."""
    per_token = (
        2
        * int(config.get_total_num_hidden_layers())
        * int(config.get_total_num_kv_heads())
        * int(config.get_head_size())
        * int(config.dtype.itemsize)
    )
    return max(64 << 20, 2 * per_token * max_model_len)
