"""Addresses have one spelling, and only the wallet itself signs in."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, strategies as st
from nacl.signing import SigningKey

from pocqueue.hosts import wallets
from pocqueue.hosts.errors import WalletProofError, WalletRefused

#: Points of small order and other spellings of them (https://eprint.iacr.org/2020/1244, table 1).
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@given(st.binary(min_size=32, max_size=32))
def test_every_key_has_one_address(key: bytes) -> None:
    """Written and read again it is the same, and no longer than 44 letters."""
    address = wallets.encode(key)
    assert wallets.public_key(address) == key
    assert 32 <= len(address) <= 44


@given(st.text(max_size=50) | st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabc", max_size=50))
def test_what_is_read_is_written_the_same(text: str) -> None:
    """Nothing else is an address: no other spelling, no blank before or behind."""
    try:
        key = wallets.public_key(text)
    except WalletRefused:
        return
    assert wallets.encode(key) == text


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("11111111111111111111111111111111", bytes(32)),
        ("So11111111111111111111111111111111111111112", None),
        ("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA", None),
    ],
)
def test_addresses_that_everybody_knows(text: str, data: bytes | None) -> None:
    """Those of Solana's own programs."""
    key = wallets.public_key(text)
    assert len(key) == 32
    assert data is None or key == data


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1" * 31,
        "1" * 33,
        "1" * 1_000_000,
        "z" * 44,
        " 11111111111111111111111111111111",
        "11111111111111111111111111111111\n",
        "1111111111111111111111111111111\u0661",
        "O0Il1111111111111111111111111111",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """It is said what one is, and of a long text not all is repeated."""
    with pytest.raises(WalletRefused, match=r"allowed: the address of a Solana wallet") as caught:
        wallets.public_key(text)
    assert len(str(caught.value)) < 250


def test_the_text_is_what_wallets_want() -> None:
    """Sign-In-With-Solana: host with port and origin of the page, times in UTC."""
    address = wallets.encode(bytes(range(32)))
    text = wallets.sign_in_text(
        "http://127.0.0.1:3001/app", address, "abc", issued_ms=0, expires_ms=300_000
    )
    assert text.splitlines() == [
        "127.0.0.1:3001 wants you to sign in with your Solana account:",
        address,
        "",
        wallets.STATEMENT,
        "",
        "URI: http://127.0.0.1:3001",
        "Version: 1",
        "Chain ID: mainnet",
        "Nonce: abc",
        "Issued At: 1970-01-01T00:00:00.000Z",
        "Expiration Time: 1970-01-01T00:05:00.000Z",
    ]


def test_a_signature_is_of_one_wallet_and_one_text() -> None:
    """Any other wallet, text or signature is refused."""
    key, other = SigningKey.generate(), SigningKey.generate()
    address = wallets.encode(bytes(key.verify_key))
    signature = key.sign(b"text").signature
    wallets.check_signature(address, "text", signature)
    for who, text, by in (
        (address, "texts", signature),
        (wallets.encode(bytes(other.verify_key)), "text", signature),
        (address, "text", bytes(64)),
        (address, "text", signature[:63]),
        (address, "text", bytes([signature[0] ^ 1]) + signature[1:]),
    ):
        with pytest.raises(WalletProofError, match="a hardware wallet signs another"):
            wallets.check_signature(who, text, by)


@pytest.mark.parametrize("key_hex", SMALL_ORDER)
def test_keys_of_small_order_sign_nothing(key_hex: str) -> None:
    """Of the first OpenSSL takes a forged signature for any text, which is why libsodium checks."""
    key = bytes.fromhex(key_hex)
    for forged in (bytes([1]) + bytes(63), key + bytes(32), bytes(64)):
        with pytest.raises(WalletProofError):
            wallets.check_signature(wallets.encode(key), "any text", forged)
    if key_hex == SMALL_ORDER[0]:
        Ed25519PublicKey.from_public_bytes(key).verify(bytes([1]) + bytes(63), b"any text")


def test_signatures_as_wallets_write_them() -> None:
    """In base64 or base58; what is neither is named."""
    signature = bytes(range(64))
    assert wallets.signature_bytes(base64.b64encode(signature).decode()) == signature
    assert wallets.signature_bytes(wallets.encode(signature)) == signature
    for odd in (
        "",
        "=",
        "a" * 88,
        "1" * 10**6,
        base64.b64encode(bytes(63)).decode(),
        "ü=",
        "é" * 20,
    ):
        with pytest.raises(WalletProofError, match="64 bytes in base64 or base58"):
            wallets.signature_bytes(odd)
