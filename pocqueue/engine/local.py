"""An engine by the settings: for a GPU queue, or in this very process for commands without the pool."""

from __future__ import annotations

from pocqueue.engine import Engine, EngineOptions, OnProgress, load_engine
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
    return load_queue_engine("gpu0", settings, model, on_progress)


def load_queue_engine(
    queue: str,
    settings: Settings,
    model: str | None = None,
    on_progress: OnProgress | None = None,
) -> Engine:
    """Load a model on the device, or devices, that a GPU queue stands for.

    Raises:
        EngineError, SettingsError: as `load_engine` does.
    """
    return load_engine(settings.engine, engine_options(queue, settings, model), on_progress)


def engine_options(queue: str, settings: Settings, model: str | None = None) -> EngineOptions:
    """Return what the settings say about the engine of a GPU queue.

    Raises:
        SettingsError, DeviceNotFound: as `devices.device_for_queue` does.
    """
    from pocqueue.engine.devices import device_for_queue

    token = settings.vllm_token
    return EngineOptions(
        model=model or settings.model,
        # A served model is on devices of the server's.
        device="cpu"
        if settings.engine == "vllm-server"
        else device_for_queue(queue, settings.device, settings.tensor_parallel),
        state_dir=settings.state_dir,
        dtype=settings.dtype,
        num_threads=settings.num_threads,
        tensor_parallel=settings.tensor_parallel,
        server_url=settings.vllm_url,
        server_token=None if token is None else token.get_secret_value(),
    )
