"""An engine in a process of its own: what its runtime changes or prints touches nothing here."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from pocqueue.engine.base import Engine, OnProgress
from pocqueue.errors import EngineError, PocqueueError, first_line
from pocqueue.logs import log_to_stderr
from pocqueue.processes.child import describe_exit
from pocqueue.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_S = 0.5
#: How long a process may take to end after its answer, before it is killed.
_END_WAIT_S = 15.0

#: What a process sends: ("told", a line), then ("answer", a value) or ("raised", an error).
_Message = tuple[str, Any]


def with_engine_in_child(
    settings: Settings,
    work: Callable[[Engine, OnProgress], T],
    on_progress: OnProgress,
    *,
    queue: str = "gpu0",
) -> T:
    """Load an engine in a fresh process, run a function with it there and return what that returns.

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
    from pocqueue.engine import load_local_engine

    # Not otherwise: others' warnings, which have handlers of their own, would come twice.
    if settings.log_level == "DEBUG":
        log_to_stderr(settings.log_level)
    engine = load_local_engine(settings, on_progress=on_progress, queue=queue)
    with contextlib.closing(engine):
        return work(engine, on_progress)


def run_in_child(name: str, work: Callable[[OnProgress], T], on_progress: OnProgress) -> T:
    """Run a function in a fresh process and return what it returns.

    The process leads a session of its own: Ctrl-C reaches only us, and it ends, with all that it
    started, when this call does or this process dies. What it prints goes to standard error.

    Args:
        name: of the process, to begin a sentence about its failure with.
        work: a picklable function of an on_progress; what it returns is pickled too.
        on_progress: told here what `work` tells.

    Raises:
        PocqueueError: whatever `work` raised of that kind.
        EngineError: it raised something else, or ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child_main, args=(name, work, sender))
    with receiver:
        with sender:
            _start_without_interrupts(process)
        message, wait_s = None, 0.0
        try:
            message = _follow(process, receiver, on_progress)
            wait_s = _END_WAIT_S
        finally:
            _end(process, wait_s)
    if message is None:
        code = process.exitcode or 0
        advice = "What it wrote is above."
        if code == -signal.SIGKILL:
            advice = "Most often the machine's memory has run out: use a smaller batch or model."
        raise EngineError(f"{name} {describe_exit(code)} before it had an answer. {advice}")
    kind, value = message
    if kind == "raised":
        raise value
    answer: T = value
    return answer


def _start_without_interrupts(process: BaseProcess) -> None:
    """Start a process that a Ctrl-C does not reach, not even before it leads its own session."""
    # Else `start` makes it and unblocks the signal behind it.
    resource_tracker.ensure_running()
    # Kept by the child for good. Here, a Ctrl-C meanwhile is raised when it is unblocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(
    process: BaseProcess, receiver: connection.Connection[Any, Any], on_progress: OnProgress
) -> _Message | None:
    """Pass progress on until there is an answer; None if it ends without one."""
    assert process.pid is not None
    while True:
        # Not the end of the pipe alone: what the process started may hold the other side open.
        while not receiver.poll(_POLL_S):
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if ended is not None and not receiver.poll():
                return None
        try:
            kind, value = receiver.recv()
        except (EOFError, OSError):
            return None
        if kind != "told":
            return kind, value
        on_progress(value)


def _end(process: BaseProcess, wait_s: float) -> None:
    """Wait for the end of a process, no longer than `wait_s`, and kill it and all that it started."""
    assert process.pid is not None
    connection.wait([process.sentinel], wait_s)
    # Not reaped yet: until it is, its process group's number belongs to nobody else.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _child_main(
    name: str,
    work: Callable[[OnProgress], object],
    sender: connection.Connection[Any, Any],
) -> None:
    os.setsid()
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    # Below Python: runtimes print from C++ too, and standard output is for results alone.
    os.dup2(2, 1)
    message: _Message
    try:
        message = "answer", work(lambda line: sender.send(("told", line)))
    except PocqueueError as exc:
        message = "raised", exc
    except Exception as exc:  # any runtime may raise anything
        logger.debug("%s failed", name, exc_info=True)
        said = first_line(exc).rstrip(".")
        sentence = f"{name} failed ({said}); POCQUEUE_LOG_LEVEL=DEBUG shows where."
        message = "raised", EngineError(sentence)
    sender.send(message)


def _end_with_parent() -> None:
    """Wait for the parent's end, then kill this process and all that it started."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
