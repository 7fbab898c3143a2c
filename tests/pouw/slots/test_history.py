"""Everybody who has the same records has the same weights; a record that leads elsewhere is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from msgspec.structs import replace

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.history import Advance, Checkpoint, SlotHistory
from pocqueue.pouw.slots.task import LapSlot, Noise
from pocqueue.pouw.slots.weights import first_weights, weights_bytes
from pocqueue.pouw.wire.evidence import TwoMessages
from pocqueue.pouw.wire.hashes import merkle_root
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import SlotRecord
from tests.pouw.slots.support import KEYS, LANES, NETWORK, SECRET, TASK, decided, grow, message
from tests.pouw.support import certify

_SPAN = 20


def _grown(num_slots: int) -> tuple[SlotHistory, list[Advance]]:
    """Return a history in which miner 0 is in all slots, 1 in every second, and nobody in each fifth."""
    history, advances = SlotHistory(TASK, NETWORK), []
    for slot in range(num_slots):
        keys = [] if slot % 5 == 4 else KEYS[: 1 + slot % 2]
        advances.append(grow(history, *keys))
    return history, advances


def test_a_follower_has_the_same_weights() -> None:
    """From messages in any order, kept before or given beside the record."""
    history, advances = _grown(_SPAN)
    follower = SlotHistory(TASK, NETWORK)
    for number, advance in enumerate(advances):
        messages = advance.slot.messages[::-1]
        if number % 2:
            given = messages
        else:
            assert all(follower.keep(it) for it in messages)
            given = ()
        follower.add(follower.check(advance.slot.record, given))
    assert follower.theta == history.theta
    assert follower.theta != weights_bytes(first_weights(TASK))
    assert (follower.next_slot, follower.previous) == (_SPAN, advances[-1].certificate.id)


def test_a_private_tasks_slot_has_few_messages() -> None:
    """As many as are counted on; each slot begins with another lane, and a slot of more is refused."""
    private = replace(TASK, noise=Noise(1.0, 1.0, 2))
    history = SlotHistory(private, NETWORK)
    miners = set()
    for _ in range(3):
        advance = grow(history, *KEYS)
        assert advance.certificate.count == 2
        miners |= {one.iteration.miner for one in advance.slot.messages}
    assert len(miners) == 3
    full = SlotHistory(TASK, NETWORK)
    decision = decided(full, *(message(full, key) for key in KEYS))
    follower = SlotHistory(private, NETWORK)
    with pytest.raises(SlotError, match="count: slot 0 has 3 messages; allowed for its task: 2"):
        follower.check(decision.slot.record, decision.slot.messages)


def test_checking_changes_nothing() -> None:
    """So a node whose disk is full goes on where it was."""
    history = SlotHistory(TASK, NETWORK)
    decision = decided(history, message(history, KEYS[0]))
    first = history.check(decision.slot.record)
    again = history.check(decision.slot.record)
    assert first.slot == again.slot
    assert np.array_equal(first.weights, again.weights)
    assert history.next_slot == 0


def test_a_record_without_its_messages_waits() -> None:
    """It may be good."""
    history, other = SlotHistory(TASK, NETWORK), SlotHistory(TASK, NETWORK)
    record = decided(history, message(history, KEYS[0]), message(history, KEYS[1])).slot.record
    other.keep(message(history, KEYS[0]))
    with pytest.raises(SlotError, match="missing: 1 of slot 0's 2 messages"):
        other.check(record)


def _resigned(
    advance: Advance, messages: tuple[IterationWithMap, ...], **changed: object
) -> SlotRecord:
    """Return a record of these messages by a committee that breaks the rules."""
    ids = tuple(it.iteration.id for it in messages)
    certificate = replace(advance.certificate, root=merkle_root(ids), count=len(ids), **changed)
    return SlotRecord(certify(SECRET, certificate), ids)


def test_a_committee_cannot_say_what_does_not_follow() -> None:
    """Other weights, two messages of a lane, messages out of order or of another slot: all are refused."""
    history = SlotHistory(TASK, NETWORK)
    decision = decided(history, *(message(history, key) for key in KEYS))
    members = decision.slot.messages
    twice = (members[0], message(history, KEYS[0], seed=b"x"))
    other = (message(history, KEYS[0], previous=b"p" * 32),)
    for rule, messages, changed in (
        ("theta", members, {"theta": hashlib.sha256(b"").digest()}),
        ("theta", members[:2], {}),
        ("membership", members[::-1], {}),
        ("membership", twice, {}),
        ("membership", other, {}),
        ("network", members, {"network": b"N" * 32}),
        (
            "signature",
            (replace(members[0], iteration=replace(members[0].iteration, loss=1_000)),),
            {},
        ),
    ):
        with pytest.raises(SlotError) as caught:
            history.check(_resigned(decision, messages, **changed), messages)
        assert caught.value.rule == rule


def test_of_two_messages_of_a_lane_the_first_counts() -> None:
    """The same message again is nothing new either."""
    history = SlotHistory(TASK, NETWORK)
    first, second, third = (message(history, KEYS[0], seed=seed) for seed in (b"1", b"2", b"3"))
    assert [history.keep(it) for it in (first, first, second, second, third)] == [True] + [
        False
    ] * 4
    assert history.pending() == [first]


def test_messages_of_slots_to_come_are_kept_and_of_past_ones_are_not() -> None:
    """A follower may hear a message before the certificate that it follows."""
    history, follower = SlotHistory(TASK, NETWORK), SlotHistory(TASK, NETWORK)
    decision = decided(history, message(history, KEYS[0]))
    old = message(history, KEYS[1])
    history.add(history.check(decision.slot.record))
    early = message(history, KEYS[0])
    assert follower.keep(early)
    assert not follower.pending()
    follower.add(follower.check(decision.slot.record, decision.slot.messages))
    assert follower.pending() == [early]
    assert not follower.keep(old)
    assert not follower.keep(message(history, KEYS[1], slot=4))


def test_a_message_that_follows_another_certificate_is_not_taken() -> None:
    """Whatever weights it was computed at."""
    history = SlotHistory(TASK, NETWORK)
    assert history.keep(message(history, KEYS[0], previous=b"p" * 32))
    assert history.pending() == []


def test_a_lap_has_what_re_execution_needs() -> None:
    """Weights and map of each slot of the lap that the lane's message is in, up to the one in question."""
    history, advances = _grown(_SPAN)
    thetas = [weights_bytes(first_weights(TASK))]
    thetas += [weights_bytes(advance.weights) for advance in advances]
    due = []
    for slot in range(8, 14):
        mine = [it for it in advances[slot].slot.messages if it.iteration.order == LANES[1]]
        due.append(
            LapSlot(slot, thetas[slot], mine[0].map, 1) if mine else LapSlot(slot, b"", None, 1)
        )
    assert history.lap(13, LANES[1]) == tuple(due)
    assert sum(it.map is not None for it in due) == 2
    assert history.own(LANES[0]) == [
        advances[slot].slot.messages[0].iteration for slot in (16, 17, 18)
    ]


