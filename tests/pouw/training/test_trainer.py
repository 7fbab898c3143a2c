"""One child computes for a whole process, and its end is one failed call."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import msgspec
import pytest

from pocqueue.pouw.errors import TrainingError
from pocqueue.pouw.slots.task import LapSlot
from pocqueue.pouw.slots.weights import first_weights, weights_bytes
from pocqueue.pouw.training import trainer as trainers
from pocqueue.pouw.training.iterate import iterate
from pocqueue.pouw.training.messages import (
    Accuracy,
    Answer,
    Iterate,
    IterationResult,
    Measure,
    Reexecute,
    Request,
    Verdict,
    read_frame,
    write_frame,
)
from pocqueue.pouw.training.models import Model
from pocqueue.pouw.training.trainer import PATIENT_S, URGENT_S, Trainer
from pocqueue.pouw.wire.slots import MAX_PARTS
from tests.pouw.training.in_step import InStep, task_of
from tests.support.waiting import PATIENCE_S

MINER = b"m" * 33
TASK = task_of("MLP")
THETA = weights_bytes(first_weights(TASK))


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    """Return a trainer for several tests: its child takes seconds to start."""
    with Trainer() as found:
        yield found


def _is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and is not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _kib(pid: int, name: str) -> int:
    """Return one of the sizes in a process's status, such as the most memory that it has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def _environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while _is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.02)


def _made_up_child() -> tuple[Any, IO[bytes], IO[bytes]]:
    """Return a child that does nothing by itself, what comes to it, and what it answers with."""
    (asked, to_child), (from_child, answers) = os.pipe(), os.pipe()
    said = open(answers, "wb")  # noqa: SIM115 - closed when it is killed
    child = SimpleNamespace(
        pid=0,
        stdin=open(to_child, "wb"),  # noqa: SIM115 - the trainer closes both
        stdout=open(from_child, "rb"),  # noqa: SIM115
        kill=said.close,
        wait=lambda: -9,
    )
    return child, open(asked, "rb"), said


async def test_a_child_is_stuck_by_what_it_does_and_not_by_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request that waited behind others has as long as any other from when its turn comes."""
    now = SimpleNamespace(s=0.0, looks=0)

    def monotonic() -> float:
        now.looks += 1
        return cast(float, now.s)

    async def looked() -> None:
        seen = now.looks
        async with asyncio.timeout(PATIENCE_S):
            while now.looks < seen + 4:  # noqa: ASYNC110 - of another thread as well
                await asyncio.sleep(0)

    child, asked, said = _made_up_child()
    monkeypatch.setattr(trainers, "_spawn", lambda: (child, tempfile.TemporaryFile()))  # noqa: SIM115
    monkeypatch.setattr(trainers, "_LOOK_S", 0.001)
    monkeypatch.setattr(trainers, "time", SimpleNamespace(monotonic=monotonic))
    with Trainer() as own, asked:
        calls = [asyncio.create_task(own.accuracy(TASK, THETA, "val")) for _ in range(3)]
        for number in range(2):
            assert await asyncio.to_thread(read_frame, asked)
            now.s += 250.0
            await looked()
            write_frame(said, Accuracy(number, 256, 31))
            assert (await calls[number]).correct == number
        assert await asyncio.to_thread(read_frame, asked)
        now.s += 301.0
        with pytest.raises(TrainingError, match="was killed by SIGKILL"):
            await calls[2]


@pytest.mark.parametrize(
    ("hidden", "batch_size"), [((30, 4), 1024), ((4096, 1), 7)], ids=["batch", "channels"]
)
async def test_no_task_that_is_allowed_takes_much_memory(
    trainer: Trainer, hidden: tuple[int, ...], batch_size: int
) -> None:
    """Close to the bounds, in all its parts and when it is measured: a GiB is more than enough."""
    task = msgspec.structs.replace(TASK, architecture="CNN", hidden=hidden, batch_size=batch_size)
    task.check()
    theta = weights_bytes(first_weights(task))
    await trainer.iterate(task, theta, None, 5, MINER, 0, MAX_PARTS)
    await trainer.accuracy(task, theta, "val")
    assert trainer.pid is not None
    assert _kib(trainer.pid, "VmHWM") < 1024 * 1024


async def test_a_child_without_room_says_so_and_goes_on() -> None:
    """What torch raises then is its own, and no end of the process."""
    task = msgspec.structs.replace(TASK, architecture="CNN", hidden=(30, 4), batch_size=1024)
    theta = weights_bytes(first_weights(task))
    with Trainer() as own:
        await own.iterate(TASK, THETA, None, 5, MINER, 0, 1)
        pid = own.pid
        assert pid is not None
        room = _kib(pid, "VmSize") * 1024 + 32 * 2**20
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
        with pytest.raises(TrainingError, match=r"The trainer cannot do it: .*memory"):
            await own.iterate(task, theta, None, 5, MINER, 0, MAX_PARTS)
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))
        await own.iterate(TASK, THETA, None, 5, MINER, 0, 1)
        assert own.pid == pid


async def test_the_child_computes_what_we_would(trainer: Trainer) -> None:
    """Iterations, verdicts and accuracies are those of the same calls here, bit for bit."""
    own = iterate(Model(TASK), THETA, None, slot=5, miner=MINER, lane=1, parts=2)
    assert await trainer.iterate(TASK, THETA, None, 5, MINER, 1, 2) == own
    carried = await trainer.iterate(TASK, THETA, own.residual, 6, MINER, 1, 2)
    assert carried.residual != own.residual
    miners = InStep(TASK, 2)
    miners.run(3)
    first, second = miners.miners
    lap, published = miners.laps[first], miners.results[first].map
    assert (await trainer.reexecute(TASK, lap, first, 0, published)).is_honest
    assert not (await trainer.reexecute(TASK, lap, second, 0, published)).is_honest
    val = miners.model.samples.val
    correct = miners.model.correct(miners.weights, val)
    assert await trainer.accuracy(TASK, miners.theta, "val") == Accuracy(correct, 256, 31)
    assert (await trainer.accuracy(TASK, miners.theta, "test")).total == 256


async def test_many_nodes_may_ask_at_once(trainer: Trainer) -> None:
    """Calls that meet get their own answers, and a caller that gives up takes nobody's."""
    given_up = asyncio.ensure_future(trainer.iterate(TASK, THETA, None, 99, MINER, 0, 8))
    await asyncio.sleep(0)
    given_up.cancel()
    found = await asyncio.gather(
        *(trainer.iterate(TASK, THETA, None, slot, MINER, 0, 1) for slot in range(8))
    )
    model = Model(TASK)
    for slot, result in enumerate(found):
        assert result == iterate(model, THETA, None, slot=slot, miner=MINER, lane=0, parts=1)


