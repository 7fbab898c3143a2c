"""A deployed model as a function from batches to the values of their proof scheme. Importing this package imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocqueue.engine.base import KINDS, Engine, EngineInfo, OnProgress, is_remote
from pocqueue.engine.devices import device_for_queue
from pocqueue.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from pocqueue.settings import Settings

__all__ = [
    "Engine",
    "EngineInfo",
    "EngineOptions",
    "OnProgress",
    "load_engine",
    "load_local_engine",
]

#: How long the server of a model may take to answer: to a command, at which somebody waits, and to a
#: worker, which may have been started together with it.
COMMAND_PATIENCE_S = 10.0
WORKER_PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an engine is to load, and how."""

    model: str  #: "embedded", a local folder, or a hub id such as ``Qwen/Qwen3-0.6B``
    device: str  #: "cpu" or "cuda:N", as ``devices.device_for_queue`` gives it
    state_dir: Path  #: where the embedded model is kept; made if missing
    dtype: str = "auto"  #: "bfloat16", "float16" or "float32"; "auto" takes the model's own
    num_threads: int | None = None  #: CPU threads of the process; None leaves the engine's default
    tensor_parallel: int = 1  #: devices that share the model, from ``device`` on; "vllm" only
    server_url: str = ""  #: "vllm-server" only: http or https, without a path
    server_token: str | None = None  #: "vllm-server" only: what the server asks for
    server_patience_s: float = 10.0  #: "vllm-server" only: how long a server may take to answer


def load_engine(
    engine: str, options: EngineOptions, on_progress: OnProgress | None = None
) -> Engine:
    """Load a model into an engine. Takes seconds for the embedded model, minutes for a large one.

    Args:
        engine: one of ``KINDS``.
        options: what to load; "vllm-server" loads nothing and takes what is served.
        on_progress: told in one line each what is being done.

    Raises:
        SettingsError: ``engine`` is not allowed, or not with these options.
        ModelNotFound: there is no such model, or it cannot be loaded as a causal language model.
        EngineError: the model does not fit into the device's memory, or its runtime is not installed.
        EngineUnavailable: the server does not answer.
    """
    kind = KINDS.get(engine)
    if kind is None:
        raise SettingsError(f"engine is {engine!r}; allowed: {', '.join(sorted(KINDS))}.")
    if options.tensor_parallel != 1 and not kind.spreads:
        raise SettingsError(
            f"POCQUEUE_TENSOR_PARALLEL is {options.tensor_parallel}; allowed with engine {engine}: 1. "
            "Only engine vllm spreads a model over several GPUs."
        )
    if kind.package and find_spec(kind.package) is None:
        raise EngineError(
            f"Engine {engine} needs {kind.package}, which is not installed here: pip install "
            f"'pocqueue[{kind.package}]', or use POCQUEUE_ENGINE=torch."
        )
    module, name = kind.loader.split(":")
    # Each imports its runtime, which takes seconds, so not before it is wanted.
    load: Any = getattr(import_module(module), name)
    loaded: Engine = load(options, on_progress or (lambda _text: None))
    return loaded


def load_local_engine(
    settings: Settings,
    model: str | None = None,
    on_progress: OnProgress | None = None,
    queue: str = "gpu0",
    patience_s: float = COMMAND_PATIENCE_S,
) -> Engine:
    """Load a model on the device, or devices, that a GPU queue stands for.

    Args:
        settings: engine, device, dtype and threads are taken from here.
        model: instead of the settings' model.
        on_progress: told in one line each what is being done.
        queue: the first one stands for the first CUDA device, or for the CPU if there is none.
        patience_s: how long the server of a model may take to answer.

    Raises:
        DeviceNotFound: this machine has no such device.
        EngineError, SettingsError: as `load_engine` does.
    """
    token = settings.vllm_token
    options = EngineOptions(
        model=model or settings.model,
        # A served model is on devices of the server's.
        device="cpu"
        if is_remote(settings.engine)
        else device_for_queue(queue, settings.device, settings.tensor_parallel),
        state_dir=settings.state_dir,
        dtype=settings.dtype,
        num_threads=settings.num_threads,
        tensor_parallel=settings.tensor_parallel,
        server_url=settings.vllm_url,
        server_token=None if token is None else token.get_secret_value(),
        server_patience_s=patience_s,
    )
    return load_engine(settings.engine, options, on_progress)