def test_a_lap_is_in_memory_for_a_while() -> None:
    """The open one and two before it."""
    history, _ = _grown(25)
    assert len(history.lap(24, LANES[0])) == 1
    assert len(history.lap(15, LANES[0])) == 8
    for slot in (7, 25):
        with pytest.raises(SlotError, match=f"history: the lap of slot {slot} is not in memory"):
            history.lap(slot, LANES[0])


def test_a_history_begins_at_a_checkpoint() -> None:
    """With the same weights from there on, and a lap that is whole."""
    history, advances = _grown(_SPAN)
    checkpoint = advances[15].checkpoint
    assert checkpoint is not None
    assert checkpoint.slot == 16
    later = SlotHistory(TASK, NETWORK, checkpoint)
    for advance in advances[16:]:
        later.add(later.check(advance.slot.record, advance.slot.messages))
    assert later.theta == history.theta
    assert later.lap(18, LANES[0]) == history.lap(18, LANES[0])
    assert advances[14].checkpoint is None


def test_a_forged_checkpoint_is_refused() -> None:
    """Weights that its certificate does not name, another task's, or a start within a lap."""
    _, advances = _grown(9)
    good, within = advances[7].checkpoint, advances[8]
    assert good is not None
    changed = bytearray(good.theta)
    changed[5] ^= 1
    for wrong in (
        Checkpoint(good.signed, bytes(changed)),
        Checkpoint(good.signed, good.theta[:-4]),
        Checkpoint(good.signed, b""),
        Checkpoint(within.slot.record.signed, weights_bytes(within.weights)),
    ):
        with pytest.raises(SlotError, match="theta: "):
            SlotHistory(TASK, NETWORK, wrong)
    with pytest.raises(SlotError, match="theta: slot 8 does not begin a lap of task"):
        SlotHistory(replace(TASK, id=b"T" * 32), NETWORK, good)


def test_a_second_message_of_a_lane_is_noticed() -> None:
    """Beside one that waits, beside one that is certified, and where the certified one comes behind it."""
    history, _ = _grown(3)
    first, second = message(history, KEYS[0]), message(history, KEYS[0], loss=7)
    assert history.keep(first)
    assert not history.keep(first)
    assert not history.contradictions
    assert not history.keep(second)
    assert history.contradictions.pop() == TwoMessages(first.iteration, second.iteration)

    grow(history, KEYS[0])
    certified = history.message(3, LANES[0])
    assert certified == first.iteration
    assert not history.keep(second)
    assert history.contradictions.pop() == TwoMessages(certified, second.iteration)
    assert not history.keep(first)

    follower = SlotHistory(TASK, NETWORK)
    other = message(follower, KEYS[0], loss=7)
    assert follower.keep(other)
    advance = decided(SlotHistory(TASK, NETWORK), message(follower, KEYS[0]))
    follower.add(follower.check(advance.slot.record, advance.slot.messages))
    [found] = follower.contradictions
    assert {found.first.id, found.second.id} == {other.iteration.id, *advance.slot.record.ids}


def test_what_is_noticed_is_not_kept_for_ever() -> None:
    """Whoever signs thousands of messages fills no memory."""
    history = SlotHistory(TASK, NETWORK)
    history.keep(message(history, KEYS[0]))
    for loss in range(100):
        history.keep(message(history, KEYS[0], loss=1000 + loss))
    assert len(history.contradictions) == 64
