"""What a simulated fleet knows of itself: written by its process, read by `check.py` and `report.py`.

Nothing in here comes from Redis, so that the store can be held against it. Times are seconds of the
Unix clock. Which nonces are valid, and their distances, are functions of the nonce index alone.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocqueue.poc.nonces import index_of
from pocqueue.rounds.spec import RoundSpec

#: Validity repeats with this period; rounds get longer than that, but no two batches of a run are alike.
PERIOD = 1 << 20
VALID_RATE = 0.1
#: Distances are below this.
R_TARGET = 1.36

Ints = npt.NDArray[np.int64]


def _mixed(index: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return 32 well-mixed bits of each index (two rounds of multiply and shift)."""
    x = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.asarray(x >> np.uint64(32), dtype=np.uint64)


_MIXED = _mixed(np.arange(PERIOD, dtype=np.uint64))
#: Valid indices of one period, in order.
VALID: Ints = np.flatnonzero(_MIXED < VALID_RATE * 2**32).astype(np.int64)
_VALID_LIST: list[int] = VALID.tolist()


def valid_indices(start: int, stop: int) -> list[int]:
    """Return the valid nonce indices of one batch."""
    base = start - start % PERIOD
    low, high = start - base, stop - base
    at = bisect_left(_VALID_LIST, low)
    found = []
    while at < len(_VALID_LIST) and _VALID_LIST[at] < high:
        found.append(base + _VALID_LIST[at])
        at += 1
    if high > PERIOD:
        found += valid_indices(base + PERIOD, stop)
    return found


def valid_of_runs(runs: list[tuple[int, int]]) -> Ints:
    """Return the valid nonce indices of many runs, in their order."""
    parts = [np.empty(0, np.int64)]
    for start, stop in runs:
        for base in range(start - start % PERIOD, stop, PERIOD):
            inside = VALID + base
            low, high = np.searchsorted(inside, [start, stop])
            parts.append(inside[low:high])
    return np.concatenate(parts)


def distance(index: int) -> float:
    """Return the distance of a valid nonce: as many digits as a real one has, below R_TARGET."""
    return 0.9 + float(_MIXED[index % PERIOD]) / 2**32 * 4.5 + (index // PERIOD) * 2e-9


def values_of(spec: RoundSpec, nonces: Sequence[int]) -> list[float]:
    """Return the distances of the nonces of one batch, in their order; 2 for those that are not valid."""
    start = index_of(nonces[0], spec.node_id, spec.node_count)
    values = [2.0] * len(nonces)
    for index in valid_indices(start, start + len(nonces)):
        values[index - start] = distance(index)
    return values


@dataclass
class Ledger:
    """Everything that the fleet did."""

    #: Start and end of each committed batch, one after the other, by round.
    committed: dict[str, array[int]] = field(
        default_factory=lambda: defaultdict(lambda: array("q"))
    )
    #: Batches whose commit was under way when their GPU died: they count or not, nobody was told.
    unknown: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    #: GPU seconds by round, those of batches that did not count among them.
    spent_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    #: When each GPU was in the pool: from its first heartbeat to its death or the end.
    lives: list[tuple[float, float]] = field(default_factory=list)
    #: When a GPU in the pool had no range to work on, and when it waited for a commit.
    no_work: list[tuple[float, float]] = field(default_factory=list)
    on_commit: list[tuple[float, float]] = field(default_factory=list)
    #: GPU seconds of batches that did not count, by what became of them.
    dropped_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    #: What tasks came to, by the words of the worker's own one-line results.
    tasks: Counter[str] = field(default_factory=Counter)
    #: Seconds from sending a commit to its answer.
    commit_s: array[float] = field(default_factory=lambda: array("f"))
    #: Seconds by which the end of a batch was noticed late: the simulator's own fault.
    late_s: array[float] = field(default_factory=lambda: array("f"))
    deaths: int = 0
    #: When the last task was acknowledged.
    last_ack: float = 0.0
    #: Failures of the simulator itself; has to be empty.
    failures: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it to a file that `load` reads."""
        rounds = sorted({*self.committed, *self.unknown, *self.spent_s})
        words = {
            "rounds": rounds,
            "spent_s": [self.spent_s.get(r, 0.0) for r in rounds],
            "unknown": [self.unknown.get(r, []) for r in rounds],
            "dropped_s": self.dropped_s,
            "tasks": self.tasks,
            "deaths": self.deaths,
            "last_ack": self.last_ack,
            "failures": self.failures,
        }
        empty: array[int] = array("q")
        arrays: dict[str, Any] = {
            f"committed{n}": np.asarray(self.committed.get(r, empty)).reshape(-1, 2)
            for n, r in enumerate(rounds)
        }
        for name in ("lives", "no_work", "on_commit"):
            arrays[name] = np.asarray(getattr(self, name), np.float64).reshape(-1, 2)
        for name in ("commit_s", "late_s"):
            arrays[name] = np.asarray(getattr(self, name))
        np.savez(path, words=np.array(json.dumps(words)), **arrays)


class Books:
    """A ledger that was read back, with arrays in place of lists."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as found:
            words = json.loads(str(found["words"]))
            rounds: list[str] = words["rounds"]
            #: Rows of (start, end) by round.
            self.committed: dict[str, Ints] = {
                r: found[f"committed{n}"] for n, r in enumerate(rounds)
            }
            self.lives, self.no_work, self.on_commit = (
                found["lives"],
                found["no_work"],
                found["on_commit"],
            )
            self.commit_s, self.late_s = found["commit_s"], found["late_s"]
        self.spent_s = dict(zip(rounds, words["spent_s"], strict=True))
        self.unknown = {
            r: [(start, stop) for start, stop in pairs]
            for r, pairs in zip(rounds, words["unknown"], strict=True)
        }
        self.dropped_s: dict[str, float] = words["dropped_s"]
        self.tasks: dict[str, int] = words["tasks"]
        self.deaths: int = words["deaths"]
        self.last_ack: float = words["last_ack"]
        self.failures: list[str] = words["failures"]


def overlap_s(intervals: npt.NDArray[np.float64], periods: list[tuple[float, float]]) -> float:
    """Return how many seconds of the intervals lie in the periods, which are disjoint."""
    total = 0.0
    for start, stop in periods:
        inside = np.minimum(intervals[:, 1], stop) - np.maximum(intervals[:, 0], start)
        total += float(np.clip(inside, 0, None).sum())
    return total
