"""Whose slots a node takes, and what they do to it."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.candidate import mine_founding
from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.records import SUPERVISOR
from pocqueue.pouw.errors import PeerFault, SlotError
from pocqueue.pouw.flow.core import now_ms
from pocqueue.pouw.flow.histories import MAX_HISTORIES
from pocqueue.pouw.slots.history import KEPT_LAPS, Advance
from pocqueue.pouw.slots.slot_store import KEPT_MAPS
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.slots import SlotRecord
from pocqueue.pouw.wire.transactions import Faucet
from tests.pouw.blocks import GENESIS, START_MS, founding, sent, trained, waiting
from tests.pouw.flow.parts import PEER, Parts, Signed, follow, forged, parts, succeeded
from tests.pouw.slots.support import message
from tests.pouw.support import key, ticket


async def _broken(node: Parts, record: SlotRecord, *, is_asked: bool = False) -> str:
    with pytest.raises(SlotError) as caught:
        await node.slots.take(record, is_asked=is_asked)
    return caught.value.rule


async def test_nothing_is_made_of_what_nobody_signed() -> None:
    """Neither of a forged record, nor of a good one of a task whose order is not here; the sender of the second is asked."""
    async with parts() as node:
        await node.blocks.settle_anchor(node.core.chain.tip.id, node.core.chain.tip.height)
        for generation in range(2):
            record = forged(Signed(GENESIS.filler_task(generation)).certified(slot=7))
            with pytest.raises(PeerFault, match="a record: signature"):
                await node.slots.receive_record(PEER, encode(record))
        unknown = Signed().certified(task=b"o" * 32, previous=b"o" * 32)
        assert not await node.slots.receive_record(PEER, encode(unknown))
        assert node.missing == [PEER]
        assert await _broken(node, unknown) == "missing"
        assert [node.slots._histories.get(GENESIS.filler_task(at)) for at in range(2)] == [None] * 2
        assert node.store.tasks() == {}


async def test_what_takes_all_messages_of_a_slot_holds_up_no_links_if_they_are_many() -> None:
    """It is done in the slots' thread then, also of a small model."""
    async with parts() as node:
        history, used = Signed().history, list[bool]()
        for lane in range(17):
            loop = await node.slots.with_messages(history, threading.get_ident)
            used.append(loop == threading.get_ident())
            assert history.keep(message(history, key("miner"), lane=lane))
        assert used == [True] * 17
        assert await node.slots.with_messages(history, threading.get_ident) != threading.get_ident()
        assert await node.slots.with_history(history, threading.get_ident) == threading.get_ident()


async def test_a_slot_that_names_another_anchor_is_on_disk_before_the_chain_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A member that has lost it, but not the anchor, would go on in the wrong epoch."""
    async with parts() as node:
        write, found = node.store.write, list[tuple[bytes, bool]]()

        def noted(advance: Advance, *, durable: bool = True) -> None:
            write(advance, durable=durable)
            found.append((node.core.chain.anchor.id, durable))

        monkeypatch.setattr(node.store, "write", noted)
        before, tip, signed = node.core.chain.anchor.id, node.core.chain.tip, Signed()
        signed.go_on(2)
        signed.go_on(2, anchor=tip.id, anchor_height=tip.height)
        await follow(node, signed)
        assert found == [(before, True), (before, False), (before, True), (before, False)]


async def test_few_histories_are_in_memory() -> None:
    """Those that were used last; another one is read again."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(3)
        await follow(node, signed)
        first = await node.slots.history(signed.history.task.id)
        for generation in range(1, MAX_HISTORIES + 2):
            await node.slots.history(GENESIS.filler_task(generation))
        assert len(node.slots._histories._kept) == MAX_HISTORIES
        again = await node.slots.history(signed.history.task.id)
        assert again is not first
        assert again.next_slot == 3


async def test_who_is_in_office_at_the_anchor_certifies() -> None:
    """The old committee until its certificate names a block in which it has left; the new one from then on."""
    async with parts() as node:
        await succeeded(node)
        old = Signed()
        switch: dict[str, Any] = {"anchor": node.core.chain.tip.id, "anchor_height": 3}
        await node.slots.take(old.go_on())
        assert await _broken(node, old.certified(epoch=1, **switch)) == "missing"
        await node.slots.take(old.go_on(**switch))
        committee = await node.slots.committee()
        assert committee is not None
        assert committee.epoch == 1
        late = old.certified(**switch)
        assert await _broken(node, late) == "epoch"
        assert not await node.slots.receive_record(PEER, encode(late))
        # Nor may it begin a task.
        other = Signed(GENESIS.filler_task(1))
        assert await _broken(node, other.certified(**switch)) == "epoch"
        old.group = "heir"
        assert await node.slots.take(old.go_on(epoch=1, **switch))
        assert node.slots.newest[1] == 3


