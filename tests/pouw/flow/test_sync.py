"""Catching up ends, whatever a peer answers, and is held against those alone who are at fault."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace

from pocqueue.pouw.errors import ChainError
from pocqueue.pouw.flow import core as core_module, sync as sync_module
from pocqueue.pouw.flow.core import now_ms
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.wire.blocks import Block
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.requests import Blocks, BlocksRequest, Slots, Status
from pocqueue.pouw.wire.slots import Iteration
from tests.pouw.blocks import GENESIS, founding_block, trained
from tests.pouw.flow.nodes import until
from tests.pouw.flow.parts import (
    PEER,
    Answer,
    MadeUpPeers,
    Parts,
    Signed,
    follow,
    parts,
    replace_account,
)


@contextlib.asynccontextmanager
async def _syncing(node: Parts) -> AsyncIterator[None]:
    """Have a node catch up, and take the blocks that it finds."""
    node.blocks._on_missing = node.sync.wish
    running = [asyncio.create_task(loop()) for loop in (node.sync.run, node.blocks.run)]
    try:
        yield
    finally:
        for one in running:
            assert not one.done(), one.exception()
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _is_left(node: Parts, who: bytes = PEER.account) -> bool:
    """Say whether a peer was followed, and is left alone now."""
    both = (node.sync._for_slots, node.sync._for_blocks)
    return all(who in one._rests for one in both)


def _answer_by_peer(node: Parts, answers: dict[bytes, dict[Kind, Answer]]) -> None:
    """Link a node to these peers; of what one has no answer to it says nothing at all, for ever."""

    async def request(who: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0) -> bytes:
        node.net.asked.append((who, kind))
        if kind not in answers[who]:
            await asyncio.Event().wait()
        return answers[who][kind](body)

    node.net.peers[:] = [replace_account(who) for who in answers]
    node.net.request = request  # type: ignore[method-assign]


def _asked(net: MadeUpPeers, kind: Kind) -> int:
    return sum(asked == kind for _, asked in net.asked)


def _status(tip: Block, signed: Signed | None = None) -> Callable[[bytes], bytes]:
    found = (signed or Signed()).status(tip.id, height=tip.header.height)
    return lambda _: encode(found)


def _blocks(*blocks: Block) -> Callable[[bytes], bytes]:
    """Answer with the blocks behind the newest that is named."""

    def answer(body: bytes) -> bytes:
        locator = decode(body, BlocksRequest).locator
        known = [at for at, block in enumerate(blocks) if block.id in locator]
        return encode(Blocks(blocks[max(known, default=-1) + 1 :]))

    return answer


def _chain() -> list[Block]:
    """Return five blocks, the first one a founding one."""

    async def made() -> list[Block]:
        async with parts() as node:
            chain, blocks = node.core.chain, [founding_block()]
            for slot in range(9, 49, 10):
                blocks.append(trained(chain.tip, slot=slot))
                chain.add(blocks[-1], now_ms())
            return blocks

    return asyncio.run(made())


def _judging(node: Parts, num_slots: int = 100) -> list[int]:
    """Have laps judged without training, as far as there are slots; return those that were judged in."""
    judged: list[int] = []

    async def train_over(winner: Iteration, patience_s: float = 0.0) -> str:
        if winner.slot >= num_slots:
            raise ChainError("the lap is not to be had")
        judged.append(winner.slot)
        return "good"

    node.blocks.train_over = train_over  # type: ignore[method-assign]
    return judged


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    """Five blocks, the first one a founding one."""
    return _chain()


async def test_final_blocks_are_taken_and_the_anchor_is_set(blocks: list[Block]) -> None:
    """A newcomer trains none of them over; those behind the anchor it does, and waits for that, but no slot does."""
    async with parts(is_founded=False) as node:
        signed = Signed()
        signed.go_on(40, anchor=blocks[2].id, anchor_height=3)
        node.net.answers = signed.answers() | {
            Kind.STATUS: _status(blocks[4], signed),
            Kind.BLOCKS: _blocks(*blocks),
        }
        trained_over: list[int] = []

        async def train_over(winner: Iteration, patience_s: float = 0.0) -> str:
            await until(lambda: node.slots.newest[1] == 40, "all slots")
            trained_over.append(winner.slot)
            return "good"

        node.blocks.train_over = train_over  # type: ignore[method-assign]
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(node.core.is_current.is_set, "all of it")
        assert node.core.chain.anchor.id == blocks[2].id
        assert node.core.chain.tip.id == blocks[4].id
        assert trained_over == [29, 39]
        assert node.slots.newest[1] == 40
        assert node.net.charged == []


@pytest.mark.parametrize("number", [0, 3])
async def test_a_peer_that_gives_the_same_blocks_again_is_left(
    number: int, blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known ones, or some whose parents it does not give."""
    monkeypatch.setattr(sync_module, "_REST_S", 1000.0)
    async with parts() as node:
        away = replace(blocks[4], header=replace(blocks[4].header, height=99))
        node.net.answers = {
            Kind.STATUS: _status(away),
            Kind.BLOCKS: lambda _: encode(Blocks((blocks[number],))),
        }
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: _is_left(node), "the end")
        assert _asked(node.net, Kind.BLOCKS) <= 2


