"""Miners that cheat: every node refuses their blocks, says why, and keeps them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.p2p.frames import Kind
from tests.pouw.flow.cheats import Change, cheat, flipped, other_weights_end, random_map
from tests.pouw.flow.nodes import begin, height, node, quick_genesis, running, until


def _accusations(one: PoUWNode, of: str) -> list[dict[str, Any]]:
    """Return alerts of a node about blocks or about messages."""
    assert one.security_system is not None
    alerts = one.security_system["alerts"]
    found = [alert for alert in alerts if alert["type"] == "gradient_poisoning"]
    return [alert for alert in found if alert["detail"].startswith(of)]


@pytest.mark.parametrize(
    ("change", "batch_share"),
    [
        pytest.param(random_map, 1, id="random map"),
        pytest.param(flipped, 1, id="signs flipped", marks=pytest.mark.long),
        pytest.param(other_weights_end, 1, id="other weights_end", marks=pytest.mark.long),
        pytest.param(None, 8, id="an eighth of the batch"),
    ],
)
async def test_what_was_not_trained_is_no_block(
    tmp_path: Path, change: Change | None, batch_share: int
) -> None:
    """Supervisor and verifier refuse it by re-execution, tell so, and end their links with the miner."""
    network = quick_genesis(tmp_path)
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor, mine=False)
        verifier = node("verifier", NodeRole.VERIFIER, network, supervisor)
        miner = node("miner", NodeRole.MINER, network, supervisor)
        async with running(verifier, miner):
            await begin(verifier, mine=False)
            await begin(miner, mine=False)
            cheat(miner, change, batch_share=batch_share)
            await miner.start_mining()
            honest = (supervisor, verifier)
            await until(
                lambda: all(_accusations(one, "block") for one in honest), "an alert of both"
            )
            for one in honest:
                assert "re-execution" in _accusations(one, "block")[0]["detail"]
            await until(lambda: not miner.views.peers(), "the end of its links")
            # Others may have founded as many meanwhile, so that heights say nothing.
            for block in await supervisor.views.blocks(1000):
                assert block["proof"].startswith("founding")


async def test_an_audit_finds_who_wins_nothing(tmp_path: Path) -> None:
    """The beacon chooses one of eight messages; nobody else hears of it by a block."""
    network = quick_genesis(tmp_path, first_target_bits=190)
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor, mine=False)
        miner = node("miner", NodeRole.MINER, network, supervisor)
        async with running(miner):
            await begin(miner, mine=False)
            cheat(miner, random_map)
            await miner.start_mining()
            await until(lambda: bool(_accusations(supervisor, "message")), "an accusation")
            alert = _accusations(supervisor, "message")[0]
            assert alert["source_peer"] == miner.get_status()["public_key"]
            assert "re-execution" in alert["detail"]


async def test_a_peer_is_not_blamed_for_what_it_does_not_check(tmp_path: Path) -> None:
    """It takes a cheat's block, as it trains over none, and tells nobody of it: its link stays."""
    network = quick_genesis(tmp_path, first_target_bits=255)
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor, mine=False)
        between = node("between", NodeRole.PEER, network, supervisor)
        async with running(between):
            await between.start()
            miner = node("miner", NodeRole.MINER, network, between, max_peers=1)
            async with running(miner):
                await begin(miner, mine=False)
                cheat(miner, random_map)
                await miner.start_mining()
                await until(lambda: height(between) > height(supervisor), "a cheat's block")
                # Behind whatever it announced.
                link = between._life.network  # type: ignore[union-attr]
                account = bytes.fromhex(supervisor.get_status()["public_key"])
                await link.request(account, Kind.STATUS, b"")
                await until(lambda: height(between) > height(supervisor) + 1, "one more")
                assert not _accusations(supervisor, "block")
                assert [peer["node_id"] for peer in supervisor.views.peers()] == ["between"]
