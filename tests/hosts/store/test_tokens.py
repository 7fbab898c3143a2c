"""Tokens that wait for a machine: seen and revoked by their owner."""

from __future__ import annotations

import pytest

from pocqueue.hosts.errors import TokenRefused, UnknownToken
from pocqueue.hosts.store import HostStore
from tests.hosts.parts import facts, joined, new_wallet
from tests.support.waiting import Clock


def test_a_revoked_token_lets_nobody_in(store: HostStore, clock: Clock) -> None:
    """Its owner alone revokes it, once, and as long as it could be used; what is shown of it opens nothing."""
    wallet = new_wallet()
    joined(store, wallet=wallet)  # with a token that is used
    text = store.owners.issue_token(wallet, proven=True, from_address="192.0.2.1").token
    clock.now_s += 1
    other = store.owners.issue_token(wallet, proven=False).token
    second, first = store.tokens.open(wallet)
    assert (first.proven, first.address, second.proven) == (True, "192.0.2.1", False)
    assert first.created_ms < second.created_ms < first.expires_ms
    with pytest.raises(TokenRefused, match=r"^Invalid token$"):
        store.nodes.register(first.id, facts(), address="")
    for token_id, owner in ((first.id, new_wallet()), ("x", wallet), (text, wallet)):
        with pytest.raises(UnknownToken):
            store.tokens.revoke(token_id, wallet=owner)
    store.tokens.revoke(first.id, wallet=wallet)
    with pytest.raises(UnknownToken):
        store.tokens.revoke(first.id, wallet=wallet)
    with pytest.raises(TokenRefused, match=r"^Invalid token$"):
        store.nodes.register(text, facts(), address="")
    store.nodes.register(other, facts(), address="")
    assert store.tokens.open(wallet) == []
    late = store.owners.issue_token(wallet, proven=True)
    clock.now_s += 3600
    assert store.tokens.open(wallet) == []
    assert late.expires_ms <= store.now_ms()
