"""Each kind of alert is raised by what it is named for; those of audits and of the committee have tests beside theirs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pocqueue.pouw.chain.chain import RE_EXECUTION
from pocqueue.pouw.errors import InvalidBlock, PeerFault
from pocqueue.pouw.flow.life import Life
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.flow.slot_sync import SlotSync
from pocqueue.pouw.security import SecuritySystem
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.slots import SignedCertificate, SlotRecord
from tests.pouw.blocks import paid, trained
from tests.pouw.flow.parts import PEER, Parts, Signed, follow, parts
from tests.pouw.support import account, certify, group_key


def _watched(node: Parts) -> list[dict[str, Any]]:
    """Have a node watch; return its alerts, which grow."""
    security = node.core.security = SecuritySystem("node")
    return cast("list[dict[str, Any]]", security["alerts"])


@pytest.mark.parametrize("part", ["signature", "beacon"])
async def test_a_certificate_by_somebody_else_is_a_forged_history(part: str) -> None:
    """Whoever sends it is named, and charged."""
    async with parts() as node:
        alerts = _watched(node)
        await node.blocks.settle_anchor(node.core.chain.tip.id, node.core.chain.tip.height)
        good = Signed().certified()
        certificate = good.signed.certificate
        other = certify(group_key("other"), certificate)
        signature = other.signature if part == "signature" else good.signed.signature
        false = SignedCertificate(certificate, signature, other.beacon)
        with pytest.raises(PeerFault, match=f"a record: {part}"):
            await node.slots.receive_record(PEER, encode(SlotRecord(false, good.ids)))
        [alert] = alerts
        assert (alert["type"], alert["source_peer"]) == ("forged_history", PEER.account.hex())


async def test_what_comes_too_early_or_late_is_no_forged_history() -> None:
    """Nor a slot of another epoch: honest nodes are behind each other."""
    async with parts() as node:
        alerts = _watched(node)
        await node.blocks.settle_anchor(node.core.chain.tip.id, node.core.chain.tip.height)
        for changed in ({"epoch": 1}, {"slot": 7}):
            assert not await node.slots.receive_record(PEER, encode(Signed().certified(**changed)))
        assert not alerts


async def test_an_anchor_that_contradicts_the_one_before_is_a_forged_history() -> None:
    """The committee has signed two histories; it is told once."""
    async with parts() as node:
        alerts = _watched(node)
        chain = node.core.chain
        await node.blocks.settle_anchor(chain.tip.id, chain.tip.height)
        for _ in range(2):
            await node.blocks.settle_anchor(b"other" + bytes(27), 1)
        [alert] = alerts
        assert alert["type"] == "forged_history"


async def test_a_block_that_breaks_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an invalid block, or poisoning if training over says so; then its winner is accused."""
    async with parts() as node:
        alerts, cheats = _watched(node), list[bytes]()
        node.blocks.on_cheat = lambda iteration: cheats.append(iteration.id)
        block = trained(node.core.chain.tip)
        other = Block(block.header, (paid(2, "other"),), block.proof)
        with pytest.raises(PeerFault, match="a block"):
            await node.blocks.take(other, PEER)
        assert [one["type"] for one in alerts] == ["invalid_block"]
        assert not cheats

        async def is_here(*_: object) -> None:
            return None

        async def is_false(*_: object) -> str:
            raise InvalidBlock(RE_EXECUTION, "entries differ.")

        monkeypatch.setattr(SlotSync, "reach", is_here)
        monkeypatch.setattr(node.blocks, "train_over", is_false)
        with pytest.raises(PeerFault, match="re-execution"):
            await node.blocks.take(block, PEER)
        assert [one["type"] for one in alerts] == ["invalid_block", "gradient_poisoning"]
        assert isinstance(block.proof, Trained)
        assert cheats == [block.proof.winner.iteration.id]


async def test_one_number_spent_on_two_sides_of_a_fork() -> None:
    """By another transaction; the same one on both sides is none."""
    async with parts() as node:
        alerts, orders = _watched(node), Orders(node.core)
        tip = node.core.chain.tip
        first, second = trained(tip, (paid(2, "a"),)), trained(tip, (paid(2, "b"),))
        orders.changed((first,), (first,))
        assert not alerts
        orders.changed((first,), (second,))
        [alert] = alerts
        assert (alert["type"], alert["source_peer"]) == ("double_spend", account("miner").hex())


def test_a_flood_is_told_and_other_charges_are_not() -> None:
    """A link that sends more than its rate."""
    told: list[str] = []
    made_up = SimpleNamespace(_core=SimpleNamespace(alert=lambda kind, *_, **__: told.append(kind)))
    for reason in ("flood: it sends too many TX", "a block: target"):
        Life.charged(cast(Any, made_up), PEER, 20, reason, is_banned=False)
    assert told == ["flood"]


async def test_a_good_history_raises_no_alert() -> None:
    """Slots one after the other."""
    async with parts() as node:
        alerts, signed = _watched(node), Signed()
        signed.go_on(3)
        await follow(node, signed)
        assert not alerts
