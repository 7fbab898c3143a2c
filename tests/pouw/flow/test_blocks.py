"""Blocks and slots on their way into a node do not wait for each other."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from msgspec.structs import replace

from pocqueue.node.keys import ORDER, SigningKey
from pocqueue.pouw.chain.chain import RE_EXECUTION, Change
from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.errors import InvalidBlock, PeerFault
from pocqueue.pouw.flow import blocks as flow_blocks, core as core_module
from pocqueue.pouw.flow.core import now_ms
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.security import SecuritySystem
from pocqueue.pouw.slots.task import Noise, TaskSpec
from pocqueue.pouw.training.trainer import URGENT_S
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.requests import Slots
from pocqueue.pouw.wire.slots import Iteration
from tests.pouw.blocks import trained
from tests.pouw.flow.nodes import until
from tests.pouw.flow.parts import PEER, Parts, Signed, follow, parts, replace_account
from tests.pouw.support import account, key
from tests.support.waiting import PATIENCE_S


def _judged(node: Parts, verdict: InvalidBlock | None = None) -> list[int]:
    """Have laps judged without training; return the slots of those that were."""
    slots: list[int] = []

    async def train_over(winner: Iteration, patience_s: float = 0.0) -> str:
        assert patience_s == URGENT_S
        slots.append(winner.slot)
        if verdict is not None:
            raise verdict
        return "good"

    node.blocks.train_over = train_over  # type: ignore[method-assign]
    return slots


def _private(*args: Any) -> TaskSpec:
    """Return a task as `spec_of` does, with noise."""
    return replace(spec_of(*args), noise=Noise(1.0, 1.0, 4))


async def test_a_block_before_its_slot_waits_for_nobody() -> None:
    """Its slots are fetched, one of them names another anchor, and a record comes in while it is trained over."""
    async with parts() as node, asyncio.timeout(PATIENCE_S):
        signed = Signed()
        signed.go_on(9)
        chain = node.core.chain
        signed.go_on(3, anchor=chain.tip.id, anchor_height=1)
        node.net.answers = signed.answers()
        judged = _judged(node)
        block = trained(chain.tip, slot=10)
        running = asyncio.create_task(node.blocks.run())
        assert await node.blocks.take(block, PEER)
        assert judged == [10]
        assert chain.tip.id == block.id
        await until(lambda: chain.anchor.height == 1, "the anchor")
        running.cancel()


async def test_a_block_of_our_own_goes_out_before_it_is_written() -> None:
    """If it is good: one that is not is told to nobody."""
    async with parts() as node:
        chain = node.core.chain
        block = trained(chain.tip, slot=10)
        add, pushed = chain.add, list[bytes]()

        def written(*args: Any, **more: Any) -> Change:
            pushed.extend(node.net.pushed)
            return add(*args, **more)

        chain.add = written  # type: ignore[method-assign]
        other = replace(block, header=replace(block.header, state=bytes(32)))
        assert not await node.blocks.take(other, None)
        assert await node.blocks.take(block, None)
        assert not await node.blocks.take(block, None)
        assert pushed == node.net.pushed == [block.id]


async def test_an_anchor_is_set_when_its_block_comes() -> None:
    """The certificate that names it was here before, or was on disk when the node was started."""
    async with parts() as node:
        running = asyncio.create_task(node.blocks.run())
        chain = node.core.chain
        block = trained(chain.tip, slot=10)
        signed = Signed()
        signed.go_on(anchor=block.id, anchor_height=2)
        await follow(node, signed)
        assert chain.anchor.height == 0
        assert await node.blocks.take(block, None)
        await until(lambda: chain.anchor.id == block.id, "the anchor")
        running.cancel()


async def test_an_anchor_that_was_not_set_is_set_after_a_restart(tmp_path: Path) -> None:
    """As a node may be killed between the two."""
    async with parts(tmp_path) as node:
        signed = Signed()
        signed.go_on(anchor=node.core.chain.tip.id, anchor_height=1)
        await follow(node, signed)
        assert node.core.chain.anchor.height == 0
    async with parts(tmp_path) as node:
        running = asyncio.create_task(node.blocks.run())
        await until(lambda: node.core.chain.anchor.height == 1, "the anchor")
        running.cancel()


async def test_a_cheats_block_is_refused_until_it_is_final() -> None:
    """Whoever sends it is charged; the committee's word counts more than this node's training."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(12)
        node.net.answers = signed.answers()
        judged = _judged(node, InvalidBlock(RE_EXECUTION, "entries differ."))
        block = trained(node.core.chain.tip, slot=10)
        for _ in range(2):
            with pytest.raises(PeerFault, match="a block: re-execution: entries differ"):
                await node.blocks.take(block, PEER)
        assert judged == [10]
        assert await node.blocks.take(block, PEER, is_final=True)


