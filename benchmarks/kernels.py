"""The proof's maths on the CPU: compiled kernels against the reference.

    python -m benchmarks.kernels

Measured in a process of its own, in turns, on the same seeds and logits. Nothing but the kernels has
touched torch's threads or the allocator there. A worker's allocator keeps what is freed
(`engine.devices.keep_freed_memory`), which helps the reference more than the kernels: they hardly allocate.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample

if TYPE_CHECKING:
    from pocqueue.poc.kernels import Kernels

_NUM_NONCES = 32
#: A turn repeats what takes less than this.
_TURN_S = 0.02
_NUM_TURNS = 9


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    kind: str
    #: Normal numbers, or logits, of each nonce.
    n: int
    shape: str  #: beside the number of nonces
    #: How many times as fast as the reference the kernels shall be.
    target: float
    one_thread: bool = False


ROWS = (
    Row("inputs in bfloat16", 256 * 1024, "256 x 1024", 20),
    Row("inputs in bfloat16", 64 * 128, "64 x 128", 30),
    Row("permutations", 1024, "1,024", 25),
    Row("permutations and distances", 151936, "151,936", 6),
    Row("permutations and distances", 1024, "1,024", 25),
    # Last, as the process stays at one thread.
    Row("permutations", 151936, "151,936", 8, one_thread=True),
)


def kernels(effort: Effort = FULL) -> list[Figure]:
    """Measure every row; 15 s, and 5 s more where the kernels are not compiled yet."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.kernels"),
            *(str(effort.runs(_NUM_TURNS)), str(effort.size(_NUM_NONCES))),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [_figure(row, line) for row, line in zip(ROWS, lines, strict=True)]


def _figure(row: Row, line: dict[str, Any]) -> Figure:
    measured, against = Sample(line["kernels"], "ms"), Sample(line["judge"], "ms")
    ratio = against.median / measured.median
    threads = line["threads"]
    return Figure(
        f"{row.kind}, {line['nonces']} x {row.shape}, {threads} thread{'' if threads == 1 else 's'}",
        measured,
        against,
        f"the reference, nonce by nonce; kernels on {line['layer']}",
        ratio,
        f"ratio at least {row.target:g}",
        ratio >= row.target,
    )


def main(num_turns: int = _NUM_TURNS, num_nonces: int = _NUM_NONCES) -> None:
    """Print one line of JSON for each row: nonces, threads, what runs them, and both sides' ms."""
    import torch

    from pocqueue.poc.kernels.cpu.kernels import CpuKernels
    from pocqueue.poc.kernels.reference import ReferenceKernels

    fast, judge = CpuKernels(), ReferenceKernels(torch.device("cpu"))
    for row in ROWS:
        if row.one_thread:
            torch.set_num_threads(1)
        run = _work(row, num_nonces)
        of_judge, of_kernels = in_turns(num_turns, partial(run, judge), partial(run, fast))
        threads = torch.get_num_threads()
        line = {"nonces": num_nonces, "threads": threads, "layer": fast.layer}
        print(json.dumps({**line, "judge": of_judge, "kernels": of_kernels}), flush=True)


def _work(row: Row, num_nonces: int) -> Callable[[Kernels], object]:
    """Return what is measured, with its memory."""
    import torch

    from pocqueue.poc.kernels.reference import norm, normal

    seeds, n = range(num_nonces), row.n
    if row.kind.startswith("inputs"):
        out = torch.empty(num_nonces, n, dtype=torch.bfloat16)
        return lambda kernels: kernels.write_inputs(seeds, out)
    if row.kind == "permutations":
        return lambda kernels: kernels.permutations(seeds, n)
    logits = torch.stack([normal(seed, n, "cpu") for seed in seeds])
    target = normal(1, n, "cpu")
    unit = target / norm(target)
    return lambda kernels: kernels.distances(logits, kernels.prepare(seeds, n), unit)


def in_turns(num_turns: int, *sides: Callable[[], object]) -> list[list[float]]:
    """Return the ms of a run on each side, one value a turn; what takes less than a turn is repeated."""
    repeats = []
    for side in sides:
        side()
        repeats.append(max(1, round(_TURN_S / _seconds(side, 1))))
    results: list[list[float]] = [[] for _ in sides]
    for _ in range(num_turns):
        for side, times, result in zip(sides, repeats, results, strict=True):
            result.append(1000 * _seconds(side, times))
    return results


def _seconds(side: Callable[[], object], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        side()
    return (time.perf_counter() - began) / repeats


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
