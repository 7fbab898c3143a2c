"""Accounts of the chain: the address that belongs to a public key, by SHA-256, RIPEMD-160 and bech32 (BIP 173)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator

#: Of addresses on this chain.
PREFIX = "gonka"
#: Digits of bech32.
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def account_address(public_key: str) -> str:
    """Return the address of the account that a public key belongs to.

    Args:
        public_key: base64 of its 33 bytes.

    >>> account_address("Au+a3CpMj6nqFV6d0tUlVajCTkOP3cxKnps+1/lMv5zY")
    'gonka1rk52j24xj9ej87jas4zqpvjuhrgpnd7h3feqmm'
    """
    return address_of(ripemd160(hashlib.sha256(base64.b64decode(public_key)).digest()))


def address_of(account: bytes) -> str:
    """Return the address of an account.

    Args:
        account: its 20 bytes.
    """
    digits = list(_regrouped(account))
    check = _polymod([*_prefix_values(), *digits, *[0] * 6]) ^ 1
    digits += [check >> 5 * (5 - n) & 31 for n in range(6)]
    return f"{PREFIX}1" + "".join(BECH32[digit] for digit in digits)


def has_checksum(address: str) -> bool:
    """Return whether the last six digits of an address are those of the others; it begins with the prefix."""
    digits = (BECH32.index(c) for c in address.rpartition("1")[2])
    return _polymod([*_prefix_values(), *digits]) == 1


def _prefix_values() -> list[int]:
    return [ord(c) >> 5 for c in PREFIX] + [0] + [ord(c) & 31 for c in PREFIX]


def _regrouped(data: bytes) -> Iterator[int]:
    """Yield the bits of bytes, five at a time; 20 bytes leave none over."""
    bits = int.from_bytes(data, "big")
    for place in reversed(range(0, len(data) * 8, 5)):
        yield bits >> place & 31


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATORS):
            check ^= generator if top >> bit & 1 else 0
    return check


# RIPEMD-160 as its authors give it (Dobbertin, Bosselaers, Preneel, 1996): many builds of OpenSSL 3.0 have it no more.
# Each table has five rounds of sixteen steps, a hex digit a step.
_WORDS = (
    "0123456789abcdef74d1a6f3c0952eb83ae49f812706db5c19ba08c4d37fe56240597c2ae138b6fd",
    "5e7092b4d6f81a3c6b370d5aef8c4912f5137e69b8c2a04d86413bf05c2d97aecfa4158762de039b",
)
_SHIFTS = (
    "befc5879bdef6798768db97f7cf9b7dcbd67e9dfe8d65c75bcefef989e56865c9f5b68dc5cdeb856",
    "899bdff5778beec69df7c89b77c76fdb97fb866ecd5edd75f58bee6e69c9c5f885c9c5e68d65fdbb",
)
_CONSTANTS = (
    (0, 0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xA953FD4E),
    (0x50A28BE6, 0x5C4DD124, 0x6D703EF3, 0x7A6D76E9, 0),
)


def ripemd160(data: bytes) -> bytes:
    """Return the RIPEMD-160 hash of some bytes: 20 of them."""
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + (8 * len(data)).to_bytes(8, "little")
    state = [0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0]
    for at in range(0, len(padded), 64):
        block = padded[at : at + 64]
        words = [int.from_bytes(block[n : n + 4], "little") for n in range(0, 64, 4)]
        left, right = _line(0, state, words), _line(1, state, words)
        state = [
            (state[(n + 1) % 5] + left[(n + 2) % 5] + right[(n + 3) % 5]) & 0xFFFFFFFF
            for n in range(5)
        ]
    return b"".join(word.to_bytes(4, "little") for word in state)


def _line(side: int, state: list[int], words: list[int]) -> list[int]:
    """Return the state after one of the two lines of eighty steps."""
    a, b, c, d, e = state
    for step in range(80):
        word = words[int(_WORDS[side][step], 16)]
        shift = int(_SHIFTS[side][step], 16)
        mixed = _mixed(step // 16 if side == 0 else 4 - step // 16, b, c, d)
        total = (a + mixed + word + _CONSTANTS[side][step // 16]) & 0xFFFFFFFF
        total = ((total << shift | total >> 32 - shift) + e) & 0xFFFFFFFF
        a, b, c, d, e = e, total, b, (c << 10 | c >> 22) & 0xFFFFFFFF, d
    return [a, b, c, d, e]


def _mixed(kind: int, x: int, y: int, z: int) -> int:
    if kind == 0:
        return x ^ y ^ z
    if kind == 1:
        return x & y | ~x & z
    if kind == 2:
        return (x | ~y & 0xFFFFFFFF) ^ z
    if kind == 3:
        return x & z | y & ~z
    return x ^ (y | ~z & 0xFFFFFFFF)