def _with_signature(block: Block, signature: bytes) -> Block:
    """Return a block of the same id in which the winner's message is signed otherwise."""
    assert isinstance(block.proof, Trained)
    winner = block.proof.winner
    iteration = replace(winner.iteration, signature=signature)
    proof = replace(block.proof, winner=replace(winner, iteration=iteration))
    return replace(block, proof=proof)


async def test_a_lie_that_is_signed_again_is_not_trained_over_again() -> None:
    """Its miner can sign the same message in many ways, all of them good."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(12)
        node.net.answers = signed.answers()
        judged = _judged(node, InvalidBlock(RE_EXECUTION, "entries differ."))
        block = trained(node.core.chain.tip, slot=10)
        again = _with_signature(block, _another_signature(key("miner"), block.header.message))
        assert (again.id, again == block) == (block.id, False)
        for one in (block, again):
            with pytest.raises(PeerFault, match="a block: re-execution: entries differ"):
                await node.blocks.take(one, PEER)
        assert judged == [10]
        assert await node.blocks.take(again, PEER, is_final=True)


def _another_signature(signer: SigningKey, digest: bytes) -> bytes:
    """Sign an id with a number that is drawn, where `signatures.sign` makes it of what is signed."""
    secret = ec.derive_private_key(int.from_bytes(signer.secret(), "big"), ec.SECP256K1())
    r, s = decode_dss_signature(secret.sign(digest, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + min(s, ORDER - s).to_bytes(32, "big")


async def test_a_spoiled_twin_keeps_no_block_out() -> None:
    """Its proof, which is not in the id, is wrong, and it comes first; only its sender is charged."""
    async with parts() as node, asyncio.timeout(PATIENCE_S):
        _judged(node)
        node.core.is_current.set()
        signed = Signed()
        signed.go_on(12)
        node.net.answers = signed.answers()
        stranger = replace_account(b"\2" + b"s" * 32)
        block = trained(node.core.chain.tip, slot=10)
        for peer, one in (
            (stranger, _with_signature(block, bytes(64))),
            (PEER, block),
            (PEER, block),
        ):
            node.blocks.receive(peer, encode(one), block.id)
        assert node.blocks._queue.qsize() == 2
        running = asyncio.create_task(node.blocks.run())
        await until(lambda: node.core.chain.tip.id == block.id, "the good one")
        assert [who for who, _ in node.net.charged] == [stranger.account]
        # They have the good one, and who announced it is forgotten once anything came.
        assert node.missing == [PEER]
        running.cancel()


async def test_a_block_that_finds_no_place_is_asked_for_later() -> None:
    """Its sender is caught up with, as with one whose parent is not here."""
    async with parts() as node:
        node.blocks._queue = asyncio.Queue(1)
        for slot in (10, 11):
            block = trained(node.core.chain.tip, slot=slot)
            node.blocks.receive(PEER, encode(block), block.id)
        assert node.blocks._queue.full()
        assert node.missing == [PEER]


async def test_slots_of_a_block_are_had_of_whoever_gives_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If its sender does not, or says nothing at all."""
    monkeypatch.setattr(core_module, "_SILENT_S", 0.0)
    signed = Signed()
    signed.go_on(12)
    answers, other = signed.answers(), replace_account(b"\2" + b"o" * 32)
    for is_silent in (False, True):
        async with parts() as node, asyncio.timeout(PATIENCE_S):
            node.net.peers.append(other)
            _judged(node)

            async def request(
                who: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0
            ) -> bytes:
                if who == PEER.account:
                    if is_silent:  # noqa: B023 - awaited here
                        await asyncio.Event().wait()
                    return encode(Slots(()))
                return answers[kind](body)

            monkeypatch.setattr(node.net, "request", request)
            assert await node.blocks.take(trained(node.core.chain.tip, slot=10), PEER)
            assert node.net.charged == []


