"""An engine in this very process, for commands that recompute or sample without the pool."""

from __future__ import annotations

from pocqueue.engine import Engine, OnProgress, load_engine
from pocqueue.settings import Settings


def load_local_engine(
    settings: Settings, model: str | None = None, on_progress: OnProgress | None = None
) -> Engine:
    """Load a model on the first CUDA device, or on the CPU where there is none.

    Args:
        settings: engine, device, dtype and threads are taken from here.
        model: instead of the settings' model.
        on_progress: told in one line each what is being done.

    Raises:
        EngineError, SettingsError: as `load_engine` does.
    """
    from pocqueue.engine.devices import device_for_queue

    return load_engine(
        engine=settings.engine,
        model=model or settings.model,
        device=device_for_queue("gpu0", settings.device),
        state_dir=settings.state_dir,
        dtype=settings.dtype,
        num_threads=settings.num_threads,
        on_progress=on_progress,
    )
