"""A supervisor signs nothing while it may have signed it before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocqueue.pouw.flow import readiness, sync
from pocqueue.pouw.flow.readiness import Readiness
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.requests import Slots
from tests.pouw.blocks import trained
from tests.pouw.flow.parts import PEER, Parts, Signed, follow, parts


def _said(caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelname == level]


async def _with_lost_slots(node: Parts) -> None:
    """Put a block of slot 10 into its chain, and slots before 5 alone into its store."""
    signed = Signed()
    signed.go_on(5)
    await follow(node, signed)
    chain = node.core.chain
    assert chain.add(trained(chain.tip, slot=10), chain.tip.header.time_ms + 10**6)


async def test_slots_that_its_chain_has_and_it_has_not_are_not_signed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says what to do, once; with the slots it goes on."""
    async with parts() as node:
        await _with_lost_slots(node)
        node.core.is_current.set()
        ready = Readiness(node.core, node.slots)
        ready._tell_at_s = dict.fromkeys(ready._tell_at_s, 0.0)
        for _ in range(2):
            assert not await ready.may_sign()
        [error] = _said(caplog, "ERROR")
        assert "slot 10" in error
        assert "slots before 5 alone are here" in error
        assert "Put the newest copy of slots.sqlite3 in place" in error
        whole = Signed()
        whole.go_on(11)
        await follow(node, whole)
        assert await ready.may_sign()


async def test_slots_that_a_peer_shows_are_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old copy of its slots is here: it stops when a peer shows newer ones, until it has them."""
    monkeypatch.setattr(sync, "_GATHER_S", 0.0)
    async with parts() as node:
        committee = await node.slots.committee()
        assert committee is not None
        monkeypatch.setattr(node.core, "account", committee.members[0])
        ready = Readiness(node.core, node.slots)
        signed = Signed()
        signed.go_on(5)
        await follow(node, signed)
        node.core.is_current.set()
        assert await ready.may_sign()
        signed.go_on(5)
        node.net.answers = {
            Kind.STATUS: lambda _: encode(signed.status()),
            Kind.SLOTS: lambda _: encode(Slots(())),
        }
        await node.sync._follow_slots(PEER)
        assert not await ready.may_sign()
        node.net.answers = signed.answers()
        await node.sync._follow_slots(PEER)
        assert await ready.may_sign()
        assert node.slots.newest[1] == 10


@pytest.mark.parametrize("has_past", [False, True])
async def test_it_waits_for_those_that_it_names(
    has_past: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bootstrap peers, or a chain, it is not alone at once, and says that it waits."""
    async with parts(is_founded=has_past) as node:
        node.net.peers.clear()
        if not has_past:
            assert Readiness(node.core, node.slots).may_act()
            config = replace(node.core.config, bootstrap_peers=[("127.0.0.1", 1)])
            monkeypatch.setattr(node.core, "config", config)
        ready = Readiness(node.core, node.slots)
        for _ in range(2):
            assert not ready.may_act()
        [warning] = _said(caplog, "WARNING")
        assert "linked to nobody yet. It waits 30 s" in warning
        monkeypatch.setattr(readiness, "_ALONE_S", 0.0)
        assert Readiness(node.core, node.slots).may_act()
        node.net.peers.append(PEER)
        assert not ready.may_act()
        node.core.is_current.set()
        assert ready.may_act()
