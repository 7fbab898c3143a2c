"""The trainer's child process: answers one request after the other until its standard input ends.

``python -m pocqueue.pouw.training.child``. It computes with one thread at nice 10, whatever its parent does,
and keeps the models of the last few tasks.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import IO

import msgspec

from pocqueue.errors import PocqueueError
from pocqueue.pouw.data.parts import Part
from pocqueue.pouw.errors import DataError
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.training.iterate import full_weights, iterate
from pocqueue.pouw.training.messages import (
    Accuracy,
    Answer,
    Failure,
    Fit,
    Fitness,
    Iterate,
    Reexecute,
    Request,
    read_frame,
    write_frame,
)
from pocqueue.pouw.training.models import Model, fixed_arithmetic
from pocqueue.pouw.training.reexecute import reexecute
from pocqueue.pouw.training.samples import own, own_test

_NICE = 10
_MODELS = 8


def main() -> None:
    """Answer requests on standard input and output."""
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    # Frames have a file of their own: what a library prints must not come between them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with fixed_arithmetic():
        serve(sys.stdin.buffer, answers)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until there are no more requests."""
    decoder = msgspec.msgpack.Decoder(Request)
    while (data := read_frame(requests)) is not None:
        try:
            answer = _answer(decoder.decode(data))
        except PocqueueError as exc:
            answer = Failure(str(exc))
        except MemoryError:
            answer = Failure("its memory is used up; take a smaller model or batch.")
        except RuntimeError as exc:  # torch has no room for a tensor, or cannot do what it is told
            answer = Failure(str(exc).partition("\n")[0])
        write_frame(answers, answer)


def _answer(request: Request) -> Answer:
    if isinstance(request, Fit):
        return _fitness(request)
    task = request.task
    model = _model(task) if request.data is None else _own_model(task, request.data)
    if isinstance(request, Iterate):
        return iterate(
            model,
            request.theta,
            request.residual,
            slot=request.slot,
            miner=request.miner,
            lane=request.lane,
            parts=request.parts,
            noise=request.noise,
        )
    if isinstance(request, Reexecute):
        return reexecute(
            model, request.lap, miner=request.miner, lane=request.lane, published=request.map
        )
    part: Part = getattr(model.samples, request.part)
    if request.test is not None:
        try:
            part = own_test(Path(request.test), task)
        except DataError as exc:
            return Failure(str(exc), is_test=True)
    correct = model.correct(full_weights(task, request.theta), part)
    return Accuracy(correct, len(part.y), part.majority)


def _fitness(request: Fit) -> Fitness:
    try:
        _own_model(request.task, request.data)
    except DataError as exc:
        return Fitness(str(exc))
    return Fitness(None)


@functools.lru_cache(_MODELS)
def _model(task: TaskSpec) -> Model:
    task.check()
    return Model(task)


def _own_model(task: TaskSpec, data: str) -> Model:
    """Return a model on a client's own data. Of these few are kept, and none by their models."""
    task.check()
    return Model(task, own(Path(data), task))


if __name__ == "__main__":
    main()
