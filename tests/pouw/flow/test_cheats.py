"""Miners that cheat: every node refuses their blocks, says why, and keeps them out."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots.maps import SignMap, decode_map, encode_map
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.slots.weights import weights_end, weights_from
from pocqueue.pouw.training.messages import IterationResult
from pocqueue.pouw.training.trainer import Trainer
from tests.pouw.flow.nodes import begin, height, node, quick_genesis, running, until

_Cheat = Callable[[TaskSpec, bytes, IterationResult], IterationResult]


def _with_map(
    task: TaskSpec, theta: bytes, done: IterationResult, signs: SignMap
) -> IterationResult:
    """Return a result with another map, and the weights that follow from that."""
    return msgspec.structs.replace(
        done,
        map=encode_map(signs.indices, signs.signs),
        weights_end=weights_end(task, weights_from(theta), signs),
    )


def _random_map(task: TaskSpec, theta: bytes, done: IterationResult) -> IterationResult:
    rng = np.random.default_rng(random.randrange(2**32))  # noqa: S311 - no secret
    indices = np.sort(rng.choice(task.num_weights, 200, replace=False)).astype(np.int64)
    signs = rng.choice(np.array([-1, 1], np.int8), 200)
    return _with_map(task, theta, done, SignMap(indices, signs))


def _flipped(task: TaskSpec, theta: bytes, done: IterationResult) -> IterationResult:
    signs = decode_map(done.map, task.num_weights, task.cap)
    return _with_map(task, theta, done, SignMap(signs.indices, -signs.signs))


def _other_weights_end(task: TaskSpec, theta: bytes, done: IterationResult) -> IterationResult:
    return msgspec.structs.replace(done, weights_end=random.randbytes(32))  # noqa: S311


class _Cheater:
    """A trainer that changes what comes of each iteration, or what is asked for."""

    def __init__(self, trainer: Trainer, cheat: _Cheat | None, batch_share: int) -> None:
        self._trainer, self._cheat, self._batch_share = trainer, cheat, batch_share

    async def iterate(self, task: TaskSpec, theta: bytes, *rest: Any) -> IterationResult:
        """Compute less than is due, or change what came of it."""
        smaller = msgspec.structs.replace(task, batch_size=task.batch_size // self._batch_share)
        done = await self._trainer.iterate(smaller, theta, *rest)
        return done if self._cheat is None else self._cheat(task, theta, done)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def _accusations(one: PoUWNode, of: str) -> list[dict[str, Any]]:
    """Return alerts of a node about blocks or about messages."""
    assert one.security_system is not None
    alerts = one.security_system["alerts"]
    found = [alert for alert in alerts if alert["type"] == "gradient_poisoning"]
    return [alert for alert in found if alert["detail"].startswith(of)]


@pytest.mark.parametrize(
    ("cheat", "batch_share"),
    [(_random_map, 1), (_flipped, 1), (_other_weights_end, 1), (None, 8)],
    ids=["random map", "signs flipped", "other weights_end", "an eighth of the batch"],
)
async def test_what_was_not_trained_is_no_block(
    tmp_path: Path, cheat: _Cheat | None, batch_share: int
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
            core = miner._life._core  # type: ignore[union-attr]
            core.trainer = _Cheater(core.trainer, cheat, batch_share)
            await miner.start_mining()
            honest = (supervisor, verifier)
            await until(
                lambda: all(_accusations(one, "block") for one in honest), "an alert of both"
            )
            for one in honest:
                assert "re-execution" in _accusations(one, "block")[0]["detail"]
            assert height(supervisor) < height(miner)
            await until(lambda: not miner.views.peers(), "the end of its links")
            [block] = await supervisor.views.blocks(1)
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
            core = miner._life._core  # type: ignore[union-attr]
            core.trainer = _Cheater(core.trainer, _random_map, 1)
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
                core = miner._life._core  # type: ignore[union-attr]
                core.trainer = _Cheater(core.trainer, _random_map, 1)
                await miner.start_mining()
                await until(lambda: height(between) > height(supervisor), "a cheat's block")
                # Behind whatever it announced.
                link = between._life.network  # type: ignore[union-attr]
                account = bytes.fromhex(supervisor.get_status()["public_key"])
                await link.request(account, Kind.STATUS, b"")
                await until(lambda: height(between) > height(supervisor) + 1, "one more")
                assert not _accusations(supervisor, "block")
                assert [peer["node_id"] for peer in supervisor.views.peers()] == ["between"]
