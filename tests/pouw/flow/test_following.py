"""Whom a node follows, and whom it asks beside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from pocqueue.pouw.errors import LinkError, SlotError
from pocqueue.pouw.flow import core as core_module
from pocqueue.pouw.flow.following import Following, Outcome, of_one
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from tests.pouw.flow.nodes import until
from tests.pouw.flow.parts import Parts, parts, replace_account
from tests.support.waiting import PATIENCE_S

_PEERS = [replace_account(bytes([2]) + bytes([place]) * 32) for place in range(4)]
_LONG_S = 1000.0


class _Asked:
    """Peers that answer with their account, fail, or say nothing until they are let go."""

    def __init__(self, node: Parts, silent: list[PeerInfo], failing: list[PeerInfo]) -> None:
        self.node = node
        self.silent = {one.account for one in silent}
        self.failing = {one.account for one in failing}
        self.order: list[PeerInfo] = []
        self.is_over = asyncio.Event()
        node.net.peers[:] = _PEERS
        node.net.request = self.request  # type: ignore[method-assign]

    async def request(self, who: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0) -> bytes:
        if who in self.failing:
            raise LinkError("it does not answer")
        if who in self.silent:
            await self.is_over.wait()
        return who

    async def get(self, peer: PeerInfo) -> bytes:
        self.order.append(peer)
        return await self.node.core.ask(peer, Kind.STATUS)

    async def follow(self, peer: PeerInfo) -> Outcome:
        try:
            await self.get(peer)
        except LinkError:
            return Outcome(_LONG_S, has_failed=True)
        return Outcome(_LONG_S)


@contextlib.asynccontextmanager
async def _asked(
    silent: list[PeerInfo] | None = None, failing: list[PeerInfo] | None = None
) -> AsyncIterator[_Asked]:
    async with parts() as node, asyncio.timeout(PATIENCE_S):
        yield _Asked(node, silent or [], failing or [])


@contextlib.asynccontextmanager
async def _following(asked: _Asked) -> AsyncIterator[Following]:
    following = Following(asked.node.core, asked.follow)
    running = asyncio.create_task(following.run())
    try:
        yield following
    finally:
        assert not running.done(), running.exception()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert not following._followed


async def test_one_that_answers_is_enough() -> None:
    """The others are not asked."""
    async with _asked() as asked:
        assert await of_one(asked.node.core, _PEERS, asked.get) == _PEERS[0].account
        assert asked.order == _PEERS[:1]


async def test_the_next_one_is_asked_after_one_that_failed() -> None:
    """The last failure counts if all have; what is no failure of a peer ends it."""
    async with _asked(failing=_PEERS[:2]) as asked:
        assert await of_one(asked.node.core, _PEERS, asked.get) == _PEERS[2].account
        with pytest.raises(LinkError, match="does not answer"):
            await of_one(asked.node.core, _PEERS[:2], asked.get)
        with pytest.raises(LinkError, match="nobody has a link"):
            await of_one(asked.node.core, [], asked.get)

        async def broken(peer: PeerInfo) -> bytes:
            if peer is _PEERS[0]:
                raise SlotError("theta", "no")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await of_one(asked.node.core, _PEERS, broken)


async def test_the_next_one_is_asked_beside_one_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which is still heard if nobody else has an answer; in the end nobody is waited for."""
    monkeypatch.setattr(core_module, "_SILENT_S", 0.0)
    async with _asked(silent=_PEERS[:1]) as asked:
        assert await of_one(asked.node.core, _PEERS, asked.get) == _PEERS[1].account
        assert asked.node.core._asked == {}
        asked.failing = {one.account for one in _PEERS[1:]}
        getting = asyncio.create_task(of_one(asked.node.core, _PEERS, asked.get))
        await until(lambda: asked.order[2:] == _PEERS, "all others")
        asked.is_over.set()
        assert await getting == _PEERS[0].account


async def test_one_is_followed_at_a_time_unless_it_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then somebody else is, though nobody wished for that."""
    async with _asked(silent=_PEERS[:1]) as asked, _following(asked) as following:
        following.wish(_PEERS[0])
        await until(lambda: len(asked.order) == 1, "the first one")
        following.wish(_PEERS[1])
        asked.is_over.set()
        await until(lambda: len(asked.order) == 2, "the second one, after it")
    monkeypatch.setattr(core_module, "_SILENT_S", 0.0)
    async with (
        _asked(silent=_PEERS[:2], failing=_PEERS[2:3]) as asked,
        _following(asked) as following,
    ):
        following.wish(_PEERS[0])
        await until(lambda: _PEERS[3] in asked.order, "the one that answers")
        assert asked.order[0] == _PEERS[0]
        assert len(asked.order) == len(set(asked.order))


async def test_who_is_followed_is_followed_again_only_after_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wish meanwhile is kept; one that had nothing new rests, unless there is a reason."""
    monkeypatch.setattr(core_module, "_SILENT_S", 0.0)
    async with _asked(silent=_PEERS[:1]) as asked, _following(asked) as following:
        asked.node.net.peers[:] = _PEERS[:1]
        following.wish(_PEERS[0])
        await until(lambda: len(asked.order) == 1, "the first time")
        following.wish(_PEERS[0])
        asked.is_over.set()
        await until(lambda: _PEERS[0].account in following._rests, "its end")
        assert asked.order == _PEERS[:1]
        following.wish_now(_PEERS[0])
        await until(lambda: len(asked.order) == 2, "the second time")
