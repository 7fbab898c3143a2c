"""Wallets of Solana: their addresses, the text that signing in takes, and the check of its signature.

An address is the base58 text of an ed25519 public key of 32 bytes. It has one spelling: what does not come out the
same when it is written again is refused, as two spellings of one wallet would be two wallets here.
"""

from __future__ import annotations

import base64
import datetime
from typing import Final
from urllib.parse import urlsplit

from pocqueue.hosts.errors import WalletProofError, WalletRefused
from pocqueue.words import shown

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES: Final = {letter: value for value, letter in enumerate(_ALPHABET)}
_ADDRESS_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
#: Longest base58 text of 32 and of 64 bytes.
_MAX_ADDRESS: Final = 44
_MAX_SIGNATURE: Final = 88
STATEMENT: Final = (
    "Sign in to see your GPU nodes and their earnings. This costs nothing and moves nothing."
)


def encode(data: bytes) -> str:
    """Write bytes in base58, as Bitcoin and Solana do: each zero byte at the front is a ``1``."""
    number, letters = int.from_bytes(data, "big"), ""
    while number:
        number, value = divmod(number, 58)
        letters = _ALPHABET[value] + letters
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + letters


def decode(text: str, num_bytes: int) -> bytes | None:
    """Read base58 of so many bytes; None: it is not that, or not in its one spelling.

    Args:
        text: short; the time is quadratic in its length.
    """
    number = 0
    for letter in text:
        if (value := _VALUES.get(letter)) is None:
            return None
        number = 58 * number + value
    if number.bit_length() > 8 * num_bytes:
        return None
    data = number.to_bytes(num_bytes, "big")
    return data if encode(data) == text else None


def public_key(address: str) -> bytes:
    """Return the public key that an address stands for, 32 bytes.

    Raises:
        WalletRefused: it is no address.
    """
    data = decode(address, _ADDRESS_BYTES) if len(address) <= _MAX_ADDRESS else None
    if data is None:
        raise WalletRefused(
            f"wallet is {shown('wallet', address)}; allowed: the address of a Solana wallet, which is base58 "
            "of 32 bytes."
        )
    return data


def sign_in_text(
    public_url: str, address: str, nonce: str, *, issued_ms: int, expires_ms: int
) -> str:
    """Return the text that a wallet is to sign: Sign-In-With-Solana, version 1.

    Wallets refuse it unless the host in it is that of the page and the URI is the page's origin.

    Args:
        public_url: of the page, such as ``https://hosts.example.com``.
        address: of the wallet.
        nonce: letters and digits that are used once.
        issued_ms, expires_ms: Unix milliseconds.
    """
    parts = urlsplit(public_url)
    return (
        f"{parts.netloc} wants you to sign in with your Solana account:\n{address}\n\n{STATEMENT}\n\n"
        f"URI: {parts.scheme}://{parts.netloc}\nVersion: 1\nChain ID: mainnet\nNonce: {nonce}\n"
        f"Issued At: {_iso(issued_ms)}\nExpiration Time: {_iso(expires_ms)}"
    )


def signature_bytes(text: str) -> bytes:
    """Read a signature as wallets and pages write it: base58, or base64 with its ``==``.

    Raises:
        WalletProofError: it is neither, of 64 bytes.
    """
    data = None
    if len(text) <= _MAX_SIGNATURE:
        if text.endswith("="):
            try:
                data = base64.b64decode(text, validate=True)
            except ValueError:
                data = None
        else:
            data = decode(text, _SIGNATURE_BYTES)
    if data is None or len(data) != _SIGNATURE_BYTES:
        raise WalletProofError("signature is none: allowed are 64 bytes in base64 or base58.")
    return data


def check_signature(address: str, text: str, signature: bytes) -> None:
    """See that a wallet has signed a text. Keys of small order, which sign everything, are refused.

    Args:
        signature: 64 bytes, ed25519.

    Raises:
        WalletRefused: the address is none.
        WalletProofError: it has not.
    """
    # libsodium and not `cryptography`: OpenSSL takes a forged signature of a key of small order.
    from nacl.exceptions import CryptoError
    from nacl.signing import VerifyKey

    key = public_key(address)
    try:
        VerifyKey(key).verify(text.encode(), signature)
    except (CryptoError, ValueError):
        raise WalletProofError(
            "The signature is not this wallet's for the text that it was given. Ask for a new text and sign "
            "that; a hardware wallet signs another one and cannot sign in here."
        ) from None


def _iso(at_ms: int) -> str:
    at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
