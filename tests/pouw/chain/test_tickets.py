"""Tickets: stakes that are locked and come back, and the office that follows from them."""

from __future__ import annotations

import inspect
import sys

import msgspec
import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.records import EVALUATOR, MINER, SUPERVISOR, VERIFIER
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.chain.tickets import is_founding_allowed, num_lanes
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.wire.transactions import Release, TakeTicket
from tests.pouw.support import (
    GENESIS,
    account,
    after,
    coins,
    founded,
    funded,
    group_key,
    signed,
    ticket,
)

UNBONDING = GENESIS.parameters.unbonding_blocks


def test_a_stake_is_locked_and_comes_back() -> None:
    """As many blocks after its release as the genesis says, in that very block."""
    taken = signed("a", ticket(MINER, 150 * PAI), 1)
    state = after(funded("a"), taken)
    assert state.live_ticket(account("a"), MINER) == taken.id
    assert state.account(account("a")).balance == 1850 * PAI
    state = after(state, signed("a", Release(taken.id), 2))
    assert state.live_ticket(account("a"), MINER) is None
    for _ in range(UNBONDING - 1):
        state = after(state)
    assert state.account(account("a")).balance == 1850 * PAI
    assert state.ticket(taken.id) is not None
    state = after(state)
    assert state.account(account("a")).balance == 2000 * PAI
    assert state.ticket(taken.id) is None
    assert coins(state) == 2000 * PAI


def test_one_live_ticket_for_a_role() -> None:
    """Another role may be taken beside it, the same one again after its release."""
    first = signed("a", ticket(MINER), 1)
    state = after(funded("a"), first, signed("a", ticket(VERIFIER, 50 * PAI), 2))
    with pytest.raises(InvalidTransaction, match="ticket: its sender is a miner with"):
        after(state, signed("a", ticket(MINER), 3))
    again = signed("a", ticket(MINER), 4)
    state = after(state, signed("a", Release(first.id), 3), again)
    assert list(state.live_tickets(MINER)) == [again.id]


def test_a_miner_may_have_a_key() -> None:
    """Which seeds the noise of private tasks; it is in its ticket's record."""
    body = msgspec.structs.replace(ticket(SUPERVISOR, of="a"), role=MINER, seal_key=None)
    taken = signed("a", body, 1)
    record = after(funded("a"), taken).ticket(taken.id)
    assert record is not None
    assert (record.role, record.group_key) == (MINER, group_key("group").public_key)


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (ticket(4), "role"),
        (ticket(MINER, 100 * PAI - 1), "stake"),
        (ticket(EVALUATOR, 50 * PAI - 1), "stake"),
        (TakeTicket(MINER, 100 * PAI, b"{}", "host", None, None), "address"),
        (TakeTicket(MINER, 100 * PAI, b"{}", "host:70000", None, None), "address"),
        (TakeTicket(MINER, 100 * PAI, b"{}", "h\n:1", None, None), "address"),
        (TakeTicket(SUPERVISOR, 100 * PAI, b"{}", "", None, None), "group-key"),
        (msgspec.structs.replace(ticket(SUPERVISOR), role=MINER), "group-key"),
        (msgspec.structs.replace(ticket(SUPERVISOR, of="a"), role=MINER), "seal-key"),
        (msgspec.structs.replace(ticket(SUPERVISOR), possession=None, role=MINER), "group-key"),
        (
            msgspec.structs.replace(
                ticket(SUPERVISOR, of="a"),
                possession=group_key("other").prove_possession(account("a")),
            ),
            "group-key",
        ),
        (ticket(SUPERVISOR, of="victim"), "group-key"),
    ],
)
def test_a_ticket_that_nobody_could_take(body: TakeTicket, rule: str) -> None:
    """Whoever sends one is at fault."""
    with pytest.raises(InvalidTransaction) as refused:
        after(funded("a"), signed("a", body, 1))
    assert (refused.value.rule, refused.value.is_fault) == (rule, True)


def _taken_at(depth: int, body: TakeTicket) -> bool:
    """Say whether a ticket is taken by a caller that stands so many calls deeper."""
    if depth:
        return _taken_at(depth - 1, body)
    try:
        after(funded("a"), signed("a", body, 1))
    except InvalidTransaction:
        return False
    return True