async def test_who_is_in_office_is_looked_for_once() -> None:
    """It is asked for each word of a turn, and the chain's thread may be busy with a block."""
    async with parts() as node:
        found, go_on = await node.slots.committee(), threading.Event()
        busy = asyncio.create_task(node.core.in_chain(go_on.wait))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(60):
                assert await node.slots.committee() == found
        finally:
            go_on.set()
            await busy
        assert found is not None


async def test_a_slot_on_the_way_may_be_of_an_epoch_that_is_over() -> None:
    """A newcomer, whose anchor is above the switch already, gets the slots before it."""
    async with parts() as node:
        await succeeded(node)
        old = Signed()
        record = old.go_on()
        await node.blocks.settle_anchor(node.core.chain.tip.id, node.core.chain.tip.height)
        assert await _broken(node, record) == "epoch"
        assert await node.slots.take(record, is_asked=True)


@pytest.mark.parametrize("is_final", [False, True])
async def test_whoever_has_the_keys_of_an_epoch_that_is_over_goes_on_with_nothing(
    is_final: bool,
) -> None:
    """Not with a slot of the task, of another one, or with weights, also for a node that asks for what it has missed;
    a node that is behind still gets the slots up to the one that ended the epoch."""
    async with parts() as node:
        await succeeded(node)
        tip, old = node.core.chain.tip, Signed()
        switch: dict[str, Any] = {"anchor": tip.id, "anchor_height": tip.height}
        assert await node.slots.take(old.go_on())
        if is_final:
            await node.blocks.settle_anchor(tip.id, tip.height)
        assert await node.slots.take(old.go_on(), is_asked=True)
        assert await node.slots.take(old.go_on(**switch), is_asked=True)
        assert await _broken(node, old.certified(**switch), is_asked=True) == "epoch"
        other = Signed(GENESIS.filler_task(1), turn=3)
        assert await _broken(node, other.certified(**switch), is_asked=True) == "epoch"
        other.go_on(LAP)
        with pytest.raises(SlotError, match=r"^epoch"):
            await node.slots.begin_at(other.checkpoints[LAP], is_asked=True)
        old.group = "heir"
        assert await node.slots.take(old.go_on(epoch=1, **switch))


async def test_what_is_signed_above_a_block_that_is_not_here_waits_for_it() -> None:
    """As nobody can say who is in office there."""
    async with parts() as node:
        signed = Signed()
        away: dict[str, Any] = {"anchor": b"x" * 32, "anchor_height": 2}
        assert await node.slots.take(signed.go_on(**away))
        assert await _broken(node, signed.go_on(**away)) == "missing"


async def test_a_certificate_of_the_future_is_nobodys_fault() -> None:
    """It is not taken: the newest one would be it for good."""
    async with parts() as node:
        record = Signed().certified(time_ms=now_ms() + 60_000)
        assert await _broken(node, record) == "clock"
        assert not await node.slots.receive_record(PEER, encode(record))
        assert node.slots.newest[2] is None


async def test_an_older_certificate_is_not_the_newest() -> None:
    """Turns are counted over all tasks, so one of another task may come late; the history of that one takes it."""
    async with parts() as node:
        first, other = Signed(turn=10), Signed(GENESIS.filler_task(1), turn=4)
        await node.slots.take(newest := first.go_on())
        await node.slots.take(other.go_on())
        assert node.slots.newest[2] == newest.signed
        assert node.store.newest() == newest.signed
        assert node.slots.next_turn == 11
        await node.slots.take(other.go_on(turn=11, parent=newest.signed.certificate.id))
        assert node.slots.newest[:2] == (other.history.task.id, 2)