async def test_a_cheats_private_block_is_held_against_its_miner_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever has no seat in the committee passes it on in good faith: he could not execute it again."""

    def may_judge(*_: object) -> bool:
        return True

    monkeypatch.setattr(flow_blocks, "spec_of", _private)
    async with parts() as node:
        node.core.security = security = SecuritySystem("node")
        signed = Signed()
        signed.go_on(12)
        node.net.answers = signed.answers()
        monkeypatch.setattr(node.noises, "may_judge", may_judge)
        judged = _judged(node, InvalidBlock(RE_EXECUTION, "entries differ."))
        accused: list[bytes] = []
        node.blocks.on_cheat = lambda iteration: accused.append(iteration.miner)
        block = trained(node.core.chain.tip, slot=10)
        for _ in range(2):
            assert not await node.blocks.take(block, PEER)
        assert (judged, accused) == ([10], [account("miner")])
        assert node.core.chain.tip.height == 1
        named = {(one["type"], one["source_peer"]) for one in security["alerts"]}
        assert named == {("gradient_poisoning", account("miner").hex())}


async def test_a_private_block_is_judged_by_those_alone_who_have_certified_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A committee that comes into office cannot: it would wait for ever for noise that it was not shown."""
    monkeypatch.setattr(flow_blocks, "spec_of", _private)
    for name, slots in (("supervisor", [10]), ("heir", [])):
        async with parts() as node:
            node.core.account = account(name)
            signed = Signed()
            signed.go_on(12)
            node.net.answers = signed.answers()
            judged = _judged(node)
            assert await node.blocks.take(trained(node.core.chain.tip, slot=10), PEER)
            assert judged == slots


async def test_a_block_that_nobody_worked_for_is_charged() -> None:
    """So is another one than was asked for; neither of them waits for anything."""
    async with parts() as node:
        tip = node.core.chain.tip
        good = trained(tip, slot=10)
        cheap = trained(tip, slot=10, must_win=False)
        stranger = replace_account(b"\2" + b"s" * 32)
        for block, identifier in ((cheap, cheap.id), (good, bytes(32))):
            with pytest.raises(PeerFault, match="or not below its target") as fault:
                node.blocks.receive(stranger, encode(block), identifier)
            assert fault.value.points == 20
        with pytest.raises(PeerFault):
            node.blocks.receive(stranger, b"x", good.id)
        assert node.blocks._queue.empty()
        # What was asked for may be a good one, which others have.
        assert node.missing == [PEER] * 3


async def test_blocks_without_a_parent_here_do_not_fill_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their sender is caught up with, unless they are below the anchor; then nothing is said either."""
    async with parts() as node, asyncio.timeout(PATIENCE_S):
        _judged(node)
        node.core.is_current.set()
        signed = Signed()
        signed.go_on(40)
        node.net.answers = signed.answers()
        chain = node.core.chain
        row: list[Block] = []
        async with parts() as other:
            side = trained(other.core.chain.tip, slot=30)
            for slot in (10, 11, 12):
                row.append(trained(other.core.chain.tip, slot=slot))
                other.core.chain.add(row[-1], now_ms())
        assert all(above.header.parent == below.id for below, above in pairwise(row))
        node.blocks.receive(PEER, encode(row[2]), row[2].id)
        assert node.blocks._queue.empty()
        assert node.missing == [PEER]
        # In their order they wait for each other.
        for block in row:
            node.blocks.receive(PEER, encode(block), block.id)
        running = asyncio.create_task(node.blocks.run())
        await until(lambda: chain.tip.id == row[2].id, "three blocks")
        await node.blocks.settle_anchor(row[1].id, row[1].header.height)
        caplog.clear()
        node.blocks.receive(PEER, encode(side), side.id)
        assert node.blocks._queue.empty()
        assert (caplog.messages, node.missing, node.net.charged) == ([], [PEER], [])
        running.cancel()


async def test_a_block_whose_slots_are_not_to_be_had_waits() -> None:
    """And is held against nobody; it is taken when it comes again and they are."""
    async with parts() as node:
        _judged(node)
        block = trained(node.core.chain.tip, slot=10)
        assert not await node.blocks.take(block, PEER)
        signed = Signed()
        signed.go_on(12)
        node.net.answers = signed.answers()
        assert await node.blocks.take(block, PEER)
        assert not await node.blocks.take(block, PEER)
        assert node.net.charged == []
        assert node.core.chain.tip.id == block.id
        assert now_ms() > block.header.time_ms


async def test_an_anchor_that_contradicts_the_last_one_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Said once; one above the anchor that is not here yet is none."""
    async with parts() as node:
        await node.blocks.settle_anchor(node.core.chain.tip.id, 1)
        await node.blocks.settle_anchor(b"y" * 32, 2)
        for _ in range(2):
            await node.blocks.settle_anchor(b"x" * 32, 1)
        [error] = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
        assert (b"x" * 32).hex() in error
        assert "has signed two histories" in error
