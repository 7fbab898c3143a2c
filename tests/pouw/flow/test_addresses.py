"""Addresses in tickets: what a node says of itself, and whom it dials by them."""

from __future__ import annotations

import msgspec
import pytest

from pocqueue.pouw.chain.records import MINER, VERIFIER
from pocqueue.pouw.flow.addresses import own_address, staked
from tests.pouw.support import after, founded, signed, ticket


@pytest.mark.parametrize(
    ("host", "at", "said"),
    [
        ("localhost", "127.0.0.1", "127.0.0.1:8000"),
        ("::1", "::1", "[::1]:8000"),
        ("8.8.8.8", "8.8.8.8", "8.8.8.8:8000"),
        ("2001:4860:4860::8888", "2001:4860:4860::8888", "[2001:4860:4860::8888]:8000"),
        ("node.example.org", "10.0.0.3", "node.example.org:8000"),
        ("0.0.0.0", "0.0.0.0", ""),  # noqa: S104
        ("10.0.0.3", "10.0.0.3", ""),
    ],
)
def test_a_ticket_says_where_others_can_dial(host: str, at: str, said: str) -> None:
    """Nothing where that is not known, or only near."""
    assert own_address(host, [(at, 8000)]) == said


def test_a_node_that_does_not_listen_says_nothing() -> None:
    """It cannot be dialled."""
    assert own_address("localhost", []) == ""


def test_tickets_name_each_place_once() -> None:
    """Those on this machine for who listens there alone, the others for everybody else."""
    state = founded("a", "b", "c")
    for name, role, address in (
        ("a", MINER, "127.0.0.1:8001"),
        ("b", MINER, "node.example.org:8000"),
        ("c", MINER, "127.0.0.1:8001"),
        ("c", VERIFIER, "[::1]:70"),
    ):
        body = msgspec.structs.replace(ticket(role), address=address)
        sequence = state.account(signed(name, body).sender).sequence
        state = after(state, signed(name, body, sequence))
    assert sorted(staked(state, is_local=True)) == [("127.0.0.1", 8001), ("::1", 70)]
    assert staked(state, is_local=False) == [("node.example.org", 8000)]
