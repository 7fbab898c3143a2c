"""A deployed model as a function from batches to the values of their proof scheme. Importing this package imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocqueue.engine.base import Engine, EngineInfo, OnProgress
from pocqueue.engine.kinds import KINDS
from pocqueue.errors import EngineError, SettingsError

__all__ = ["Engine", "EngineInfo", "EngineOptions", "OnProgress", "load_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an engine is to load, and how."""

    model: str  #: "embedded", a local folder, or a hub id such as ``Qwen/Qwen3-0.6B``
    device: str  #: "cpu" or "cuda:N", as ``devices.device_for_queue`` gives it
    state_dir: Path  #: where the embedded model and cached fingerprints are kept; made if missing
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
        SettingsError: ``engine`` or one of the options is not allowed.
        ModelNotFound: there is no such model, or it cannot be loaded as a causal language model.
        DeviceNotFound: this machine has no such device.
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