async def test_a_turn_has_one_certificate_and_follows_on_the_one_before() -> None:
    """A second one of another task is nobody's fault, and is not taken; nor is one with another parent, or an anchor,
    time or epoch from before it."""
    async with parts() as node:
        first, other = Signed(turn=3), Signed(GENESIS.filler_task(1), turn=3)
        at: dict[str, Any] = {"anchor": node.core.chain.tip.id, "anchor_height": 1}
        await node.slots.take(before := first.go_on(**at, time_ms=GENESIS.time_ms + 9))
        assert await _broken(node, other.certified()) == "turn"
        assert not await node.slots.receive_record(PEER, encode(other.certified()))
        follows: dict[str, Any] = {"turn": 4, "parent": before.signed.certificate.id}
        assert await _broken(node, other.certified(turn=4, parent=b"x" * 32)) == "parent"
        assert await _broken(node, other.certified(**follows)) == "anchor"
        assert await _broken(node, other.certified(**follows, **at)) == "time"
        assert await _broken(node, Signed(GENESIS.filler_task(2)).certified(parent=b"x" * 32)) == (
            "parent"
        )
        later = {**follows, **at, "time_ms": GENESIS.time_ms + 9}
        assert await node.slots.take(other.go_on(**later))


async def test_slots_of_another_committee_are_forgotten() -> None:
    """When the chain turns, before any anchor, to a branch on which epoch 0 is somebody else's; the node goes on."""
    async with parts(is_founded=False) as node:
        chain = node.core.chain
        genesis = chain.tip
        chain.add(founding(genesis), now_ms())
        ours = Signed()
        ours.go_on(10)
        await follow(node, ours)
        theirs = Signed(group="theirs")
        with pytest.raises(SlotError, match="signature"):
            await node.slots.take(theirs.certified(slot=10, previous=ours.history.previous))
        assert not await node.slots.receive_record(
            PEER, encode(theirs.certified(slot=10, previous=ours.history.previous))
        )
        assert node.missing == [PEER]
        await node.slots.forget_others()
        assert node.slots.newest[1] == 10
        _turn_to_theirs(node, genesis)
        await node.slots.forget_others()
        assert node.slots.newest[2] is None
        assert node.store.num_slots(ours.history.task.id) == 0
        theirs.go_on(4)
        await follow(node, theirs)
        assert node.slots.newest[1] == 4
        assert node.store.newest() == theirs.history.signed


def _turn_to_theirs(node: Parts, genesis: Position) -> None:
    """Give the node two founding blocks of another supervisor, where it has one of its own."""
    chain, at = node.core.chain, genesis
    takes = (
        sent("theirs", 0, Faucet()),
        sent("theirs", 1, ticket(SUPERVISOR, 100 * PAI, "theirs", "theirs")),
    )
    for gap_ms, transactions in ((0, takes), (1000, (sent("other", 0, Faucet()),))):
        pool = waiting(at, transactions)
        block = mine_founding(GENESIS, at, pool, key("theirs"), START_MS + gap_ms)
        assert block is not None
        chain.add(block, now_ms())
        found = chain._tree.get(block.id)
        assert found is not None
        at = found
    assert chain.tip is at


async def test_old_weights_and_maps_are_forgotten_with_the_anchor() -> None:
    """Those of slots far before it, and all of a filler that was over long before; records stay."""
    async with parts() as node:
        chain = node.core.chain
        over, trains, comes = (
            Signed(GENESIS.filler_task(generation), turn=1000 * generation)
            for generation in range(3)
        )
        over.go_on(16, time_ms=GENESIS.time_ms - 700_000)
        trains.go_on(2 * LAP * KEPT_LAPS)
        comes.go_on(LAP)
        for signed in (over, trains, comes):
            await follow(node, signed)
        tasks = [signed.history.task.id for signed in (over, trains, comes)]
        assert set(node.store.tasks()) == set(tasks)
        slot = KEPT_MAPS + 2 * LAP * KEPT_LAPS
        chain.add(trained(chain.tip, slot=slot, header={"task": tasks[1]}), now_ms())
        await node.blocks.settle_anchor(chain.tip.id, chain.tip.height)
        assert set(node.store.tasks()) == set(tasks[1:])
        assert node.store.checkpoint(tasks[1], slot - KEPT_MAPS - 1) is None
        assert [node.store.num_slots(task) for task in tasks] == [16, 2 * LAP * KEPT_LAPS, LAP]
        assert node.store.history(trains.history.task).next_slot == trains.history.next_slot


async def test_a_clock_that_is_behind_is_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the seconds, and if the committee has signed that alone."""
    async with parts() as node:
        record = Signed().certified(time_ms=now_ms() + 60_000)
        await node.slots.receive_record(PEER, encode(forged(record)))
        assert not caplog.records
        for _ in range(2):
            await node.slots.receive_record(PEER, encode(record))
        [said] = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert re.search(r"clock is (60|5\d|[1-4]\d) s behind the supervisor's", said)
