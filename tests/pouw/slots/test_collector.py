"""A slot is closed when its lanes are there, or when waiting for them is over; once."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from pocqueue.pouw.slots import collector as collector_module
from pocqueue.pouw.slots.certificate import verify_link, verify_signed
from pocqueue.pouw.slots.collector import Anchor
from pocqueue.pouw.slots.history import Advance, Lane, SlotHistory
from tests.pouw.slots.support import (
    ANCHOR,
    COMMITTEE,
    KEYS,
    LANES,
    NETWORK,
    TASK,
    Alone,
    collector,
    message,
)


def _closed_after(
    committee: Alone, start_ms: int, lanes: Collection[Lane] = LANES
) -> tuple[int, Advance]:
    """Return after how many milliseconds from `start_ms` the slot closes, by steps of 10, and how."""
    for elapsed_ms in range(0, 600_000, 10):
        if decision := committee.tick(start_ms + elapsed_ms, lanes, ANCHOR):
            return elapsed_ms, decision
    raise AssertionError("the slot is not closed in ten minutes")


def _miners(decision: Advance) -> list[Lane]:
    return [it.iteration.order for it in decision.slot.messages]


def test_a_slot_closes_when_all_its_lanes_are_there() -> None:
    """At once, with a record that everybody takes and messages by their lanes."""
    history = SlotHistory(TASK, NETWORK)
    committee = collector(history)
    for key in reversed(KEYS):
        assert committee.tick(1_000, LANES, ANCHOR) is None
        assert committee.add(message(history, key), 1_000)
    elapsed_ms, decision = _closed_after(committee, 1_000)
    assert (elapsed_ms, _miners(decision)) == (0, LANES)
    record = decision.slot.record
    verify_link(record.signed.certificate, record.ids, TASK.id, None)
    verify_signed(record.signed, COMMITTEE)
    certificate = decision.certificate
    assert (certificate.anchor, certificate.anchor_height, certificate.time_ms) == (*ANCHOR, 1_000)


def test_a_decision_stands_until_the_history_has_it() -> None:
    """Though another message came, and time and anchor went on: a slot has one certificate."""
    history = SlotHistory(TASK, NETWORK)
    committee = collector(history)
    committee.add(message(history, KEYS[0]), 0)
    first = committee.tick(0, LANES[:1], ANCHOR)
    committee.add(message(history, KEYS[1]), 5)
    assert first is not None
    assert committee.tick(900, LANES, Anchor(b"b" * 32, 9)) is first
    history.add(first)
    assert committee.tick(900, LANES, ANCHOR) is None


def test_a_slot_is_not_shorter_than_the_network_says() -> None:
    """So that machines stay cool."""
    history = SlotHistory(TASK, NETWORK)
    committee = collector(history, slot_ms=250)
    committee.add(message(history, KEYS[0]), 0)
    assert _closed_after(committee, 0, LANES[:1])[0] == 250


def test_a_slot_of_nobody_is_closed_empty() -> None:
    """After five seconds; its weights are those before it."""
    history = SlotHistory(TASK, NETWORK)
    elapsed_ms, decision = _closed_after(collector(history), 70_000, ())
    assert (elapsed_ms, decision.slot.messages) == (5_000, ())
    history.add(history.check(decision.slot.record))
    assert history.next_slot == 1


def test_slow_lanes_get_longer_and_longer() -> None:
    """Else a slot would always be over before their first message; eight slots, or until a message comes."""
    history = SlotHistory(TASK, NETWORK)
    committee, now_ms, lengths = collector(history), 0, []
    for _ in range(10):
        elapsed_ms, decision = _closed_after(committee, now_ms)
        now_ms += elapsed_ms
        lengths.append(elapsed_ms)
        history.add(decision)
    assert lengths == [5_000, 10_000, 20_000, 40_000, 80_000, *[120_000] * 3, 5_000, 5_000]
    late = message(history, KEYS[0])
    history.add(_closed_after(committee, now_ms)[1])
    now_ms += 6_000
    assert not committee.add(late, now_ms)
    elapsed_ms, decision = _closed_after(committee, now_ms)
    assert elapsed_ms == 5_000
    history.add(decision)
    committee.tick(now_ms + 5_000, LANES, ANCHOR)
    committee.add(message(history, KEYS[0]), now_ms + 14_000)
    assert committee.tick(now_ms + 14_000, LANES, ANCHOR) is not None


def test_a_lane_that_is_away_is_waited_for_a_while() -> None:
    """300 ms where the others are quick, for eight slots; a message of it, even late, and it is awaited again."""
    history = SlotHistory(TASK, NETWORK)
    committee, now_ms, lengths = collector(history), 0, []
    for slot in range(13):
        committee.tick(now_ms, LANES[:2], ANCHOR)
        committee.add(message(history, KEYS[0]), now_ms + 20)
        late = message(history, KEYS[1])
        elapsed_ms, decision = _closed_after(committee, now_ms + 20, LANES[:2])
        assert _miners(decision) == LANES[:1]
        lengths.append(20 + elapsed_ms)
        history.add(decision)
        now_ms += 1_000
        if slot == 10:
            assert not committee.add(late, now_ms)
    assert lengths == [300] * 8 + [20] * 3 + [300, 300]


def test_one_slow_lane_does_not_hold_the_others_up() -> None:
    """How long is waited goes by half of the messages: twice what those took."""
    history = SlotHistory(TASK, NETWORK)
    committee, now_ms = collector(history), 0
    for _ in range(10):
        committee.tick(now_ms, LANES, ANCHOR)
        for key in KEYS[:2]:
            committee.add(message(history, key), now_ms + 200)
        slow = message(history, KEYS[2])
        elapsed_ms, decision = _closed_after(committee, now_ms + 200)
        assert 200 + elapsed_ms <= 5_000
        history.add(decision)
        now_ms += 9_000
        committee.add(slow, now_ms)
    assert 200 + elapsed_ms == 400


def test_a_slower_half_is_waited_for() -> None:
    """Also where its first message is late: that says how long it takes."""
    history = SlotHistory(TASK, NETWORK)
    committee, now_ms, members = collector(history), 0, []
    for _ in range(6):
        committee.tick(now_ms, LANES[:2], ANCHOR)
        quick, slow = (message(history, key) for key in KEYS[:2])
        committee.add(quick, now_ms + 10)
        decision = committee.tick(now_ms + 10, LANES[:2], ANCHOR)
        for at_ms in range(now_ms + 20, now_ms + 500, 10):
            decision = decision or committee.tick(at_ms, LANES[:2], ANCHOR)
        if decision is None:
            committee.add(slow, now_ms + 500)
            decision = committee.tick(now_ms + 500, LANES[:2], ANCHOR)
            assert decision is not None
            history.add(decision)
        else:
            history.add(decision)
            committee.add(slow, now_ms + 500)
        members.append(len(decision.slot.messages))
        now_ms += 2_000
    assert members[-3:] == [2, 2, 2]


def test_an_anchor_does_not_go_back() -> None:
    """One that is not higher leaves the one before; nor does time, if the clock is set back."""
    history = SlotHistory(TASK, NETWORK)
    committee, seen = collector(history), []
    anchors = [
        Anchor(b"a" * 32, 3),
        Anchor(b"x" * 32, 3),
        Anchor(b"y" * 32, 2),
        Anchor(b"b" * 32, 7),
    ]
    for now_ms, anchor in zip((9_000, 9_500, 4_000, 4_100), anchors, strict=True):
        committee.add(message(history, KEYS[0]), now_ms)
        decision = committee.tick(now_ms, LANES[:1], anchor)
        assert decision is not None
        history.add(history.check(decision.slot.record))
        certificate = decision.certificate
        seen.append((certificate.anchor[:1], certificate.anchor_height, certificate.time_ms))
    assert seen == [(b"a", 3, 9_000), (b"a", 3, 9_500), (b"a", 3, 9_500), (b"b", 7, 9_500)]


def test_a_clock_set_back_does_not_stop_a_slot() -> None:
    """It begins anew."""
    history = SlotHistory(TASK, NETWORK)
    committee = collector(history, slot_ms=250)
    committee.add(message(history, KEYS[0]), 3_600_000)
    assert committee.tick(3_600_100, LANES[:1], ANCHOR) is None
    assert _closed_after(committee, 0, LANES[:1])[0] == 250


def test_a_slot_follows_on_the_newest_of_all_tasks() -> None:
    """Turns are counted over all of them; after a clock that was ahead was set back, time goes on from there."""
    other = msgspec.structs.replace(TASK, id=b"o" * 32)
    history, before = SlotHistory(TASK, NETWORK), SlotHistory(other, NETWORK)
    committee = collector(history)
    earlier = collector(before)
    assert earlier.tick(0, [], ANCHOR) is None
    first = earlier.tick(7000, [], ANCHOR)
    assert first is not None
    assert committee.tick(0, [], ANCHOR, first.certificate) is None
    decision = committee.tick(5000, [], ANCHOR, first.certificate)
    assert decision is not None
    found = decision.certificate
    assert (found.turn, found.parent, found.time_ms) == (1, first.certificate.id, 7000)


def test_a_slot_fits_into_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes that there is no room for are left out, others in each slot."""
    history, left_out = SlotHistory(TASK, NETWORK), set()
    # Two messages and their small maps.
    monkeypatch.setattr(collector_module, "MAX_SLOT_BYTES", 2 * 512 + 100)
    for _ in range(3):
        committee = collector(history)
        for key in KEYS:
            committee.add(message(history, key), 0)
        decision = committee.tick(0, LANES, ANCHOR)
        assert decision is not None
        lanes = [it.iteration.order for it in decision.slot.messages]
        assert len(lanes) == 2
        assert lanes == sorted(lanes)
        left_out |= set(LANES) - set(lanes)
        history.add(history.check(decision.slot.record))
    assert left_out == set(LANES)