async def test_what_cannot_be_done_is_said(trainer: Trainer) -> None:
    """A model that cannot be, weights of another one, a map that is none: a sentence, and the child goes on."""
    await trainer.accuracy(TASK, THETA, "val")
    pid = trainer.pid
    cases = [
        (msgspec.structs.replace(TASK, architecture="RNN"), THETA, "architecture is 'RNN'"),
        (TASK, THETA[:-4], "68900 bytes of weights; the model has 17226"),
    ]
    for task, theta, said in cases:
        with pytest.raises(TrainingError, match=said):
            await trainer.iterate(task, theta, None, 0, MINER, 0, 1)
    with pytest.raises(TrainingError, match="end within an entry"):
        await trainer.reexecute(TASK, [LapSlot(0, THETA, None, 1)], MINER, 0, b"\x80")
    assert trainer.pid == pid


async def test_the_child_is_modest(trainer: Trainer) -> None:
    """It runs at nice 10 or more, with one thread that computes."""
    await trainer.accuracy(TASK, THETA, "val")
    assert trainer.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, trainer.pid) >= 10
    assert b"OMP_NUM_THREADS=1" in _environment(trainer.pid)


async def test_a_killed_child_is_one_failed_call() -> None:
    """The call that meets its end says how it ended; the next one has a new child, which all nodes of a process share."""
    one, other = Trainer.shared(), Trainer.shared()
    assert one is other
    first = await one.iterate(TASK, THETA, None, 0, MINER, 0, 1)
    pid = one.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match="was killed by SIGKILL; a later call"):
        await one.iterate(TASK, THETA, None, 0, MINER, 0, 1)
    assert await one.iterate(TASK, THETA, None, 0, MINER, 0, 1) == first
    assert one.pid != pid
    pid = one.pid
    assert pid is not None
    # The first user to stop takes it from nobody, the last one ends it.
    one.close()
    assert (await other.accuracy(TASK, THETA, "val")).total == 256
    assert other.pid == pid
    other.close()
    _wait_for_end(pid)
    with pytest.raises(TrainingError, match="is closed"):
        await one.iterate(TASK, THETA, None, 0, MINER, 0, 1)
    assert Trainer.shared() is not one
    Trainer.shared().close()
    Trainer.shared().close()


