"""Whom a node follows to which slots, and what it answers others."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from pocqueue.pouw.errors import ChainError, LinkError, SlotError
from pocqueue.pouw.flow import slot_sync
from pocqueue.pouw.flow.core import now_ms
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots.history import Advance, Checkpoint, SlotHistory
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.wire.blocks import Trained
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.requests import (
    PIECE_BYTES,
    Slots,
    SlotsRequest,
    Status,
    Weights,
    WeightsRequest,
)
from tests.pouw.blocks import FILLER, GENESIS, trained
from tests.pouw.flow.parts import PEER, Parts, Signed, follow, forged, parts, piece, succeeded
from tests.pouw.slots import support as made
from tests.support.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on from weights from 40 slots on, at 16 before the newest."""
    monkeypatch.setattr(slot_sync, "_MAX_BEHIND", 40)
    monkeypatch.setattr(slot_sync, "_HEAD_START", 16)


def _slot(node: Parts) -> int:
    return node.slots.newest[1]


async def test_a_peer_is_followed_to_its_newest_slot() -> None:
    """Slot after slot, or from weights if that is far; both ways with the same weights."""
    async with parts() as node:
        peer = Signed()
        peer.go_on(30)
        node.net.answers = peer.answers()
        await node.slot_sync.follow(PEER, peer.status())
        assert _slot(node) == 30
        peer.go_on(50)
        node.net.asked.clear()
        await node.slot_sync.follow(PEER, peer.status())
        assert (PEER.account, Kind.THETA) in node.net.asked
        assert _slot(node) == 80
        history = await node.slots.history(FILLER)
        assert (history.theta, history.signed) == (peer.history.theta, peer.history.signed)
        assert node.store.history(history.task).next_slot == 80


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("signature", lambda status: replace(status, newest=forged_newest(status))),
        ("status", lambda status: replace(status, slot=1_000_000)),
        ("status", lambda status: replace(status, task=b"o" * 32)),
        ("network", lambda status: replace(status, newest=changed(status, network=b"o" * 32))),
        (
            "clock",
            lambda status: replace(status, newest=changed(status, time_ms=now_ms() + 60_000)),
        ),
        ("missing", lambda status: replace(status, newest=changed(status, epoch=1))),
    ],
)
async def test_what_a_peer_says_to_be_newest_is_checked_first(
    rule: str, change: Callable[[Status], Status]
) -> None:
    """Before it is asked for anything."""
    async with parts() as node:
        peer = Signed()
        peer.go_on(3)
        node.net.answers = peer.answers()
        with pytest.raises(SlotError) as caught:
            await node.slot_sync.follow(PEER, change(peer.status()))
        assert caught.value.rule == rule
        assert node.net.asked == []
        assert _slot(node) == 0


def forged_newest(status: Status) -> Any:
    """Return the newest certificate without signatures."""
    assert status.newest is not None
    return replace(status.newest, signature=bytes(96), beacon=bytes(96))


def changed(status: Status, **fields: Any) -> Any:
    """Return the newest certificate with other fields."""
    assert status.newest is not None
    return replace(status.newest, certificate=replace(status.newest.certificate, **fields))


async def test_a_peer_that_gives_slot_by_slot_is_left_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it gave is kept; another one is asked for the rest. Who gives all is not left for the time it took."""
    monkeypatch.setattr(slot_sync, "_TURN_S", 0.0)
    async with parts() as node:
        peer = Signed()
        peer.go_on(9)

        def one(body: bytes) -> bytes:
            first = decode(body, SlotsRequest).first
            return encode(Slots(tuple(peer.slots[first : first + 1])))

        node.net.answers = peer.answers() | {Kind.SLOTS: one}
        for num_slots in (1, 2):
            with pytest.raises(LinkError):
                await node.slot_sync.follow(PEER, peer.status())
            assert _slot(node) == num_slots
        node.net.answers = peer.answers()
        await node.slot_sync.follow(PEER, peer.status())
        assert _slot(node) == 9


async def test_a_peer_that_gives_weights_piece_by_piece_is_left_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others have them too; one piece is always waited for."""
    monkeypatch.setattr(slot_sync, "_WEIGHTS_S", 0.0)
    monkeypatch.setattr(slot_sync, "PIECE_BYTES", 32 * 1024)
    async with parts() as node:
        peer, asked = Signed(), list[int]()
        peer.go_on(9)
        theta = peer.checkpoints[8].theta

        def slowly(body: bytes) -> bytes:
            number = decode(body, WeightsRequest).piece
            asked.append(number)
            part = theta[number * 32 * 1024 : (number + 1) * 32 * 1024]
            return encode(piece(peer.checkpoints[8], 0, piece=part))

        node.net.answers = {Kind.THETA: slowly}
        task = peer.history.task
        with pytest.raises(SlotError, match="theta: nobody gives the weights"):
            await node.slot_sync.weights(task, 8, hashlib.sha256(theta).digest())
        assert asked == [0]
        monkeypatch.setattr(slot_sync, "_WEIGHTS_S", 1000.0)
        assert await node.slot_sync.weights(task, 8, hashlib.sha256(theta).digest()) == theta


