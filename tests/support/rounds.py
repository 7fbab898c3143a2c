"""What several tests of the store do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.compute import Computation, Computed
from pocqueue.rounds.connection import OnRedis
from pocqueue.rounds.records import (
    AssignedRange,
    Assignment,
    BatchCommit,
    CommitResult,
    RoundStatus,
)
from pocqueue.rounds.store import Keys, RoundStore
from tests.support.factories import make_spec


def compute(backend: Backend, nonces: Sequence[int], **how: Any) -> Computed:
    """Start a `Computation`, as `Computation.start`, and wait for it; whatever ends this ends it."""
    computation = Computation.start(backend, nonces, **how)
    try:
        return computation.wait()
    finally:
        computation.stop()


def pass_deadline(backend: Backend, round_id: str) -> None:
    """Let the deadline of a round be over without waiting for it."""
    key = Keys.of_round(round_id, "round")
    backend.client.hset(key, "deadline_ms", str(redis_ms(backend) - 1))


def assign(
    store: RoundStore, round_id: str, num_nonces: int, queue: str = "gpu0", worker: str = "w0"
) -> AssignedRange:
    """Take a range that has to be there."""
    out = assign_range(store, round_id, queue, worker, num_nonces)
    assert out is not None
    return out


def assign_range(
    store: RoundStore,
    round_id: str,
    queue: str,
    worker: str,
    num_nonces: int,
    *,
    vtime_floor: float = 0.0,
    vtime_per_nonce: float = 0.0,
) -> AssignedRange | None:
    """Take up to so many nonce indices for a GPU; None if the round has none left."""
    wanted = Assignment(round_id, queue, worker, num_nonces, vtime_floor, vtime_per_nonce)
    return store.assign_ranges([wanted])[0]


def commit(
    store: RoundStore,
    round_id: str,
    range_id: int,
    start: int,
    stop: int,
    valid: Sequence[int] = (),
    nonfinite: int = 0,
) -> CommitResult:
    """Commit a batch whose valid nonces, equal to their indices, have the distance 0.5."""
    found = Proofs(list(valid), [0.5] * len(valid))
    return store.commit_batch(BatchCommit(round_id, range_id, start, stop, found, nonfinite))


def round_with_proofs(backend: Backend, num_valid: int, **changes: Any) -> str:
    """Make a round of `make_spec` with one valid nonce in each of so many batches."""
    round_id = backend.store.create(make_spec(**changes))
    assign(backend.store, round_id, 1000)
    find(backend, round_id, 0, num_valid)
    return round_id


def find(backend: Backend, round_id: str, first: int, num: int) -> None:
    """Commit so many batches of one nonce each, all of them valid, from an index on."""
    for index in range(first, first + num):
        commit(backend.store, round_id, 1, index, index + 1, [index])


def proofs(store: RoundStore, round_id: str) -> list[int]:
    """Return every nonce in the stream of a round, in its order."""
    entries = store.iter_proofs(store.status(round_id))
    return [nonce for entry in entries for nonce in entry.proofs.nonces]


def check_books(store: RoundStore, round_id: str) -> RoundStatus:
    """Check that counters, stream and coverage of a round agree; return it."""
    status = store.status(round_id)
    found = proofs(store, round_id)
    runs = store.coverage(round_id)
    assert status.valid == len(found)
    assert len(set(found)) == len(found), "a nonce is there twice"
    assert status.checked == sum(stop - start for start, stop in runs)
    assert all(before[1] < after[0] for before, after in pairwise(runs)), runs
    ends = store.client.hgetall(Keys.of_round(round_id, "cover_stops"))
    assert sorted((int(start), int(stop)) for stop, start in ends.items()) == runs
    assert all(any(start <= nonce < stop for start, stop in runs) for nonce in found)
    return status


def keys_of(backend: Backend, round_id: str) -> dict[str, int]:
    """Return the keys of a round, each with its time to live in ms; -1: for ever."""
    found = backend.client.scan_iter(match=Keys.of_round(round_id, "*"))
    return {str(key): int(backend.client.pttl(key)) for key in found}


def redis_ms(part: OnRedis | Backend) -> int:
    """Return Redis's clock, in milliseconds."""
    seconds, microseconds = part.client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