async def test_calls_that_wait_fail_when_it_is_closed() -> None:
    """Nobody waits for a child that is gone."""
    trainer = Trainer()
    calls = [
        asyncio.ensure_future(trainer.iterate(TASK, THETA, None, slot, MINER, 0, 1))
        for slot in range(3)
    ]
    await asyncio.sleep(0)  # they are on their way, the first of them to a child that starts
    trainer.close()
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, TrainingError)
        assert "closed" in str(answer)


def test_the_child_ends_with_its_parent() -> None:
    """Killed without a word, a process leaves no child behind, and had no torch of its own."""
    program = "\n".join(
        [
            "import asyncio, os, signal, sys",
            "from pocqueue.pouw.slots.task import ARCHITECTURES, TaskSpec",
            "from pocqueue.pouw.slots.weights import first_weights, weights_bytes",
            "from pocqueue.pouw.training.trainer import Trainer",
            "task = TaskSpec(bytes(32), 'MLP', (128, 64), 'digits', 64, 0.3, 0.02)",
            "trainer = Trainer()",
            "theta = weights_bytes(first_weights(task))",
            "asyncio.run(trainer.accuracy(task, theta, 'val'))",
            "print(trainer.pid, 'torch' in sys.modules, flush=True)",
            "os.kill(os.getpid(), signal.SIGKILL)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    pid, has_torch = done.stdout.split()
    assert has_torch == "False"
    _wait_for_end(int(pid))


async def test_maps_of_other_instruction_sets_are_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps made here pass where sums are rounded otherwise."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    with Trainer() as trainer:
        for architecture in ("MLP", "CNN"):
            miners = InStep(task_of(architecture), 2)
            for _ in range(2):
                miners.run(5)
                for miner in miners.miners:
                    published = miners.results[miner].map
                    verdict = await trainer.reexecute(
                        miners.task, miners.laps[miner], miner, 0, published
                    )
                    assert verdict.is_honest


async def test_what_a_block_waits_for_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a slot's iteration, that before all else, and what has waited long before those that came later."""
    now = SimpleNamespace(s=0.0)
    child, asked, said = _made_up_child()
    monkeypatch.setattr(trainers, "_spawn", lambda: (child, tempfile.TemporaryFile()))  # noqa: SIM115
    monkeypatch.setattr(trainers, "time", SimpleNamespace(monotonic=lambda: now.s))
    result = IterationResult(b"", bytes(32), 0, b"")
    verdict = Verdict(0, 0, 1.0, True, bytes(32))
    with Trainer() as own, asked:

        def over(slot: int, patience_s: float = PATIENT_S) -> asyncio.Task[Any]:
            lap = [LapSlot(slot, b"", b"", 1)]
            return asyncio.create_task(own.reexecute(TASK, lap, MINER, 0, b"", patience_s))

        async def answered(answer: Answer) -> Request:
            frame = await asyncio.to_thread(read_frame, asked)
            assert frame is not None
            write_frame(said, answer)
            return msgspec.msgpack.decode(frame, type=Request)

        calls: list[asyncio.Task[Any]]
        calls = [asyncio.create_task(own.accuracy(TASK, THETA, "val"))]
        calls += [over(1), asyncio.create_task(own.iterate(TASK, THETA, None, 2, MINER, 0, 1))]
        calls += [over(3, URGENT_S)]
        await asyncio.sleep(0)  # they are all asked
        assert isinstance(await answered(Accuracy(1, 256, 31)), Measure)
        found = [await answered(answer) for answer in (verdict, result, verdict)]
        assert [type(one) for one in found] == [Reexecute, Iterate, Reexecute]
        first, _, last = found
        assert isinstance(first, Reexecute)
        assert isinstance(last, Reexecute)
        assert [one.lap[0].slot for one in (first, last)] == [3, 1]
        await asyncio.gather(*calls)

        calls = [over(0, URGENT_S), over(1)]
        await asyncio.sleep(0)
        now.s += PATIENT_S
        calls += [over(2, URGENT_S), over(3, URGENT_S)]
        await asyncio.sleep(0)
        order = [await answered(verdict) for _ in calls]
        assert [one.lap[0].slot for one in order if isinstance(one, Reexecute)] == [0, 1, 2, 3]
        await asyncio.gather(*calls)
