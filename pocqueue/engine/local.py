"""An engine by the settings: for a GPU queue, or in this very process for commands without the pool."""

from __future__ import annotations

from pocqueue.engine import Engine, EngineOptions, OnProgress, load_engine
from pocqueue.engine.devices import device_for_queue
from pocqueue.engine.kinds import is_remote
from pocqueue.settings import Settings

#: How long the server of a model may take to answer: to a command, at which somebody waits, and to a
#: worker, which may have been started together with it.
COMMAND_PATIENCE_S = 10.0
WORKER_PATIENCE_S = 900.0


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
