"""Whoever cheats loses the stake, whoever does not keeps it: from the audit to the block that has the evidence."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pocqueue.pouw.chain.records import MINER, SUPERVISOR, VERIFIER, Slash
from pocqueue.pouw.chaos.cheats import false_maps, two_values, two_votes
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.node import PoUWNode
from tests.pouw.flow.cheats import cheat, flipped, other_weights_end, random_map, say_twice
from tests.pouw.flow.founders import listed, until_in_office
from tests.pouw.flow.nodes import begin, node, quick_genesis, running, until

_WAYS: dict[str, dict[str, Any]] = {
    "random map": {"change": random_map},
    "signs flipped": {"change": flipped},
    "copied": {"copies": True},
    "an eighth of the batch": {"batch_share": 8},
    "bfloat16": {"is_rounded": True},
    "other weights_end": {"change": other_weights_end},
    "residual of the lap before": {"keeps_residual": True},
}

#: The one that is tried each time; the others take as long each.
_QUICK = ("random map",)


def _slashes(one: PoUWNode) -> dict[bytes, list[Slash]]:
    return one._life._core.chain.tip.state.slashes()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=() if name in _QUICK else pytest.mark.long, id=name)
        for name, how in _WAYS.items()
    ],
)
async def test_a_cheat_loses_its_stake(tmp_path: Path, how: dict[str, Any]) -> None:
    """Within 64 slots; a fifth of it goes to who has found it. Supervisor and verifier keep theirs."""
    network = quick_genesis(tmp_path, slot_ms=100)
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor)
        verifier = node("verifier", NodeRole.VERIFIER, network, supervisor)
        miner = node("miner", NodeRole.MINER, network, supervisor)
        async with running(verifier, miner):
            await begin(verifier, mine=False)
            await begin(miner, mine=False)
            cheat(miner, **how)
            first = supervisor.get_status()["slot"]
            await miner.start_mining()
            core = supervisor._life._core  # type: ignore[union-attr]
            culprit = bytes.fromhex(miner.get_status()["public_key"])
            await until(lambda: culprit in _slashes(supervisor), "the end of its stake")
            [slash] = _slashes(supervisor)[culprit]
            auditors = [one.get_status()["public_key"] for one in (supervisor, verifier)]
            assert slash.finder.hex() in auditors
            assert (slash.role, slash.stake, slash.bounty) == (MINER, 100_000_000, 20_000_000)
            state = core.chain.tip.state
            assert state.live_ticket(culprit, MINER) is None
            for account, role in zip(auditors, (SUPERVISOR, VERIFIER), strict=True):
                assert state.live_ticket(bytes.fromhex(account), role) is not None
            assert list(_slashes(supervisor)) == [culprit]
            block = core.chain.block_at(slash.height)
            assert block is not None
            assert block.header.slot - first <= 64


async def test_an_honest_network_accuses_nobody(tmp_path: Path) -> None:
    """Whatever is trained over, by beacon and by score."""
    network = quick_genesis(tmp_path, slot_ms=50)
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor)
        verifier = node("verifier", NodeRole.VERIFIER, network, supervisor)
        miners = [node(f"miner_{n}", NodeRole.MINER, network, supervisor) for n in range(2)]
        async with running(verifier, *miners):
            for one in (verifier, *miners):
                await begin(one, mine=one in miners)
            audits = [one._life._audits for one in (supervisor, verifier)]  # type: ignore[union-attr]
            await until(lambda: sum(one.num_done for one in audits) >= 30, "thirty audits")
            assert _slashes(supervisor) == {}
            for one in (supervisor, verifier):
                assert one.security_system is not None
                assert not one.security_system["alerts"]


async def test_who_says_two_things_in_a_slot_loses_its_stake(tmp_path: Path) -> None:
    """Whoever hears both shows them, with no committee being asked."""
    network = quick_genesis(tmp_path, slot_ms=100)
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor)
        miner = node("miner", NodeRole.MINER, network, supervisor)
        async with running(miner):
            await begin(miner)
            culprit = bytes.fromhex(miner.get_status()["public_key"])
            say_twice(miner)
            await until(lambda: culprit in _slashes(supervisor), "the end of its stake")
            [slash] = _slashes(supervisor)[culprit]
            assert slash.finder.hex() == supervisor.get_status()["public_key"]
            assert list(_slashes(supervisor)) == [culprit]


_OFFENCES: dict[str, tuple[Callable[[Core], object], int]] = {
    "two votes": (two_votes, SUPERVISOR),
    "two values": (two_values, SUPERVISOR),
    "false maps": (false_maps, MINER),
}


@pytest.mark.parametrize(
    ("how", "role"),
    [
        pytest.param(*one, marks=() if name == "two votes" else pytest.mark.long, id=name)
        for name, one in _OFFENCES.items()
    ],
)
async def test_a_committee_of_four_throws_a_cheat_out(
    tmp_path: Path, how: Callable[[Core], object], role: int
) -> None:
    """A member that contradicts itself on sight, a miner by the word of three; slots go on."""
    async with _four(tmp_path) as (supervisors, miner):
        await begin(miner, mine=role == MINER)
        cheating, watching = miner if role == MINER else supervisors[1], supervisors[2]
        how(cheating._life._core)  # type: ignore[union-attr]
        culprit = bytes.fromhex(cheating.get_status()["public_key"])
        # Several show it: a fork may end the stake by another one's evidence, until the block is final.
        await until(lambda: _is_final(watching, culprit), "the end of its stake")
        [slash] = _slashes(watching)[culprit]
        assert slash.role == role
        assert list(_slashes(watching)) == [culprit]
        [shown] = await watching.views.security.evidence(culprit.hex())
        assert shown["holds"]
        turn = _turn(watching)
        await until(lambda: _turn(watching) > turn + 3, "more slots")


@pytest.mark.long
async def test_half_of_a_committee_away_raises_the_alarm(tmp_path: Path) -> None:
    """At members and at others; while all are there nobody is told of anything."""
    async with _four(tmp_path) as (supervisors, miner):
        await begin(miner)
        everybody, turn = [*supervisors, miner], _turn(miner)
        await until(lambda: _turn(miner) > turn + 30, "thirty turns")
        for one in everybody:
            assert _alerts(one) == []
            found = await one.views.security.committee()
            assert [member["is_silent"] for member in found["members"]] == [False] * 4
        await supervisors[2].stop()
        await supervisors[3].stop()
        left = [supervisors[0], supervisors[1], miner]
        await until(lambda: all("byzantine_fault" in _alerts(one) for one in left), "the alarm")
        found = await miner.views.security.committee()
        gone = {supervisors[2].config.key, supervisors[3].config.key}
        silent = {one["account"] for one in found["members"] if one["is_silent"]}
        assert silent == {key.public_hex for key in gone if key is not None}
        assert _slashes(miner) == {}


@contextlib.asynccontextmanager
async def _four(folder: Path) -> AsyncIterator[tuple[list[PoUWNode], PoUWNode]]:
    """Run four supervisors that have founded a network and are in office, of whom the first mines, and stop a miner with
    them that is not started yet.
    """
    network, keys = listed(folder, slot_ms=100)
    first = node("s0", NodeRole.SUPERVISOR, network, key=keys[0])
    async with running(first):
        await begin(first)
        others = [
            node(f"s{place}", NodeRole.SUPERVISOR, network, first, key=keys[place])
            for place in range(1, 4)
        ]
        miner = node("miner", NodeRole.MINER, network, first)
        async with running(*others, miner):
            for one in others:
                await begin(one, mine=False)
            await until_in_office(keys, [first, *others])
            yield [first, *others], miner


def _is_final(one: PoUWNode, culprit: bytes) -> bool:
    """Say whether the block that ends somebody's stake is final by a node's chain."""
    chain = one._life._core.chain  # type: ignore[union-attr]
    return culprit in chain.anchor.state.slashes()


def _turn(one: PoUWNode) -> int:
    found = one.get_status()["turn"]
    assert isinstance(found, int)
    return found


def _alerts(one: PoUWNode) -> list[str]:
    assert one.security_system is not None
    return [alert["type"] for alert in one.security_system["alerts"]]