async def test_blocks_are_taken_whatever_becomes_of_the_slots(blocks: list[Block]) -> None:
    """And the other way round: neither waits for the other, or fails with it."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(40)
        node.net.answers = {
            **signed.answers(),
            Kind.STATUS: _status(blocks[4], signed),
            Kind.BLOCKS: _blocks(*blocks),
        }
        _judging(node)

        async def follow(peer: PeerInfo, status: Status) -> None:
            raise ChainError("the task is not known here")

        node.slot_sync.follow = follow  # type: ignore[method-assign]
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: node.core.chain.tip.id == blocks[4].id, "all blocks")


async def test_a_wish_for_whoever_had_nothing_new_waits(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it comes while that one is followed; another peer is asked meanwhile."""
    monkeypatch.setattr(sync_module, "_REST_S", 1000.0)
    async with parts() as node:
        other = replace_account(b"\2" + b"o" * 32)
        node.net.peers.append(other)
        node.net.answers = {
            Kind.STATUS: _status(blocks[4]),
            Kind.BLOCKS: _blocks(blocks[3]),
        }
        # Whose parent is not here: each time it is wished for again.
        async with _syncing(node):
            for peer in (PEER, other):
                node.sync.wish(peer)
                await until(lambda: _is_left(node, peer.account), "the end")  # noqa: B023 - awaited here
            wished = {PEER.account, other.account}
            await until(lambda: set(node.sync._for_blocks._wished) == wished, "both wishes")
        asked = [who for who, kind in node.net.asked if kind is Kind.BLOCKS]
        assert list(dict.fromkeys(asked)) == [PEER.account, other.account]
        assert not node.net.charged


async def test_a_silent_peer_costs_its_turn_alone(blocks: list[Block]) -> None:
    """It is no fault of its, and the next one is asked."""
    async with parts() as node:
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: _is_left(node), "the end")
        assert node.net.charged == []


async def test_whoever_sends_bad_blocks_is_charged(blocks: list[Block]) -> None:
    """A fault is a failure of the link as well; it counts as a fault."""
    async with parts() as node:
        bad = replace(blocks[1], header=replace(blocks[1].header, state=b"s" * 32))
        node.net.answers = {Kind.STATUS: _status(bad), Kind.BLOCKS: _blocks(blocks[0], bad)}
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: bool(node.net.charged), "a charge")
        assert node.net.charged[0][0] == PEER.account
        assert node.net.charged[0][1].startswith("a block: ")