async def test_a_peer_that_is_behind_is_not_followed() -> None:
    """Nor does it lose anything for it."""
    async with parts() as node:
        peer = Signed()
        peer.go_on(3)
        early = peer.status()
        peer.go_on(3)
        await follow(node, peer)
        await node.slot_sync.follow(PEER, early)
        await node.slot_sync.follow(PEER, replace(early, newest=None))
        assert (node.net.asked, _slot(node)) == ([], 6)


async def _refused(answer: Callable[[WeightsRequest, Signed], Weights]) -> str:
    """Return the rule that weights break; the node stays where it was."""
    async with parts() as node:
        peer = Signed()
        peer.go_on(8)
        await follow(node, peer)
        peer.go_on(72)
        node.net.answers = peer.answers() | {
            Kind.THETA: lambda body: encode(answer(decode(body, WeightsRequest), peer))
        }
        with pytest.raises(SlotError) as caught:
            await node.slot_sync.follow(PEER, peer.status())
        assert _slot(node) == (await node.slots.history(FILLER)).next_slot == 8
        assert len(node.net.asked) <= 2
        return caught.value.rule


async def test_weights_that_do_not_fit_are_refused() -> None:
    """Of slot 0, of any other size than the task's, in pieces of any other size, with other bytes, not signed."""

    def first(_: WeightsRequest, peer: Signed) -> Weights:
        theta = peer.checkpoints[64].theta
        return Weights(0, None, len(theta), theta[:PIECE_BYTES])

    def endless(request: WeightsRequest, peer: Signed) -> Weights:
        return piece(peer.checkpoints[64], 0, num_bytes=2**40, piece=bytes(PIECE_BYTES))

    def crumbs(request: WeightsRequest, peer: Signed) -> Weights:
        return piece(peer.checkpoints[64], 0, piece=b"x")

    def others(request: WeightsRequest, peer: Signed) -> Weights:
        found = peer.checkpoints[64]
        return piece(found._replace(theta=bytes(len(found.theta))), request.piece)

    def not_signed(request: WeightsRequest, peer: Signed) -> Weights:
        found = peer.checkpoints[64]
        signed = forged(peer.slots[63].record).signed
        return piece(Checkpoint(signed, found.theta), request.piece)

    assert await _refused(first) == "theta"
    assert await _refused(endless) == "theta"
    assert await _refused(crumbs) == "theta"
    assert await _refused(others) == "theta"
    assert await _refused(not_signed) == "signature"


async def test_nobody_is_set_back() -> None:
    """A genuine checkpoint of long ago is not gone back to."""
    async with parts() as node:
        peer = Signed()
        peer.go_on(24)
        await follow(node, peer)
        peer.go_on(60)
        old, taken = peer.checkpoints[LAP], list[int]()

        async def on_advance(_: SlotHistory, advance: Advance) -> None:
            taken.append(advance.certificate.slot)

        node.slots.on_advance = on_advance
        node.net.answers = peer.answers() | {
            Kind.THETA: lambda body: encode(piece(old, decode(body, WeightsRequest).piece))
        }
        await node.slot_sync.follow(PEER, peer.status())
        # It has gone on slot after slot.
        assert taken == [*range(24, 84)]


async def test_a_member_of_the_committee_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own slots are a history without gaps."""
    async with parts() as node:
        committee = await node.slots.committee()
        assert committee is not None
        monkeypatch.setattr(node.core, "account", committee.members[0])
        peer = Signed()
        peer.go_on(70)
        node.net.answers = peer.answers()
        await node.slot_sync.follow(PEER, peer.status())
        assert {kind for _, kind in node.net.asked} == {Kind.SLOTS}
        assert node.store.slots(FILLER, 0, 70) == peer.slots


async def test_a_member_has_what_peers_have_of_a_task_before_it_certifies_more() -> None:
    """Of another task than the newest certificate's; asked for once, and again when turns were skipped."""
    async with parts() as node:
        peer, newer = Signed(), Signed(GENESIS.filler_task(1), turn=70)
        peer.go_on(70)
        newer.go_on(2)
        await follow(node, newer)
        node.net.answers = peer.answers()
        await node.slot_sync.complete(FILLER)
        assert (await node.slots.history(FILLER)).next_slot == 70
        assert node.slots.newest[:2] == (GENESIS.filler_task(1), 2)
        node.net.asked.clear()
        await node.slot_sync.complete(FILLER)
        assert node.net.asked == []
        newer.turn += 1
        assert await node.slots.take(newer.go_on())
        node.net.answers = {}
        for _ in range(2):  # as nobody answers, it does not know
            await node.slot_sync.complete(FILLER)
        assert len(node.net.asked) == 2


