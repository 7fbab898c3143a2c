"""Addresses of accounts: as the network's own software computes them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, strategies as st

from pocqueue.deploy.facts.account import (
    BECH32,
    account_address,
    address_of,
    has_checksum,
    ripemd160,
)

#: Account and address of tests/deploy/fakes/inferenced, and a public key from upstream's own tests with its account.
KNOWN = {
    "f2d90df13bcb98e4922d4985efa9f2dfef79eb20": "gonka17tvsmufmewvwfy3dfxz7l20jmlhhn6eqsrsss9",
}
PUBLIC_KEY = "Au+a3CpMj6nqFV6d0tUlVajCTkOP3cxKnps+1/lMv5zY"


def test_addresses() -> None:
    """Of a public key, and of an account."""
    address = account_address(PUBLIC_KEY)
    # Upstream's test has it with another prefix: the digits before the checksum are the same.
    assert address.startswith("gonka1rk52j24xj9ej87jas4zqpvjuhrgpnd7h")
    assert has_checksum(address)
    for account, shown in KNOWN.items():
        assert address_of(bytes.fromhex(account)) == shown


@given(st.binary(min_size=20, max_size=20), st.integers(0, 37), st.sampled_from(BECH32))
def test_a_wrong_digit_is_seen(account: bytes, place: int, digit: str) -> None:
    """Wherever it stands."""
    address = address_of(account)
    assert has_checksum(address)
    begin = len("gonka1")
    wrong = f"{address[: begin + place]}{digit}{address[begin + place + 1 :]}"
    assert has_checksum(wrong) is (wrong == address)


@pytest.mark.parametrize(
    ("text", "hash_hex"),
    [
        ("", "9c1185a5c5e9fc54612808977ee8f548b2258d31"),
        ("abc", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
        (
            "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "12a053384a9c0c88e405a06c27dcf49ada62eb2b",
        ),
    ],
)
def test_ripemd160(text: str, hash_hex: str) -> None:
    """As its authors give it."""
    assert ripemd160(text.encode()).hex() == hash_hex


@given(st.binary(max_size=200))
def test_ripemd160_is_that_of_openssl(data: bytes) -> None:
    """Where that still has it."""
    try:
        other = hashlib.new("ripemd160", data)
    except ValueError:
        pytest.skip("this OpenSSL has no RIPEMD-160")
    assert ripemd160(data) == other.digest()
