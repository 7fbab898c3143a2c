"""What is written is there after kill -9, whole; and nothing is written that contradicts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import NodeDataError, SlotError
from pocqueue.pouw.slots.history import Advance, SlotHistory
from pocqueue.pouw.slots.miner import LaneMiner
from pocqueue.pouw.slots.slot_store import SLOTS_NAME, SlotStore
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import SignedCertificate, SlotRecord
from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE, Said
from tests.pouw.committee.support import Group
from tests.pouw.slots.support import (
    ANCHOR,
    KEYS,
    LANES,
    NETWORK,
    SECRET,
    TASK,
    collector,
    decided,
    grow,
    made_up,
    message,
)
from tests.pouw.support import certify


def _written(store: SlotStore, num_slots: int) -> tuple[SlotHistory, list[Advance]]:
    """Return a history that is in the store: miner 0 in all slots, 1 in every second, nobody in each fifth."""
    history, advances = SlotHistory(TASK, NETWORK), []
    for slot in range(num_slots):
        advances.append(grow(history, *([] if slot % 5 == 4 else KEYS[: 1 + slot % 2])))
        store.write(advances[-1])
    return history, advances


def test_a_history_is_as_it_was(tmp_path: Path) -> None:
    """With its weights, its next slot and its open lap, from a file opened anew."""
    with SlotStore(tmp_path, NETWORK) as store:
        history, advances = _written(store, 21)
    with SlotStore(tmp_path, NETWORK) as store:
        again = store.history(TASK)
        assert (again.next_slot, again.previous) == (21, history.previous)
        assert again.theta == history.theta
        assert again.lap(20, LANES[0]) == history.lap(20, LANES[0])
        assert store.slots(TASK.id, 3, 5) == [it.slot for it in advances[3:8]]
        assert (store.num_slots(TASK.id), store.num_slots(b"T" * 32)) == (21, 0)
        assert store.newest() == history.signed
        assert store.last(3) == [it.slot.record for it in advances[:-4:-1]]
        parts = [number for _, who, number in store.parts(TASK.id) if who == LANES[0][0]]
        assert sum(parts) == 17
        assert store.entries(TASK.id, 2) == [
            message.iteration.entries for it in advances[:2] for message in it.slot.messages
        ]


def test_a_lap_of_long_ago_is_there_too() -> None:
    """It is counted again from the weights that are kept every 64 slots."""
    with SlotStore(None, NETWORK) as store:
        due = {}
        history = SlotHistory(TASK, NETWORK)
        for slot in range(100):
            store.write(grow(history, *KEYS[: slot % 3]))
            if slot in (5, 70, 98):
                due[slot] = history.lap(slot, LANES[0])
        for slot, lap in due.items():
            assert store.history(TASK, slot).lap(slot, LANES[0]) == lap
        kept = [
            slot
            for slot in range(1, 101)
            if (found := store.checkpoint(TASK.id, slot)) is not None and found.slot == slot
        ]
        assert kept == [64, 80, 88, 96]
        with pytest.raises(SlotError, match=r"history: slot 100 of task .* is not here"):
            store.history(TASK, 100)


def test_a_task_of_which_nothing_is_here_begins_anew() -> None:
    """At slot 0, as does one that is unknown to everybody."""
    with SlotStore(None, NETWORK) as store:
        assert store.history(TASK).next_slot == 0
        assert store.own.sent(TASK.id, LANES[0]) is None
        assert store.parts(TASK.id) == []
        assert store.newest() is None


def test_a_second_record_of_a_slot_is_refused() -> None:
    """The same one again is nothing; another one says that the committee contradicts itself."""
    with SlotStore(None, NETWORK) as store:
        history = SlotHistory(TASK, NETWORK)
        first = decided(history, message(history, KEYS[0]))
        other = decided(history, message(history, KEYS[1]))
        store.write(first)
        store.write(first)
        with pytest.raises(NodeDataError, match="has another record of slot 0 of task"):
            store.write(other)
        assert store.slots(TASK.id, 0, 9) == [first.slot]


def test_what_is_pruned_leaves_records_and_work() -> None:
    """Maps and weights are gone, so the history begins behind them or is asked from others."""
    with SlotStore(None, NETWORK) as store:
        history, advances = _written(store, 21)
        work = store.parts(TASK.id)
        store.prune(TASK.id, 12)
        assert store.slots(TASK.id, 11, 5) == []
        assert store.slots(TASK.id, 12, 2) == [it.slot for it in advances[12:14]]
        assert store.num_slots(TASK.id) == 21
        assert store.parts(TASK.id) == work
        assert store.history(TASK).theta == history.theta
        with pytest.raises(SlotError, match="history: slot 9"):
            store.history(TASK, 9)


def test_messages_and_records_of_a_filler_are_pruned_as_well() -> None:
    """Nobody is paid by them; of one that is over the newest record stays, so nobody begins it anew."""
    with SlotStore(None, NETWORK) as store:
        history, advances = _written(store, 21)
        store.prune(TASK.id, 12, has_pay=False)
        left = sum(
            one.parts for it in advances[12:] for one in (m.iteration for m in it.slot.messages)
        )
        assert sum(parts for _, _, parts in store.parts(TASK.id)) == left
        assert store.slots(TASK.id, 11, 5) == []
        assert store.num_slots(TASK.id) == 21
        assert store.history(TASK).theta == history.theta
        store.prune(TASK.id, 22, has_pay=False)
        with store.transaction() as db:
            [num] = db.execute("SELECT count(*) FROM record").fetchone()
        assert (num, store.num_slots(TASK.id)) == (1, 21)


def test_a_history_goes_on_from_another_nodes_weights() -> None:
    """And from slots that it asked for."""
    with SlotStore(None, NETWORK) as store, SlotStore(None, NETWORK) as newcomer:
        history, _ = _written(store, 21)
        checkpoint = store.checkpoint(TASK.id, 18)
        assert checkpoint is not None
        newcomer.write_checkpoint(checkpoint)
        follower = newcomer.history(TASK)
        assert follower.next_slot == 16
        for slot in store.slots(TASK.id, 16, 99):
            advance = follower.check(slot.record, slot.messages)
            newcomer.write(advance)
            follower.add(advance)
        assert follower.theta == newcomer.history(TASK).theta == history.theta


def _sent(
    history: SlotHistory, sent: IterationWithMap | None = None, key: SigningKey = KEYS[0]
) -> IterationWithMap:
    miner = LaneMiner(history, key, sent=sent)
    work = miner.work()
    assert work is not None
    return miner.message(work, made_up(work.theta, b"seed"), 1, None, lambda _: None)


def test_a_lane_finds_what_it_sent(tmp_path: Path) -> None:
    """The newest alone."""
    history = SlotHistory(TASK, NETWORK)
    with SlotStore(tmp_path, NETWORK) as store:
        store.own.write_sent(first := _sent(history))
        grow(history, KEYS[1])
        store.own.write_sent(second := _sent(history, first))
    with SlotStore(tmp_path, NETWORK) as store:
        assert store.own.sent(TASK.id, LANES[0]) == second
        assert store.own.sent(TASK.id, LANES[1]) is None
        assert store.own.sent(b"T" * 32, LANES[0]) is None


def test_what_a_member_said_is_there_after_a_restart(tmp_path: Path) -> None:
    """In the order in which it was said; of turns that are over it is forgotten."""
    group = Group(4)
    first: list[Said] = [group.proposal(), group.vote(0, PREVOTE)]
    second: list[Said] = [group.vote(0, PRECOMMIT), group.vote(0, PREVOTE, None, 1)]
    with SlotStore(tmp_path, NETWORK) as store:
        assert store.own.newest_turn == -1
        store.own.write_said(7, first)
        store.own.write_said(8, second)
        store.own.write_said(7, second)
        assert store.own.newest_turn == 8
    with SlotStore(tmp_path, NETWORK) as store:
        assert store.own.newest_turn == 8
        assert store.own.said(7) == [*first, *second]
        assert store.own.said(8) == second
        store.own.forget_said(8)
        assert (store.own.said(7), store.own.said(8)) == ([], second)


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    """It is left as it is."""
    SlotStore(tmp_path, NETWORK).close()
    with pytest.raises(NodeDataError, match="give each network a folder of its own"):
        SlotStore(tmp_path, b"N" * 32)
    SlotStore(tmp_path, NETWORK).close()


def test_a_damaged_file_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    """A history whose weights do not follow is not gone on with."""
    with SlotStore(tmp_path, NETWORK) as store:
        _written(store, 5)
        with store.transaction() as db:
            db.execute("UPDATE map SET map = x'04' WHERE slot = 2")
        what = "is damaged: map: its hash is another one.* Put a copy of it in its place; a node that is no supervisor"
        with pytest.raises(NodeDataError, match=what):
            store.history(TASK)
    (tmp_path / SLOTS_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(NodeDataError, match="not a database"):
        SlotStore(tmp_path, NETWORK)


_CHILD = """
import sys
from pathlib import Path
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.slot_store import SlotStore
from tests.pouw.slots.support import KEYS, NETWORK, TASK, grow

