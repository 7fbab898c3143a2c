"""Signatures of accounts: the key's own, in one spelling."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pocqueue.errors import SignatureError
from pocqueue.node.keys import ORDER, SigningKey, verify_signature
from pocqueue.pouw.chain.signatures import is_account, sign, verify
from pocqueue.pouw.errors import BadEncoding
from tests.pouw.support import account, key, signed, transfer

DIGEST = bytes(range(32))
GOOD = sign(key("a"), DIGEST)
R, S = (int.from_bytes(GOOD[at : at + 32], "big") for at in (0, 32))


def judged_by_both(public: bytes, digest: bytes, signature: bytes) -> bool:
    """Return what the network's library and `node.keys`, which has OpenSSL below it, say alike of a signature."""
    try:
        verify_signature(public.hex(), digest, signature.hex())
    except SignatureError:
        is_good = False
    else:
        is_good = True
    assert verify(public, digest, signature) is is_good
    return is_good


@given(st.integers(1, ORDER - 1), st.binary(min_size=32, max_size=32))
def test_signatures_are_the_keys_own(number: int, digest: bytes) -> None:
    """Byte for byte those that `node.keys` makes: two libraries, one deterministic signature."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "key")
        path.touch(0o600)
        path.write_text(f"{number:064x}")
        one = SigningKey.load(path)
    signature = sign(one, digest)
    assert signature.hex() == one.sign(digest)
    assert judged_by_both(bytes.fromhex(one.public_hex), digest, signature)


def test_both_libraries_judge_alike() -> None:
    """Whatever r and s are; so nobody can part those who check with one from those who check with the other."""
    wrong = [
        *[(R, other) for other in (0, 1, ORDER - S, ORDER // 2 + 1, ORDER, 2**256 - 1)],
        *[(other, S) for other in (0, 1, ORDER - 1, ORDER, ORDER + 1, 2**256 - 1)],
    ]
    assert judged_by_both(account("a"), DIGEST, GOOD)
    for r, s in wrong:
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        assert not judged_by_both(account("a"), DIGEST, signature), (r, s)


def test_only_a_compressed_point_has_signatures() -> None:
    """02 and 03 begin one, of which one is the account's."""
    for prefix in range(256):
        public = bytes([prefix]) + account("a")[1:]
        assert judged_by_both(public, DIGEST, GOOD) is (public == account("a")), prefix


@pytest.mark.parametrize("x", [0, 5, 2**256 - 2**32 - 977, 2**256 - 1])
def test_what_is_no_point_has_no_signatures(x: int) -> None:
    """x = 0 and 5 have no y on the curve; the field's order and more are no numbers of it."""
    assert not judged_by_both(b"\x02" + x.to_bytes(32, "big"), DIGEST, GOOD)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_has_its_length(length: int) -> None:
    """64 bytes, none fewer and none more."""
    assert not judged_by_both(account("a"), DIGEST, (GOOD + GOOD)[:length])


@given(st.binary(min_size=64, max_size=64), st.binary(min_size=32, max_size=32))
def test_random_signatures_are_judged_alike(signature: bytes, digest: bytes) -> None:
    """None of them is good."""
    assert not judged_by_both(account("a"), digest, signature)


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
