"""What it costs to start the command line."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample

NUM_RUNS = 15


def command_line(effort: Effort = FULL) -> Figure:
    """Time of `pocqueue --help`, against an interpreter that does nothing; alternating."""
    ours, bare = [], []
    for _ in range(effort.runs(NUM_RUNS)):
        ours.append(_run("-m", "pocqueue", "--help"))
        bare.append(_run("-c", "pass"))
    measured = Sample(ours, "s")
    return Figure(
        "pocqueue --help",
        measured,
        Sample(bare, "s"),
        "python -c pass",
        measured.median,
        "under 0.4 s",
        measured.median < 0.4,
    )


def _run(*argv: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