async def test_what_is_asked_for_is_answered() -> None:
    """Slots as many as fit into an answer, and the weights of a lap in pieces."""
    async with parts() as node:
        peer = Signed()
        peer.go_on(70)
        await follow(node, peer)
        assert len((await node.slot_sync.slots(SlotsRequest(FILLER, 0))).slots) == 64
        found = await node.slot_sync.piece(WeightsRequest(FILLER, 70, 0))
        assert (found.slot, found.num_bytes) == (64, len(peer.history.theta))
        with pytest.raises(LinkError, match="no such piece"):
            await node.slot_sync.piece(WeightsRequest(b"o" * 32, 9, 0))


async def test_a_piece_beyond_the_end_is_refused_without_a_look_at_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a peer could have all of them read for an answer of nothing, as often as it may ask."""
    async with parts() as node:
        peer = Signed()
        peer.go_on(70)
        await follow(node, peer)
        num_pieces = -(-len(peer.history.theta) // PIECE_BYTES)
        found = await node.slot_sync.piece(WeightsRequest(FILLER, 70, num_pieces - 1))
        assert found.piece
        read = list[int]()
        monkeypatch.setattr(node.store, "checkpoint", lambda _task, slot: read.append(slot))
        for beyond in (num_pieces, 2**50):
            with pytest.raises(LinkError, match="no such piece"):
                await node.slot_sync.piece(WeightsRequest(FILLER, 70, beyond))
        assert read == []


async def test_who_asks_for_much_at_once_does_not_hold_up_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own work waits behind two answers at most, of all that are asked for."""
    async with parts() as node:
        peer = Signed()
        peer.go_on(70)
        await follow(node, peer)
        gate, order, read = threading.Event(), list[str](), node.store.checkpoint

        def checkpoint(task: bytes, slot: int) -> Checkpoint | None:
            gate.wait(PATIENCE_S)
            order.append("given")
            return read(task, slot)

        monkeypatch.setattr(node.store, "checkpoint", checkpoint)
        asked = [
            asyncio.create_task(node.slot_sync.piece(WeightsRequest(FILLER, 70, 0)))
            for _ in range(10)
        ]
        await asyncio.sleep(0)  # they have all begun
        own = asyncio.create_task(node.slots.in_slots(order.append, "own"))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(own, *asked)
        assert order.index("own") <= 2
        assert order.count("given") == 10


async def test_a_committee_without_its_slots_jumps_if_nobody_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has lost them, and its peers keep the maps of the newest ones alone."""
    async with parts() as node:
        committee = await node.slots.committee()
        assert committee is not None
        monkeypatch.setattr(node.core, "account", committee.members[0])
        peer = Signed()
        peer.go_on(70)
        answers = peer.answers()

        def slots(body: bytes) -> bytes:
            is_kept = decode(body, SlotsRequest).first >= 32
            return answers[Kind.SLOTS](body) if is_kept else encode(Slots(()))

        node.net.answers = answers | {Kind.SLOTS: slots}
        await node.slot_sync.follow(PEER, peer.status())
        assert _slot(node) == 70


async def test_a_block_brings_no_slots_of_an_epoch_that_is_over() -> None:
    """Whoever was in office before could fill the next task's slots by it."""
    async with parts() as node:
        await succeeded(node)
        await node.blocks.settle_anchor(node.core.chain.tip.id, 3)
        old = Signed(GENESIS.filler_task(1))
        old.go_on(3)
        node.net.answers = old.answers()
        winner = trained(node.core.chain.tip, slot=2, header={"task": old.history.task.id}).proof
        assert isinstance(winner, Trained)
        with pytest.raises(ChainError, match="epoch"):
            await node.slot_sync.reach(PEER, winner.winner.iteration)
        assert (await node.slots.history(old.history.task.id)).next_slot == 0


async def test_a_winner_is_the_message_that_is_certified_here() -> None:
    """Not another one of its lane and slot, with a map hash of its own choice or more parts."""
    async with parts() as node:
        history = SlotHistory(made.TASK, made.NETWORK)
        for _ in range(4):
            advance = made.grow(history, made.KEYS[0])
        node.slots._histories.put(history)
        winner = advance.slot.messages[0].iteration
        lap, own_map = await node.slot_sync.lap_of(winner)
        assert (len(lap), own_map) == (4, advance.slot.messages[0].map)
        for change in ({"map_hash": b"m" * 32}, {"parts": 8}):
            with pytest.raises(ChainError, match="another message of this lane is certified here"):
                await node.slot_sync.lap_of(replace(winner, **change))
