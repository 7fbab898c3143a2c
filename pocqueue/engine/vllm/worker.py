"""What pocqueue adds to each worker process of vLLM: values of nonces on its model.

Named on the command line of an unmodified server, ``--worker-extension-cls
pocqueue.engine.vllm.worker.PoCWorker``, and called by method name through ``collective_rpc``. Plain
values go in and out: a batch in, what its proof keeps of each nonce out. Every rank of a
tensor-parallel group makes the inputs for itself, so nothing else crosses between processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

import torch

from pocqueue.engine.base import EngineInfo, attention_shape
from pocqueue.engine.devices import device_name
from pocqueue.engine.pipeline import Pipeline
from pocqueue.engine.stages import StageTimer
from pocqueue.engine.vllm.versions import find_vllm
from pocqueue.errors import PassTooLarge, PocqueueError, first_line
from pocqueue.poc.batch import Batch

if TYPE_CHECKING:
    from pocqueue.engine.vllm.forward import VllmForward

logger = logging.getLogger("vllm.pocqueue")


def _failure_as_value(method: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Have a method answer with ``error``, one sentence, where it would raise; ``ranks.py`` says why."""

    @wraps(method)
    def answer(*args: Any) -> dict[str, Any]:
        try:
            return method(*args)
        except PassTooLarge as exc:
            return {"error": str(exc), "too_large": True}
        except PocqueueError as exc:
            return {"error": str(exc)}
        except Exception as exc:
            logger.exception("A call of the proof failed")
            return {"error": f"The engine failed: {first_line(exc)}"}

    return answer


class PoCWorker:
    """Mixed into vLLM's worker class, which has ``model_runner``, ``vllm_config`` and ``device``."""

    model_runner: Any
    vllm_config: Any
    device: torch.device

    @cached_property
    def _poc_forward(self) -> VllmForward:
        find_vllm()
        # Another version may lack what this imports; serving goes on all the same.
        from pocqueue.engine.vllm.forward import VllmForward

        return VllmForward(self.model_runner, self.vllm_config, self.device)

    @cached_property
    def _poc_pipeline(self) -> Pipeline:
        info = vllm_info(self.vllm_config, self.device)
        return Pipeline(info, self.device, self.vllm_config.model_config.dtype)

    @_failure_as_value
    def poc_describe(self) -> dict[str, Any]:
        """Say what is deployed, all but its fingerprint, and how large a batch may be."""
        assert self._poc_forward  # made now, it says whether the proof can be computed at all
        scheduler = self.vllm_config.scheduler_config
        # Mixtures of experts have buffers for as many tokens as the server batches.
        is_moe = bool(self.vllm_config.model_config.is_moe)
        return {
            "info": self._poc_pipeline.info.to_dict(),
            "max_batch_size": int(scheduler.max_num_seqs),
            "max_tokens": int(scheduler.max_num_batched_tokens) if is_moe else None,
        }

    @_failure_as_value
    def poc_values(self, batch: list[Any], upcoming: list[Any] | None = None) -> dict[str, Any]:
        """Compute the values of one batch in a pass of its shape.

        Args:
            batch: from ``Batch.to_wire``, within the limits of ``poc_describe``.
            upcoming: the same of the batch that is expected next; see ``Engine.values``.

        Returns:
            ``values``: one a nonce; None on ranks that do not get the logits.
        """
        following = None if upcoming is None else Batch.from_wire(upcoming)
        run = self._poc_forward.run
        return {"values": self._poc_pipeline.values(Batch.from_wire(batch), run, following)}

    @_failure_as_value
    def poc_time(self, method: str, batch: list[Any], num_batches: int) -> dict[str, Any]:
        """Return as ``answer`` what a method of `StageTimer` finds out: seconds, of a batch from ``to_wire``."""
        return {"answer": getattr(self._poc_timer(), method)(Batch.from_wire(batch), num_batches)}

    @_failure_as_value
    def poc_count_parameters(self) -> dict[str, Any]:
        """Return as ``answer`` the fields of ``MatmulParameters`` of this rank's part, or None."""
        counted = self._poc_timer().num_matmul_parameters()
        return {"answer": counted and asdict(counted)}

    @_failure_as_value
    def poc_release(self) -> dict[str, Any]:
        """Free what is held between two batches of a round."""
        self._poc_forward.release()
        self._poc_pipeline.forget()
        return {}

    def _poc_timer(self) -> StageTimer:
        return StageTimer(self._poc_pipeline, self._poc_forward.run, self.model_runner.get_model())


def vllm_info(vllm_config: Any, device: torch.device) -> EngineInfo:
    """Describe a model as vLLM runs it; the fingerprint is added by the caller, which knows its files."""
    model = vllm_config.model_config
    size = vllm_config.parallel_config.tensor_parallel_size
    name = str(device) if device.type == "cpu" else f"cuda:{device.index or 0}"
    return EngineInfo(
        engine="vllm",
        model=str(model.model),
        fingerprint="",
        device=name,
        device_name=device_name(name) + (f", {size} tensor-parallel ranks" if size > 1 else ""),
        dtype=str(model.dtype).removeprefix("torch."),
        hidden_size=int(model.get_hidden_size()),
        vocab_size=int(model.get_vocab_size()),
        max_seq_len=int(model.max_model_len),
        tensor_parallel=int(size),
        **attention_shape(getattr(model, "hf_text_config", None)),
    )