with SlotStore(Path(sys.argv[1]), NETWORK) as store:
    history = store.history(TASK)
    while True:
        advance = grow(history, *KEYS)
        store.write(advance)
        print(advance.certificate.slot, advance.certificate.id.hex(), flush=True)
"""


def test_what_was_said_is_there_after_kill_9(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves every slot that it told of, whole."""
    said: dict[int, str] = {}
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                slot, certificate = line.split()
                said[int(slot)] = certificate
                if int(slot) % 13 == 12:
                    child.send_signal(signal.SIGKILL)
                    break
            for line in child.stdout:  # what it said before it was dead
                if line.endswith("\n"):
                    said[int(line.split()[0])] = line.split()[1]
        with SlotStore(tmp_path, NETWORK) as store:
            records = [slot.record for slot in store.slots(TASK.id, 0, 999)]
            found = {it.signed.certificate.slot: it.signed.certificate.id.hex() for it in records}
            assert found.items() >= said.items()
            assert store.history(TASK).next_slot == len(found) == max(found) + 1


def test_slots_end_where_an_answer_is_full() -> None:
    """One is always given."""
    with SlotStore(None, NETWORK) as store:
        _, advances = _written(store, 8)
        size = len(encode(advances[0].slot))
        assert store.slots(TASK.id, 0, 8, 1) == [advances[0].slot]
        assert len(store.slots(TASK.id, 0, 8, 3 * size)) in range(2, 4)
        assert len(store.slots(TASK.id, 0, 8, 100 * size)) == 8


