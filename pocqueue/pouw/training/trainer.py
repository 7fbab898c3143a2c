"""The trainer: gradients for a process of ours, computed in one child process.

Promises:
- Nothing of torch is ever in this process; its event loop waits and never computes.
- There is one child, started at the first call, whatever many nodes share it; calls are answered one at a time:
  what a block waits for before a slot's iteration, that before all else, and what has waited long before those.
- A call fails with `TrainingError` if the child ends meanwhile; a later one starts it again, after a pause that
  grows while it fails.
- The child ends with `close`, and with this process however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, ClassVar, NamedTuple, TypeVar

import msgspec
from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.poc.backoff import Backoff
from pocqueue.pouw.errors import DataError, TrainingError
from pocqueue.pouw.slots.task import LapSlot, TaskSpec
from pocqueue.pouw.training.messages import (
    Accuracy,
    Answer,
    Failure,
    Fit,
    Fitness,
    Iterate,
    IterationResult,
    Measure,
    PartName,
    Reexecute,
    Request,
    Verdict,
    read_frame,
    write_frame,
)
from pocqueue.processes import child_exec
from pocqueue.processes.child import describe_exit

#: So long a call lets others pass that came later and have less time: a block none, a slot's iteration, all else.
URGENT_S, _ITERATION_S, PATIENT_S = 0.0, 1.0, 30.0
_PAUSES = Backoff(first_s=0.5, longest_s=10.0)
#: No request takes as long, once its turn has come; a child that does is stuck.
_STUCK_S = 300.0
#: Whoever waits looks so often whether it is.
_LOOK_S = 10.0
#: Weights and residual of a small model: the fewer pieces, the fewer turns of two processes.
_PIPE_BYTES = 256 * 1024
_TAIL_BYTES = 2000
_CLOSED = "The trainer is closed."
# Threads of math libraries spin while they wait; one is all the child computes with.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

_Result = TypeVar("_Result", bound=Answer)


class _Call(NamedTuple):
    """A call that waits for the child; the first one in order is its next."""

    until_s: float  #: it lets others pass, by the monotonic clock
    number: int
    request: Request
    answer: Future[Answer]


class Trainer(Closing):
    """A child that trains. From any event loop and thread; a context manager that ends it."""

    _shared: ClassVar[Trainer | None] = None
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._users = 1
        # Linux ends a child with the thread that started it: this one, which lives as long as the trainer.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trainer")
        self._closing = threading.Event()
        self._lock = (
            threading.Lock()
        )  # held to start and to signal, so that no child outlives `close`
        self._child: subprocess.Popen[bytes] | None = None
        self._says: IO[bytes] | None = None  # the child's standard error
        self._failures = 0  # in a row
        self._waiting: queue.PriorityQueue[_Call] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._began_s: float | None = (
            None  # when the child was given what it does now, by the monotonic clock
        )
        #: Files of clients' data by name: of each node that shares this trainer its own, all with the same bytes.
        self._files: dict[str, list[Path]] = {}

    @classmethod
    def shared(cls) -> Trainer:
        """Return the trainer of this process; its child ends once each caller has closed it."""
        with cls._shared_lock:
            if cls._shared is None:
                cls._shared = cls()
            else:
                cls._shared._users += 1
            return cls._shared

    @property
    def pid(self) -> int | None:
        """Return the child's process id; None if there is none."""
        child = self._child
        return None if child is None else child.pid

    async def iterate(
        self,
        task: TaskSpec,
        theta: bytes,
        residual: bytes | None,
        slot: int,
        miner: bytes,
        lane: int,
        parts: int,
        noise: bytes | None = None,
    ) -> IterationResult:
        """Make a lane's iteration; `training.iterate` has the arguments.

        Raises:
            TrainingError: the child ended, there is no such model, or a private task's noise is missing.
        """
        request = Iterate(task, theta, residual, slot, miner, lane, parts, self._data(task), noise)
        return await self._ask(request, IterationResult, _ITERATION_S)

    async def reexecute(
        self,
        task: TaskSpec,
        lap: Sequence[LapSlot],
        miner: bytes,
        lane: int,
        published: bytes,
        patience_s: float = PATIENT_S,
    ) -> Verdict:
        """Judge a lane's map in the last slot of `lap`; `training.reexecute` has the arguments.

        Args:
            task, lap, miner, lane, published: see there.
            patience_s: so long it lets others pass, `URGENT_S` to `PATIENT_S`.

        Raises:
            TrainingError: the child ended, or there is no such model.
        """
        request = Reexecute(task, tuple(lap), miner, lane, published, self._data(task))
        return await self._ask(request, Verdict, patience_s)

    async def accuracy(
        self, task: TaskSpec, theta: bytes, part: PartName, test: Path | None = None
    ) -> Accuracy:
        """Count how many samples of a part these weights are right about.

        Args:
            task: that is trained.
            theta: weights, float32.
            part: of a client's own data "test" is the one that validates.
            test: file with the hidden test part of a client's own data, which counts instead.

        Raises:
            DataError: the file with the test part is none for this task.
            TrainingError: the child ended, or there is no such model.
        """
        path = None if test is None else str(test)
        return await self._ask(Measure(task, theta, part, self._data(task), path), Accuracy)

    async def check(self, task: TaskSpec) -> None:
        """Return if a client's own data are what its task says.

        Raises:
            DataError: they are not.
            TrainingError: the child ended, or the data are not here.
        """
        data = self._data(task)
        if data is not None:
            fitness = await self._ask(Fit(task, data), Fitness)
            if fitness.problem is not None:
                raise DataError(fitness.problem)

    def know(self, name: str, path: Path) -> None:
        """Train on this file where a task is about data of that name."""
        self._files.setdefault(name, []).append(path)

    def forget(self, name: str, path: Path) -> None:
        """Use a file no longer; a no-op for one that is not known."""
        with contextlib.suppress(KeyError, ValueError):
            self._files[name].remove(path)

    @override
    def close(self) -> None:
        """End the child; calls that wait fail. Of a shared trainer only the last caller's does that."""
        with Trainer._shared_lock:
            self._users -= 1
            if self._users > 0:
                return
            if Trainer._shared is self:
                Trainer._shared = None
        with self._lock:
            self._closing.set()
        self._end_child()
        self._thread.submit(self._reap)
        self._thread.shutdown()

    def _data(self, task: TaskSpec) -> str | None:
        """Return the path of a client's own data; None: they are built in.

        Raises:
            TrainingError: they are not here.
        """
        if task.shape is None:
            return None
        paths = self._files.get(task.data)
        if not paths:
            raise TrainingError(f"The data {task.data} are not here.")
        return str(paths[-1])

    async def _ask(
        self, request: Request, kind: type[_Result], patience_s: float = PATIENT_S
    ) -> _Result:
        future: Future[Answer] = Future()
        until_s = time.monotonic() + patience_s
        self._waiting.put(_Call(until_s, next(self._numbers), request, future))
        try:
            self._thread.submit(self._answer_next)
        except RuntimeError:
            raise TrainingError(_CLOSED) from None
        waiting = asyncio.wrap_future(future)
        try:
            # Of the event loop: a timer with a thread of its own takes as long to start as much of what is asked for.
            while not (await asyncio.wait([waiting], timeout=_LOOK_S))[0]:
                self._end_if_stuck()
            answer = waiting.result()
        finally:
            waiting.cancel()
        if isinstance(answer, Failure):
            if answer.is_test:
                raise DataError(answer.message)
            raise TrainingError(f"The trainer cannot do it: {answer.message}")
        assert isinstance(answer, kind)
        return answer

    def _end_if_stuck(self) -> None:
        began_s = self._began_s
        if began_s is not None and time.monotonic() - began_s > _STUCK_S:
            self._end_child()

    def _end_child(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.kill()

    # What follows runs in the trainer's thread, one call at a time.

    def _answer_next(self) -> None:
        """Answer the first of the calls that wait: there is one for each time that this is called."""
        call = self._waiting.get_nowait()
        if not call.answer.set_running_or_notify_cancel():
            return  # nobody waits for it any more
        try:
            call.answer.set_result(self._call(call.request))
        except BaseException as exc:  # noqa: BLE001 - whoever called is told
            call.answer.set_exception(exc)

    def _call(self, request: Request) -> Answer:
        child = self._child or self._start()
        self._began_s = time.monotonic()
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            write_frame(child.stdin, request)
            data = read_frame(child.stdout)
        except BrokenPipeError:
            data = None
        finally:
            self._began_s = None
        if data is None:
            self._failures += 1
            said = self._reap()
            raise TrainingError(_CLOSED if self._closing.is_set() else said)
        self._failures = 0
        return msgspec.msgpack.decode(data, type=Answer)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._failures:
            self._closing.wait(_PAUSES.pause_s(self._failures - 1))
        with self._lock:
            if self._closing.is_set():
                raise TrainingError(_CLOSED)
            try:
                child, says = _spawn()
            except OSError as exc:  # no memory, no room for a process or on the disk
                self._failures += 1
                raise TrainingError(f"The trainer's child cannot be started: {exc}.") from exc
            self._child, self._says = child, says
            return child

    def _reap(self) -> str:
        """Let go of a child that has ended or is to end; return what to say of it."""
        with self._lock:
            child, says, self._child, self._says = self._child, self._says, None, None
        if child is None or says is None:
            return _CLOSED
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        child.kill()
        code = child.wait()
        with says:
            says.seek(max(0, says.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = says.read().decode("utf-8", "replace").strip().splitlines()
        said = f" It wrote last: {lines[-1]}" if lines else ""
        return f"The trainer's child (process {child.pid}) {describe_exit(code)}; a later call starts it again.{said}"


def _spawn() -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a child; return it and the file of its standard error."""
    wrapper = [sys.executable, "-I", "-S", child_exec.__file__, str(os.getpid())]
    with contextlib.ExitStack() as undo:
        says = undo.enter_context(tempfile.TemporaryFile())
        child = subprocess.Popen(  # noqa: S603 - a fixed list, no shell
            [*wrapper, sys.executable, "-m", "pocqueue.pouw.training.child"],
            env=os.environ | _ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=says,
            pipesize=_PIPE_BYTES,
            start_new_session=True,
        )
        undo.pop_all()
    return child, says
