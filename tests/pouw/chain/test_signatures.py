"""Signatures of accounts: the key's own, in one spelling."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from pocqueue.node.keys import ORDER
from pocqueue.pouw.chain.signatures import is_account, sign, verify
from pocqueue.pouw.errors import BadEncoding
from tests.pouw.support import account, key, signed, transfer

DIGEST = bytes(range(32))


def test_only_the_key_signs() -> None:
    """Another account, another content or one other bit is not signed by it."""
    signature = sign(key("a"), DIGEST)
    assert verify(account("a"), DIGEST, signature)
    assert not verify(account("b"), DIGEST, signature)
    assert not verify(account("a"), bytes(32), signature)
    assert not verify(account("a"), DIGEST, bytes([signature[0] ^ 1]) + signature[1:])


def test_a_message_has_one_signature() -> None:
    """The other s, which ECDSA takes as well, is refused."""
    signature = sign(key("a"), DIGEST)
    other = ORDER - int.from_bytes(signature[32:], "big")
    assert not verify(account("a"), DIGEST, signature[:32] + other.to_bytes(32, "big"))


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_junk_is_no_account_and_no_signature(junk: bytes, signature: bytes) -> None:
    """And nothing but False comes of it."""
    assert not verify(junk, DIGEST, signature)
    assert not verify(account("a"), DIGEST, signature)


def test_what_is_a_point() -> None:
    """x = 5 has no y on the curve, and 04 begins an uncompressed point."""
    assert is_account(account("a"))
    assert not is_account(bytes([2]) + (5).to_bytes(32, "big"))
    assert not is_account(b"\x04" + account("a")[1:])


def test_what_the_format_cannot_hold_is_not_signed() -> None:
    """A fee below nothing, say."""
    with pytest.raises(BadEncoding):
        signed("a", transfer("b"), fee=-1)


def test_keys_need_no_settings() -> None:
    """Users of the network do not wait for pydantic, nor for torch."""
    code = (
        "import sys, pocqueue.pouw.chain.mempool; print({'pydantic', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
