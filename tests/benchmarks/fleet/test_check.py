"""The judge of a simulated fleet finds what it is there to find: each fault is made here on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet.check import audit, compare
from benchmarks.fleet.ledger import PERIOD, Books, Ledger, distance, valid_indices, valid_of_runs
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import BatchCommit, Outcome
from pocqueue.rounds.store import Keys
from tests.support.factories import make_spec
from tests.support.rounds import assign

SIZE = 100


class Fleet:
    """One round of which three batches of a range of four are committed, and its ledger."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend = backend
        self.path = folder / "ledger.npz"
        self.ledger = Ledger()
        spec = make_spec(node_id=2, node_count=5)
        self.round_id = backend.store.create(spec)
        self.out = assign(backend.store, self.round_id, 4 * SIZE)
        for start in range(0, 3 * SIZE, SIZE):
            self.commit(start, start + SIZE)
            self.ledger.committed[self.round_id].extend((start, start + SIZE))

    def commit(self, start: int, stop: int) -> None:
        """Commit a batch as a simulated GPU does."""
        found = valid_indices(start, stop)
        valid = Proofs.of((2 + 5 * index, distance(index)) for index in found)
        result = self.backend.store.commit_batch(
            BatchCommit(self.round_id, self.out.range_id, start, stop, valid)
        )
        assert result.outcome is Outcome.COMMITTED

    def key(self, part: str) -> str:
        return Keys.of_round(self.round_id, part)

    def judge(self) -> dict[str, Any]:
        """Return what the comparison found, without what is no fault."""
        self.ledger.save(self.path)
        found = compare(self.backend, [self.round_id], Books(self.path))
        return {name: found[name] for name in ("lost", "twice", "foreign", "wrong")}


@pytest.fixture
def fleet(backend: Backend, tmp_path: Path) -> Fleet:
    """A fleet without a fault."""
    return Fleet(backend, tmp_path)


def test_a_right_store_is_found_right(fleet: Fleet) -> None:
    """Also with a batch whose GPU died before it was told, counted or not."""
    right = {"lost": 0, "twice": 0, "foreign": 0, "wrong": []}
    assert fleet.judge() == right
    assert audit(fleet.backend, [fleet.round_id]) == []
    fleet.ledger.unknown[fleet.round_id].append((3 * SIZE, 4 * SIZE))
    assert fleet.judge() == right
    fleet.commit(3 * SIZE, 4 * SIZE)
    assert fleet.judge() == right
    assert audit(fleet.backend, [fleet.round_id]) == []


def test_a_lost_entry_is_found(fleet: Fleet) -> None:
    """All its nonces are missed, and the counter no longer fits."""
    client = fleet.backend.client
    entries: Any = client.xrange(fleet.key("proofs"), count=1)
    client.xdel(fleet.key("proofs"), entries[0][0])
    found = fleet.judge()
    assert found["lost"] == len(valid_indices(0, SIZE))
    assert len(found["wrong"]) == 1


def test_a_repeated_and_a_foreign_entry_are_found(fleet: Fleet) -> None:
    """One nonce that is there twice, one of an index that nobody committed, a wrong distance."""
    (index, *_) = valid_indices(0, SIZE)
    fields: dict[Any, Any] = {"values": "[0.25, 1.0]", "queue": "gpu0"}
    fields["nonces"] = f"[{2 + 5 * index}, {2 + 5 * 399}]"
    fleet.backend.client.xadd(fleet.key("proofs"), fields)
    found = fleet.judge()
    assert (found["lost"], found["twice"], found["foreign"]) == (0, 1, 1)
    assert "distances in the stream are not those of their nonces" in found["wrong"][0]


def test_a_batch_that_was_told_to_count_and_does_not_is_found(fleet: Fleet) -> None:
    """The ledger is what the GPUs saw."""
    fleet.ledger.committed[fleet.round_id].extend((3 * SIZE, 4 * SIZE))
    assert "what counts is not what was committed" in fleet.judge()["wrong"][0]


def test_two_batches_that_both_count_are_found(fleet: Fleet) -> None:
    """Though the coverage cannot show it."""
    fleet.ledger.committed[fleet.round_id].extend((SIZE, 2 * SIZE))
    assert "two batches that were both told to count overlap" in fleet.judge()["wrong"][0]


@pytest.mark.parametrize("fault", ["gap", "overlap", "checked"])
def test_the_audit_finds_indices_that_nobody_has(fleet: Fleet, fault: str) -> None:
    """A range that vanished, one that is out and counted, a counter that is off."""
    client = fleet.backend.client
    if fault == "gap":
        client.hdel(fleet.key("ranges"), "1")
    elif fault == "overlap":
        client.rpush(fleet.key("returned"), "250 400 0")
    else:
        client.hincrby(fleet.key("round"), "checked", 1)
    assert len(audit(fleet.backend, [fleet.round_id])) == 1


def test_valid_indices_are_a_tenth_and_the_same_however_they_are_asked_for() -> None:
    """Batch by batch or run by run, across the end of a period too."""
    start, stop = PERIOD - 1000, PERIOD + 1000
    by_batch = [i for at in range(start, stop, 40) for i in valid_indices(at, at + 40)]
    assert by_batch == valid_of_runs([(start, PERIOD - 10), (PERIOD - 10, stop)]).tolist()
    assert len(set(by_batch)) == len(by_batch)
    assert 0.08 < len(by_batch) / 2000 < 0.12
    assert all(0 <= distance(index) < 1.36 for index in by_batch)
