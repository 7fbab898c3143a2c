"""A node's signature is good for one server, one node and one nonce."""

from __future__ import annotations

import pytest

from pocqueue.hosts.errors import NodeKeyError
from pocqueue.hosts.node_keys import check_answer, check_public_key, new_nonce
from pocqueue.hosts.wire import signed_text
from tests.hosts.test_wallets import SMALL_ORDER
from tests.support.node_key import NodeKey


def test_an_answer_is_of_use_once() -> None:
    """Another server, node, nonce or key: refused."""
    key, nonce = NodeKey.generate(), new_nonce()
    answer = key.sign(signed_text("hosts.example.com", "node", nonce))
    check_answer(key.public_hex, answer, signed_text("hosts.example.com", "node", nonce))
    for text in (
        signed_text("evil.example.com", "node", nonce),
        signed_text("hosts.example.com", "other", nonce),
        signed_text("hosts.example.com", "node", new_nonce()),
    ):
        with pytest.raises(NodeKeyError, match="another endpoint"):
            check_answer(key.public_hex, answer, text)
    with pytest.raises(NodeKeyError):
        check_answer(NodeKey.generate().public_hex, answer, signed_text("o", "node", nonce))
    for odd in ("", "0" * 127, answer.upper(), "g" * 128):
        with pytest.raises(NodeKeyError, match="128 lower-case hex digits"):
            check_answer(key.public_hex, odd, b"")


@pytest.mark.parametrize("key_hex", [*SMALL_ORDER, "", "0" * 63, "z" * 64, "ab" * 31, "ff" * 32])
def test_keys_that_a_node_cannot_have(key_hex: str) -> None:
    """Those of small order, for which anybody can sign, and what is no point at all."""
    with pytest.raises(NodeKeyError, match="no ed25519 public key"):
        check_public_key(key_hex)
