"""A deployed model as a function from nonces to distances. Importing this package imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pocqueue.engine.base import Engine, EngineInfo, OnProgress
from pocqueue.errors import SettingsError

__all__ = ["ENGINES", "Engine", "EngineInfo", "OnProgress", "load_engine"]


def load_engine(
    *,
    engine: str,
    model: str,
    device: str,
    state_dir: Path,
    dtype: str = "auto",
    num_threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> Engine:
    """Load a model into an engine. Takes seconds for the embedded model, minutes for a large one.

    Args:
        engine: one of ``ENGINES``.
        model: "embedded", a local folder, or a hub id such as ``Qwen/Qwen3-0.6B``.
        device: "cpu" or "cuda:N", as ``devices.device_for_queue`` gives it.
        state_dir: where the embedded model and cached fingerprints are kept; made where missing.
        dtype: "bfloat16", "float16" or "float32"; "auto" takes the model's own.
        num_threads: CPU threads for the whole process; None leaves the engine's default.
        on_progress: told in one line each what is being done.

    Raises:
        SettingsError: ``engine``, ``dtype``, ``device`` or ``num_threads`` is not allowed.
        ModelNotFound: there is no such model, or it cannot be loaded as a causal language model.
        DeviceNotFound: this machine has no such device.
        EngineError: the model does not fit into the device's memory.
    """
    loader = ENGINES.get(engine)
    if loader is None:
        raise SettingsError(f"engine is {engine!r}; allowed: {', '.join(sorted(ENGINES))}.")
    return loader(model, device, state_dir, dtype, num_threads, on_progress or _ignore)


def _load_torch(
    model: str,
    device: str,
    state_dir: Path,
    dtype: str,
    num_threads: int | None,
    on_progress: OnProgress,
) -> Engine:
    from pocqueue.engine.torch_loader import load_torch_engine

    return load_torch_engine(
        model,
        device=device,
        state_dir=state_dir,
        dtype=dtype,
        num_threads=num_threads,
        on_progress=on_progress,
    )


def _ignore(_text: str) -> None:
    """Stand in for a progress callback that nobody gave."""


#: Loaders by engine name: (model, device, state_dir, dtype, num_threads, on_progress). Each imports
#: its runtime when it is called.
ENGINES: dict[str, Callable[[str, str, Path, str, int | None, OnProgress], Engine]] = {
    "torch": _load_torch,
}
