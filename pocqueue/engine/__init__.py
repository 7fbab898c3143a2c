"""A deployed model as a function from nonces to distances. Importing this package imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pocqueue.engine.base import Engine, EngineInfo, OnProgress
from pocqueue.errors import EngineError, SettingsError

__all__ = ["ENGINES", "Engine", "EngineInfo", "EngineOptions", "OnProgress", "load_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an engine is to load, and how."""

    model: str  #: "embedded", a local folder, or a hub id such as ``Qwen/Qwen3-0.6B``
    device: str  #: "cpu" or "cuda:N", as ``devices.device_for_queue`` gives it
    state_dir: (
        Path  #: where the embedded model and cached fingerprints are kept; made where missing
    )
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
        engine: one of ``ENGINES``.
        options: what to load; "vllm-server" loads nothing and takes what is served.
        on_progress: told in one line each what is being done.

    Raises:
        SettingsError: ``engine`` or one of the options is not allowed.
        ModelNotFound: there is no such model, or it cannot be loaded as a causal language model.
        DeviceNotFound: this machine has no such device.
        EngineError: the model does not fit into the device's memory, or its runtime is not installed.
        EngineUnavailable: the server does not answer.
    """
    loader = ENGINES.get(engine)
    if loader is None:
        raise SettingsError(f"engine is {engine!r}; allowed: {', '.join(sorted(ENGINES))}.")
    if options.tensor_parallel != 1 and engine != "vllm":
        raise SettingsError(
            f"POCQUEUE_TENSOR_PARALLEL is {options.tensor_parallel}; allowed with engine {engine}: 1. "
            "Only engine vllm spreads a model over several GPUs."
        )
    return loader(options, on_progress or _ignore)


def _load_torch(options: EngineOptions, on_progress: OnProgress) -> Engine:
    from pocqueue.engine.torch_model.loader import load_torch_engine

    return load_torch_engine(options, on_progress)


def _load_vllm(options: EngineOptions, on_progress: OnProgress) -> Engine:
    from pocqueue.engine.vllm.engine import load_vllm_engine

    if find_spec("vllm") is None:
        raise EngineError(
            "Engine vllm needs vLLM, which is not installed here: pip install 'pocqueue[vllm]', or use "
            "POCQUEUE_ENGINE=torch."
        )
    return load_vllm_engine(options, on_progress)


def _load_vllm_server(options: EngineOptions, on_progress: OnProgress) -> Engine:
    from pocqueue.engine.vllm.server import connect_vllm_server

    return connect_vllm_server(options, on_progress)


def _ignore(_text: str) -> None:
    """Stand in for a progress callback that nobody gave."""


#: Loaders by engine name. Each imports its runtime when it is called.
ENGINES: dict[str, Callable[[EngineOptions, OnProgress], Engine]] = {
    "torch": _load_torch,
    "vllm": _load_vllm,
    "vllm-server": _load_vllm_server,
}