@pytest.mark.parametrize("nested", [1, 900, 985, 1020])
def test_all_callers_say_the_same_of_preferences(nested: int) -> None:
    """They are bytes: how deep a parser gets depends on the stack, and a block would be good for some nodes only."""
    preferences = b'{"a":' + b"[" * nested + b"]" * nested + b"}"
    body = TakeTicket(MINER, 100 * PAI, preferences, "", None, None)
    free = sys.getrecursionlimit() - len(inspect.stack())
    assert {_taken_at(depth, body) for depth in (0, free // 4, free // 2)} == {True}


def test_a_ticket_says_where_its_node_listens() -> None:
    """By name, IPv4 or IPv6, if it listens at all."""
    for address in ("node.example:8000", "127.0.0.1:1", "[::1]:65535"):
        body = TakeTicket(MINER, 100 * PAI, b'{"task":1}', address, None, None)
        state = after(funded("a"), signed("a", body, 1))
        assert [record.address for record in state.live_tickets(MINER).values()] == [address]


def test_only_its_owner_gives_a_ticket_back_and_once() -> None:
    """Neither somebody else, nor a second time."""
    taken = signed("a", ticket(), 1)
    state = after(funded("a", "b"), taken)
    with pytest.raises(InvalidTransaction, match="no live ticket of its sender"):
        after(state, signed("b", Release(taken.id), 1))
    state = after(state, signed("a", Release(taken.id), 2))
    with pytest.raises(InvalidTransaction, match="no live ticket of its sender"):
        after(state, signed("a", Release(taken.id), 3))


def test_the_office_passes_on() -> None:
    """To the highest stake of those who are left; with nobody left, to nobody; epochs go on counting."""
    first = signed("a", ticket(SUPERVISOR, group="a", of="a"), 1)
    state = after(funded("a", "b", "c"), first)
    assert state.members == (account("a"),)
    # A higher stake is no reason to leave in the middle of an epoch.
    second = signed("b", ticket(SUPERVISOR, 200 * PAI, "b", "b"), 1)
    third = signed("c", ticket(SUPERVISOR, 300 * PAI, "c", "c"), 1)
    state = after(state, second, third)
    assert state.members == (account("a"),)
    state = after(state, signed("a", Release(first.id), 2))
    office, committee = state.office, state.committee_in_office
    assert office is not None
    assert committee is not None
    assert (office.epoch, office.ticket) == (1, third.id)
    assert (committee.members, committee.group_key) == (
        (account("c"),),
        group_key("c").public_key,
    )
    state = after(state, signed("b", Release(second.id), 2), signed("c", Release(third.id), 2))
    assert state.committee_in_office is None
    assert state.committee(1) == committee
    state = after(state, signed("a", ticket(SUPERVISOR, group="a", of="a"), 3))
    office = state.office
    assert office is not None
    assert office.epoch == 2


def test_equal_stakes_are_settled_by_the_id() -> None:
    """The smaller one, so that all nodes say the same."""
    both = [signed(name, ticket(SUPERVISOR, group=name, of=name), 1) for name in ("a", "b")]
    office = after(funded("a", "b"), *both).office
    assert office is not None
    assert office.ticket == min(taken.id for taken in both)


def _founds(state: State, passed_ms: int = 1000) -> bool:
    return is_founding_allowed(GENESIS.parameters, state, state.clock.time_ms + passed_ms)


def test_founding_ends_with_the_first_miner() -> None:
    """And begins again when nobody is in office."""
    assert _founds(GENESIS.state)
    state = after(funded("s", "m"), signed("s", supervisor := ticket(SUPERVISOR, of="s"), 1))
    assert supervisor.group_key
    assert _founds(state)
    assert not _founds(after(state, signed("m", ticket(), 1)))
    state = founded()
    taken = state.live_ticket(account("supervisor"), SUPERVISOR)
    assert taken is not None
    assert _founds(after(state, signed("supervisor", Release(taken), 2)))


def test_founding_begins_again_after_a_long_time_without_a_block() -> None:
    """Of 30 times what a block takes: tickets do not say that their miners are still there."""
    long_ms = 30 * GENESIS.parameters.block_ms
    assert [_founds(founded(), passed_ms) for passed_ms in (long_ms, long_ms + 1)] == [False, True]


def test_lanes_by_stake() -> None:
    """One for each 100 PAI, 1 to 16."""
    assert [num_lanes(stake * PAI) for stake in (50, 199, 200, 1600, 10_000)] == [1, 1, 2, 16, 16]
