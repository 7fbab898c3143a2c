"""Work with an engine in a process of its own, which has the machine and the device's memory to itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from pocqueue.engine.base import Engine, OnProgress
from pocqueue.logs import log_to_stderr
from pocqueue.processes.function import run_in_child
from pocqueue.settings import Settings

T = TypeVar("T")


def with_engine_in_child(
    settings: Settings,
    work: Callable[[Engine, OnProgress], T],
    on_progress: OnProgress,
    *,
    queue: str = "gpu0",
) -> T:
    """Load an engine in a fresh process, run a function with it there and return what that returns.

    What a runtime changes process-wide or prints (threads, environment, standard output) touches nothing here.

    Args:
        settings: engine, model, device and everything else that an engine takes.
        work: a picklable function of the engine and an on_progress; what it returns is pickled too.
        on_progress: told in one line each what is being done.
        queue: names the device; without meaning if a server has the model.

    Raises:
        EngineError, InvalidRound, SettingsError: as `work` and `load_engine` do; EngineError, too, if the
            process ends without an answer.
    """
    loaded = functools.partial(_load_and_run, settings, queue, work)
    return run_in_child(f"Engine {settings.engine}", loaded, on_progress)


def _load_and_run(
    settings: Settings,
    queue: str,
    work: Callable[[Engine, OnProgress], T],
    on_progress: OnProgress,
) -> T:
    from pocqueue.engine.local import load_local_engine

    # Not otherwise: others' warnings, which have handlers of their own, would come twice.
    if settings.log_level == "DEBUG":
        log_to_stderr(settings.log_level)
    engine = load_local_engine(settings, on_progress=on_progress, queue=queue)
    try:
        return work(engine, on_progress)
    finally:
        engine.close()
