"""Mining by training, on the CPU: what an iteration costs, and what it costs others to check it.

    python -m benchmarks.pouw_training

In a process of its own, with one thread as in the trainer's child: gradients, iterations and re-executions in
turns, by the time they have of a core, so that other work on the machine counts little; then an iteration
through the trainer and its pipe, by the clock.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.effort import FULL, Effort
from benchmarks.pouw_privacy import pouw_privacy
from benchmarks.stats import Figure, Sample

if TYPE_CHECKING:
    from pocqueue.pouw.slots.task import TaskSpec

_NUM_TURNS = 15
_REPEATS = 5
_MINER = b"m" * 33


def pouw_training(effort: Effort = FULL) -> list[Figure]:
    """Measure each architecture, 20 s, most of it imports of torch; and what privacy costs, 20 s."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pouw_training", str(effort.runs(_NUM_TURNS))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [*(figure for line in lines for figure in _figures(line)), *pouw_privacy(effort)]


def _figures(line: dict[str, Any]) -> list[Figure]:
    model = f"{line['architecture']} of {line['num_weights']:,} weights"
    gradient, trainer = Sample(line["gradient"], "ms"), Sample(line["trainer"], "ms")
    iteration, in_process = Sample(line["iteration"], "ms"), Sample(line["in process"], "ms")
    more_ms = trainer.median - in_process.median
    return [
        _ratio(f"useful work: an iteration, {model}", iteration, gradient, 3),
        _ratio(
            f"useful work: a map re-executed, mean of a lap's 8 slots, {model}",
            Sample(line["any slot"], "ms"),
            gradient,
            10,
        ),
        _ratio(
            f"useful work: a map re-executed, the last of a lap, {model}",
            Sample(line["last slot"], "ms"),
            gradient,
            15,
        ),
        Figure(
            f"useful work: an iteration through the trainer, {model}",
            trainer,
            in_process,
            "the same without it",
            # On a busy machine it may seem to cost nothing.
            max(more_ms, 1e-3),
            "at most 3 ms more",
            more_ms <= 3,
        ),
    ]


def _ratio(name: str, measured: Sample, gradient: Sample, most: int) -> Figure:
    ratio = measured.median / gradient.median
    target = f"ratio at most {most}"
    return Figure(name, measured, gradient, "its gradient alone", ratio, target, ratio <= most)


def main(num_turns: int = _NUM_TURNS) -> None:
    """Print one line of JSON for each architecture: its size, and the ms of each turn."""
    from pocqueue.pouw.slots.task import ARCHITECTURES, TaskSpec
    from pocqueue.pouw.training.models import fixed_arithmetic

    with fixed_arithmetic():
        for name, (data, hidden, learning_rate, tau) in ARCHITECTURES.items():
            task = TaskSpec(bytes(32), name, hidden, data, 64, learning_rate, tau)
            sizes = {"architecture": name, "num_weights": task.num_weights}
            print(json.dumps(sizes | _measure(task, num_turns)), flush=True)


def _measure(task: TaskSpec, num_turns: int) -> dict[str, list[float]]:
    from pocqueue.pouw.slots.task import LAP, LapSlot
    from pocqueue.pouw.slots.weights import first_weights, weights_bytes
    from pocqueue.pouw.training.iterate import iterate
    from pocqueue.pouw.training.messages import IterationResult
    from pocqueue.pouw.training.models import Model
    from pocqueue.pouw.training.reexecute import reexecute
    from pocqueue.pouw.training.samples import sample_rows
    from pocqueue.pouw.training.trainer import Trainer

    model, weights = Model(task), first_weights(task)
    theta, rows = weights_bytes(weights), sample_rows(task, 0, _MINER, 0, 1)

    def one(slot: int, residual: bytes | None) -> IterationResult:
        return iterate(model, theta, residual, slot=slot, miner=_MINER, lane=0, parts=1)

    lap: list[LapSlot] = []
    result: IterationResult | None = None
    for slot in range(LAP):
        result = one(slot, None if result is None else result.residual)
        lap.append(LapSlot(slot, theta, result.map, 1))
    assert result is not None
    residual = result.residual

    def judge(num_slots: int) -> None:
        last = lap[num_slots - 1]
        assert last.map is not None
        verdict = reexecute(model, lap[:num_slots], miner=_MINER, lane=0, published=last.map)
        assert verdict.is_honest, verdict

    def judge_each() -> None:
        for num_slots in range(1, LAP + 1):
            judge(num_slots)

    # What is measured, and how many of it a call does.
    parts: dict[str, tuple[Callable[[], object], int]] = {
        "gradient": (lambda: model.gradient(weights, rows), 1),
        "iteration": (lambda: one(LAP - 1, residual), 1),
        "any slot": (judge_each, LAP),
        "last slot": (lambda: judge(LAP), 1),
    }
    found: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(num_turns + 1):
        for name, (run, number) in parts.items():
            took_ms = _timed_ms(run, time.process_time) / number
            if turn:  # the first one warms up
                found[name].append(took_ms)
    found["in process"], found["trainer"] = [], []
    with asyncio.Runner() as runner, Trainer() as trainer:

        def ask() -> object:
            return runner.run(trainer.iterate(task, theta, residual, LAP - 1, _MINER, 0, 1))

        ask()
        for _ in range(num_turns):
            found["trainer"].append(_timed_ms(ask, time.perf_counter))
            took_ms = _timed_ms(lambda: one(LAP - 1, residual), time.perf_counter)
            found["in process"].append(took_ms)
    return found


def _timed_ms(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the ms of a call, the mean of a few."""
    began = clock()
    for _ in range(_REPEATS):
        run()
    return (clock() - began) * 1e3 / _REPEATS


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:]))