@pytest.mark.parametrize(
    ("change", "is_fault"),
    [
        ({"epoch": 7}, False),
        ({"time_ms": 2**50}, False),
        ({"previous": b"p" * 32}, False),
        ({"network": b"n" * 32}, True),
    ],
)
async def test_what_is_nobodys_fault_costs_nothing(
    change: dict[str, object], is_fault: bool, blocks: list[Block]
) -> None:
    """As with messages: this node may lack something, or its clock be wrong."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(2)
        record = signed.certified(**change)
        status = Status(
            *(GENESIS.header_id, 0, GENESIS.header_id, 0, record.signed.certificate.task, 3),
            record.signed,
        )
        node.net.answers = signed.answers() | {Kind.STATUS: lambda _: encode(status)}
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(
                lambda: bool(node.net.charged) or _is_left(node) or node.core.is_current.is_set(),
                "the end",
            )
        assert bool(node.net.charged) == is_fault


async def test_what_others_signed_of_a_branch_is_no_word_on_it(blocks: list[Block]) -> None:
    """Above an anchor a signature that is none is a fault; the blocks are not taken as final."""
    async with parts() as node:
        await node.blocks.settle_anchor(node.core.chain.tip.id, node.core.chain.tip.height)
        signed = Signed(group="other")
        record = signed.certified(anchor=blocks[4].id, anchor_height=5)
        status = Status(
            *(blocks[4].id, 5, GENESIS.header_id, 0, record.signed.certificate.task, 1),
            record.signed,
        )
        node.net.answers = {Kind.STATUS: lambda _: encode(status), Kind.BLOCKS: _blocks(*blocks)}
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: bool(node.net.charged), "a charge")
        assert node.core.chain.tip.height == 1
        assert "signature" in node.net.charged[0][1]


async def test_a_peer_that_gives_nothing_makes_nobody_current(blocks: list[Block]) -> None:
    """What it says to have is not here: a supervisor must not act on a part of the chain."""
    async with parts() as node:
        none = Blocks(())
        node.net.answers = {Kind.STATUS: _status(blocks[4]), Kind.BLOCKS: lambda _: encode(none)}
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: _is_left(node), "the end")
            assert not node.core.is_current.is_set()
            node.net.answers[Kind.STATUS] = _status(blocks[0])
            node.sync.wish(PEER)
            await until(node.core.is_current.is_set, "one that has nothing newer")


async def test_a_supervisor_that_signs_alone_asks_all_its_peers(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty newcomer has nothing newer than an old copy of its slots; another one has what it signed since. The first
    link alone is not all of them."""
    monkeypatch.setattr(sync_module, "_REST_S", 1000.0)
    for gather_s in (0.0, 1000.0):
        monkeypatch.setattr(sync_module, "_GATHER_S", gather_s)
        async with parts() as node:
            committee = await node.slots.committee()
            assert committee is not None
            [node.core.account] = committee.members
            signed = Signed()
            signed.go_on(1)
            await follow(node, signed)
            signed.go_on(2)
            other = replace_account(b"\2" + b"o" * 32)
            node.net.peers.append(other)
            by_kind = signed.answers() | {Kind.STATUS: _status(blocks[0], signed)}
            newcomer = _status(blocks[0])

            async def request(
                who: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0
            ) -> bytes:
                is_newcomer = who == PEER.account  # it is asked for nothing but where it stands
                return newcomer(body) if is_newcomer else by_kind[kind](body)  # noqa: B023

            monkeypatch.setattr(node.net, "request", request)
            async with _syncing(node):
                node.sync.wish(PEER)
                if gather_s:
                    await until(lambda: node.slots.newest[1] == 3, "its slots")
                    await until(lambda: other.account in node.sync._for_slots._wished, "its end")  # noqa: B023
                    assert not node.core.is_current.is_set()
                else:
                    await until(node.core.is_current.is_set, "all of it")
                    assert node.slots.newest[1] == 3


