"""Transactions of a node's own: they keep their order, and one that comes to nothing holds up no other."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pocqueue.pouw.chain.chain import Change
from pocqueue.pouw.chain.records import SUPERVISOR
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import InvalidTransaction, TicketError
from pocqueue.pouw.flow.core import Tasks, now_ms
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.flow.tickets import TicketDesk
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.wire.transactions import (
    Complaint,
    Faucet,
    Release,
    TakeTicket,
    Transaction,
    Transfer,
)
from tests.pouw.blocks import sent as signed, trained
from tests.pouw.flow.nodes import begin, height, node, quick_genesis, running, until
from tests.pouw.flow.parts import Parts, parts
from tests.pouw.support import account, group_key


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


@pytest.fixture
async def own() -> AsyncIterator[Parts]:
    """A node of "node" on a chain with one block."""
    async with parts() as opened:
        yield opened


def _mined(own: Parts, *transactions: Transaction) -> Change:
    """Have the chain take a block with these; nobody hears of it yet."""
    return own.core.chain.add(trained(own.core.chain.tip, transactions), now_ms())


async def test_one_that_a_block_takes_meanwhile_is_not_refused(
    own: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before nor after the loop has heard of the block, nor while it is being sent."""
    orders = Orders(own.core)
    sent = orders.make(Faucet(), fee=0)
    change = _mined(own, sent)
    await orders.send(sent)
    assert sent.id in orders.own
    orders.changed(change.disconnected, change.connected)
    assert not orders.own

    bad = orders.make(Release(bytes(32)))
    tried = orders._tried

    def refused(transactions: list[Transaction]) -> dict[bytes, InvalidTransaction]:
        found = tried(transactions)
        orders._own.pop(bad.id)  # as `changed` does
        return found

    monkeypatch.setattr(orders, "_tried", refused)
    await orders.send(bad)
    assert not orders.own


async def test_what_another_process_has_sent_is_followed(own: Parts) -> None:
    """The next number is taken; whose number a block has used up for another one is given up."""
    change = _mined(own, signed("node", 0, Faucet()))
    orders = Orders(own.core)
    orders.changed(change.disconnected, change.connected)
    core, to = own.core, account("somebody")
    other = signed("node", 1, Transfer(to, 1), fee=1000)
    core.mempool.add(other, core.chain.tip.state, now_ms())
    sent = orders.make(Transfer(to, 2))
    assert sent.sequence == 2
    await orders.send(sent)
    assert sent.id in core.mempool

    late = orders.make(Transfer(to, 3))
    change = _mined(own, other, signed("node", 2, Transfer(to, 4)))
    orders.changed(change.disconnected, change.connected)
    assert list(orders.own) == [late.id]
    assert "has its number" in (orders.why_given_up(sent.id) or "")
    assert await orders.height_of(sent.id) is None
    assert await orders.height_of(other.id) == change.connected[0].header.height


async def test_why_one_was_given_up_is_known(own: Parts) -> None:
    """Of what no block can have any more, and of what lost its number; not of what a fork has brought back."""
    orders = Orders(own.core)
    bad = orders.make(Release(bytes(32)), fee=0)
    with pytest.raises(InvalidTransaction, match="ticket: "):
        await orders.send(bad)
    assert not orders.is_waiting(bad.id)
    assert "ticket: " in str(orders.why_given_up(bad.id))

    lost = orders.make(Faucet(), fee=0)
    assert orders.why_given_up(lost.id) is None
    other = trained(own.core.chain.tip, (lost,))
    change = _mined(own, signed("node", 0, Faucet(), fee=1))
    orders.changed(change.disconnected, change.connected)
    assert "has its number" in str(orders.why_given_up(lost.id))
    orders.changed((other,), ())
    assert (orders.is_waiting(lost.id), orders.why_given_up(lost.id)) == (True, None)


def _committee(one: PoUWNode) -> list[str]:
    found = one.get_status()["committee"]
    assert isinstance(found, list)
    return found


def _supervisors(one: PoUWNode) -> int:
    assert one._life is not None
    return len(one._life._core.chain.tip.state.live_tickets(SUPERVISOR))


async def test_a_ticket_is_given_back(tmp_path: Path) -> None:
    """By whoever has one in a block; the other supervisor makes the block that has it, and is in office then."""
    network = quick_genesis(tmp_path)
    first = node("first", NodeRole.SUPERVISOR, network)
    async with running(first):
        await first.start()
        with pytest.raises(TicketError, match="no block has a live ticket of this supervisor"):
            first.release_ticket()
        first.stake_and_register(100.0)
        await until(lambda: bool(_committee(first)), "the first one in office")
        before = _committee(first)
        second = node("second", NodeRole.SUPERVISOR, network, first)
        async with running(second):
            await begin(second, mine=False)
            await until(lambda: all(_supervisors(one) == 2 for one in (first, second)), "both")
            first.release_ticket()
            await until(lambda: _committee(first) == _committee(second) != before, "another one")
            with pytest.raises(TicketError, match="no block has a live ticket"):
                first.release_ticket()


async def test_the_number_of_what_is_withdrawn_is_free(own: Parts) -> None:
    """The next one of our own has it, so that nothing has to be paid for to fill the gap."""
    orders = Orders(own.core)
    over = orders.make(Complaint(bytes(32), 1), fee=0)
    orders.withdraw(lambda body: isinstance(body, Faucet))
    assert list(orders.own) == [over.id]
    orders.withdraw(lambda body: isinstance(body, Complaint))
    assert not orders.own
    assert orders.make(Faucet(), fee=0).sequence == over.sequence


@pytest.mark.parametrize(
    ("listening", "address"), [((), ""), ((("127.0.0.1", 8000),), "127.0.0.1:8000")]
)
async def test_a_ticket_names_where_its_node_is_reached(
    own: Parts, listening: tuple[tuple[str, int], ...], address: str
) -> None:
    """If it listens; see `own_address`."""
    own.net.listening = listening
    orders, tasks = Orders(own.core), Tasks("[node]")
    orders.make(Faucet(), fee=0)
    TicketDesk(own.core, orders, group_key("node"), tasks).take(100.0, {})
    await tasks.close()
    [named] = [one.body.address for one in orders.own.values() if isinstance(one.body, TakeTicket)]
    assert named == address
