"""Transactions of a node's own: they keep their order, and one that comes to nothing holds up no other."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.wire.transactions import Release, Transfer
from tests.pouw.flow.nodes import begin, height, node, quick_genesis, running, until
from tests.pouw.support import account


async def test_one_that_comes_to_nothing_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A ticket that is not there is released, then coins are sent: they arrive."""
    network = quick_genesis(tmp_path)
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor, mine=False)
        await until(lambda: height(supervisor) > 0, "the first block")
        orders = supervisor._life._orders  # type: ignore[union-attr]
        orders.make(Release(bytes(32)))
        sent = orders.make(Transfer(account("somebody"), 5_000_000))
        with caplog.at_level(logging.WARNING):
            await orders.send(sent)
        state = supervisor._life._core.chain.tip  # type: ignore[union-attr]
        await until(
            lambda: supervisor._life._core.chain.tip.height > state.height,  # type: ignore[union-attr]
            "a block",
        )
        found = await supervisor.views.account(account("somebody").hex())
        assert found["balance"] == 5.0
        assert not orders.own