async def test_slots_that_a_peer_does_not_give_make_nobody_current() -> None:
    """Its newest certificate shows that there are some."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(3)
        node.net.answers = {
            Kind.STATUS: lambda _: encode(signed.status()),
            Kind.SLOTS: lambda _: encode(Slots(())),
        }
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: _is_left(node), "the end")
        assert not node.core.is_current.is_set()


async def test_slots_come_while_blocks_are_trained_over(blocks: list[Block]) -> None:
    """However long that takes: a member of the committee that missed a record has it at once, and votes."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(40)
        node.net.answers = signed.answers() | {
            Kind.STATUS: lambda _: encode(signed.status(blocks[4].id, height=5)),
            Kind.BLOCKS: _blocks(*blocks),
        }
        began, may_end = asyncio.Event(), asyncio.Event()

        async def train_over(winner: Iteration, patience_s: float = 0.0) -> str:
            began.set()
            await may_end.wait()
            return "good"

        node.blocks.train_over = train_over  # type: ignore[method-assign]
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(began.is_set, "the first block")
            for num_slots in (45, 50):
                signed.go_on(5)
                node.sync.wish(PEER)
                await until(lambda: node.slots.newest[1] == num_slots, "its slots")  # noqa: B023
            assert node.core.chain.tip.height == 1
            may_end.set()
            await until(node.core.is_current.is_set, "all of it")
        assert node.core.chain.tip.id == blocks[4].id


async def test_blocks_that_become_final_do_not_wait_for_those_that_are_trained_over(
    blocks: list[Block],
) -> None:
    """Nor is any of them trained over that is not begun with."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(40)
        node.net.answers = signed.answers() | {
            Kind.STATUS: lambda _: encode(signed.status(blocks[4].id, height=5)),
            Kind.BLOCKS: _blocks(*blocks),
        }
        began = list[int]()

        async def train_over(winner: Iteration, patience_s: float = 0.0) -> str:
            began.append(winner.slot)
            await asyncio.Event().wait()
            return "never"

        node.blocks.train_over = train_over  # type: ignore[method-assign]
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: bool(began), "the first block")
            signed.go_on(anchor=blocks[4].id, anchor_height=5)
            node.sync.wish(PEER)
            await until(lambda: node.core.chain.anchor.id == blocks[4].id, "the anchor")
        assert len(began) == 1


async def test_nobody_waits_for_a_silent_peer(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is followed beside it, whatever it is silent about, though nothing was wished of that one."""
    monkeypatch.setattr(core_module, "_SILENT_S", 0.0)
    signed = Signed()
    signed.go_on(40)
    whole = signed.answers() | {
        Kind.STATUS: _status(blocks[4], signed),
        Kind.BLOCKS: _blocks(*blocks),
    }
    other = b"\2" + b"o" * 32
    for kinds in ((), (Kind.STATUS,), (Kind.STATUS, Kind.SLOTS), (Kind.STATUS, Kind.BLOCKS)):
        async with parts() as node:
            _answer_by_peer(
                node, {PEER.account: {kind: whole[kind] for kind in kinds}, other: whole}
            )
            _judging(node)
            async with _syncing(node):
                node.sync.wish(PEER)
                await until(node.core.is_current.is_set, "all of it")
            assert node.core.chain.tip.id == blocks[4].id
            assert node.slots.newest[1] == 40
            assert node.net.charged == []


async def test_whoever_fails_is_not_the_last_to_be_asked(blocks: list[Block]) -> None:
    """The next one is, without anybody's wish."""
    async with parts() as node:
        other = b"\2" + b"o" * 32
        whole = {Kind.STATUS: _status(blocks[4]), Kind.BLOCKS: _blocks(*blocks)}
        _answer_by_peer(node, {PEER.account: {Kind.STATUS: lambda _: b"x"}, other: whole})
        _judging(node)
        async with _syncing(node):
            node.sync.wish(PEER)
            await until(lambda: node.blocks._found_row is not None, "the blocks of the other one")
        assert {who for who, _ in node.net.charged} == {PEER.account}