def test_the_slots_of_another_committee_are_forgotten() -> None:
    """From the first one of its epoch on, as if they had never been; those of epochs before stay."""
    with SlotStore(None, NETWORK) as store:
        history, advances = _written(store, 10)
        store.own.write_sent(_sent(history, key=KEYS[2]))
        for slot in range(10, 21):
            certificate = decided(history, message(history, KEYS[0])).certificate
            signed = certify(SECRET, replace(certificate, epoch=1))
            ids = (history.pending()[0].iteration.id,)
            advances.append(history.check(SlotRecord(signed, ids)))
            assert advances[-1].certificate.slot == slot
            store.write(advances[-1])
            history.add(advances[-1])
        assert store.forget(2) == []
        assert store.forget(1) == [TASK.id]
        assert store.num_slots(TASK.id) == 10
        assert store.slots(TASK.id, 0, 99) == [it.slot for it in advances[:10]]
        assert store.history(TASK).previous == advances[9].certificate.id
        assert store.newest() == advances[9].slot.record.signed
        # It was of the first slot that is forgotten, and names none of them.
        assert store.own.sent(TASK.id, LANES[2]) is not None
        assert store.forget(0) == [TASK.id]
        assert store.newest() is None
        assert store.tasks() == {}
        assert store.own.sent(TASK.id, LANES[2]) is None


def test_slots_that_are_missing_are_put_in_between_without_their_maps() -> None:
    """Then it is known who worked in all of them; the newest one stays the newest, and nobody has the maps."""
    with SlotStore(None, NETWORK) as store:
        _, advances = _written(store, 12)
        assert store.gap(TASK.id) is store.gap(b"T" * 32) is None
        worked = store.parts(TASK.id)
        store.prune(TASK.id, 9)
        assert store.slots(TASK.id, 3, 99) == []
        bare = store.slots(TASK.id, 3, 6, is_bare=True)
    assert [one.record for one in bare] == [one.slot.record for one in advances[3:9]]
    assert {one.map for slot in bare for one in slot.messages} == {b""}
    with SlotStore(None, NETWORK) as store:
        for advance in (*advances[:3], *advances[9:]):
            store.write(advance)
        assert store.gap(TASK.id) == (3, 9, advances[8].certificate.id)
        store.write_bare(bare[2:])
        assert store.gap(TASK.id) == (3, 5, advances[4].certificate.id)
        store.write_bare(bare[:2])
        assert store.gap(TASK.id) is None
        assert store.parts(TASK.id) == worked
        assert store.newest() == advances[-1].slot.record.signed
        newest = [one.signed.certificate.slot for one in store.last(4)]
        assert newest == [11, 10, 9, 2]
        assert store.slots(TASK.id, 3, 99) == []
        assert len(store.slots(TASK.id, 0, 99, is_bare=True)) == 12


def test_the_turn_before_a_slot_is_found() -> None:
    """By the certificate that the slot's names, also of another task; before the first turn there is none."""
    with SlotStore(None, NETWORK) as store:
        history, before = SlotHistory(TASK, NETWORK), list[SignedCertificate | None]()
        for _ in range(3):
            before.append(history.signed)
            committee = collector(history)
            assert committee.tick(0, [], ANCHOR, history.parent) is None
            advance = committee.tick(5000, [], ANCHOR, history.parent)
            assert advance is not None
            store.write(advance)
            history.add(advance)
        assert [store.before(TASK.id, slot) for slot in range(3)] == before
        with pytest.raises(SlotError, match="missing: slot 3 of task"):
            store.before(TASK.id, 3)
