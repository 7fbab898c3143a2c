"""BLS signatures on BLS12-381: keys in G1, signatures in G2, one signature for each key and digest.

It is the ciphersuite ``BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_`` of draft-irtf-cfrg-bls-signature, over
`pyblst`, which no other module imports. That library takes the point at infinity, with which anybody could sign
for the sum of all keys and nobody, and any integer as a scalar: both are refused here.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NoReturn, SupportsIndex, TypeVar

from pyblst import BlstP1Element, BlstP2Element, final_verify, miller_loop
from typing_extensions import override

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.known import KnownSignatures
from pocqueue.pouw.wire.hashes import tagged

#: Number of points of either group: secrets are 1 … ORDER - 1.
ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
SIGNATURE_BYTES, MIN_SEED_BYTES = 96, 32

# The generator of G1, compressed.
_GENERATOR = BlstP1Element.uncompress(
    bytes.fromhex(
        "97f1d3a73197d7942695638c4fa9ac0fc3688c4f9774b905a14e3a3f171bac58"
        "6c55e83ff97a1aeffb3af00adb22c6bb"
    )
)
_Point = TypeVar("_Point", BlstP1Element, BlstP2Element)
_known = KnownSignatures()
_INFINITY_1, _INFINITY_2 = BlstP1Element(), BlstP2Element()
# A message must not hash like a key that is proved to be somebody's.
_SIGNING = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
_POSSESSION = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A secret scalar and its public key. Equal if the public keys are; shows that one only.

    Args:
        scalar: 1 … ORDER - 1.

    Raises:
        SlotError: ``key``: the scalar is out of its range.
    """

    scalar: int = field(repr=False, compare=False)
    #: Compressed point of G1, 48 bytes.
    public_key: bytes = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.scalar < ORDER:
            raise SlotError("key", "A secret BLS key is a number from 1 to the group's order - 1.")
        object.__setattr__(self, "public_key", _GENERATOR.scalar_mul(self.scalar).compress())

    @classmethod
    def from_seed(cls, seed: bytes) -> SecretKey:
        """Derive a key from at least 32 secret bytes: KeyGen of the draft (HKDF-SHA256, section 2.3).

        Raises:
            SlotError: ``key``: the seed is shorter.
        """
        if len(seed) < MIN_SEED_BYTES:
            raise SlotError(
                "key", f"The seed of a BLS key has {len(seed)} bytes; allowed: at least 32."
            )
        salt, scalar = b"BLS-SIG-KEYGEN-SALT-", 0
        while scalar == 0:
            salt = hashlib.sha256(salt).digest()
            prk = hmac.digest(salt, seed + b"\x00", "sha256")
            first = hmac.digest(prk, b"\x00\x30\x01", "sha256")
            second = hmac.digest(prk, first + b"\x00\x30\x02", "sha256")
            scalar = int.from_bytes((first + second)[:48]) % ORDER
        return cls(scalar)

    def sign(self, digest: bytes) -> bytes:
        """Return the signature of a digest, 96 bytes: there is one only."""
        return self._multiplied(digest, _SIGNING)

    def prove_possession(self, account: bytes) -> bytes:
        """Return the proof that an account knows the secret of `public_key`, 96 bytes.

        It is of no use to another account: it signs H("possession", account ‖ public key).
        """
        return self._multiplied(_possession(account, self.public_key), _POSSESSION)

    def _multiplied(self, data: bytes, suite: bytes) -> bytes:
        return _written(_hashed(data, suite).scalar_mul(self.scalar))

    @override
    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("A SecretKey cannot be pickled or copied: its secret stays where it is.")


def verify(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Say whether a signature is that key's for this digest.

    Points that are no encoding, not of their group or infinity make it False.
    """
    one = (public_key, digest, signature)
    if one in _known:
        return True
    is_good = _verify(*one, _SIGNING)
    if is_good:
        _known.add(one)
    return is_good


def verify_all(public_key: bytes, signed: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Say whether all of these signatures are that key's, each for its digest; faster than one by one.

    Their sum is checked, with each but the first times a secret number of 64 bits: wrong ones cancel out with a
    chance of 2^-64.

    Args:
        public_key: of all of them.
        signed: digests, each with its signature; one or more.
    """
    signed = tuple(one for one in signed if (public_key, *one) not in _known)
    if len(signed) <= 1:
        return all(verify(public_key, *one) for one in signed)
    try:
        key = _read_key(public_key)
        points = [_read_signature(signature) for _, signature in signed]
    except ValueError:
        return False
    hashed = [_hashed(digest, _SIGNING) for digest, _ in signed]
    digests, signatures = hashed[0], points[0]
    for digest, point in zip(hashed[1:], points[1:], strict=True):
        factor = secrets.randbits(64)
        digests += digest.scalar_mul(factor)
        signatures += point.scalar_mul(factor)
    if not final_verify(miller_loop(key, digests), miller_loop(_GENERATOR, signatures)):
        return False
    for one in signed:
        _known.add((public_key, *one))
    return True


@functools.lru_cache(maxsize=256)
def verify_possession(public_key: bytes, account: bytes, proof: bytes) -> bool:
    """Say whether whoever knows the secret of the key has made the proof for this account."""
    return _verify(public_key, _possession(account, public_key), proof, _POSSESSION)


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the group's signature that shares of it make: Lagrange's interpolation at 0, in the exponent.

    Args:
        shares: signatures of one digest by the number of their share, 1 and up; as many as the threshold, or more.
            They are not checked: whoever gets a wrong one gets a signature that is not the group's.

    Raises:
        SlotError: ``signature``: one of them is no signature, or there is none.
    """
    if not shares:
        raise SlotError("signature", "there are no shares.")
    # Its weights are fractions of small numbers. Those over their common denominator are whole, and a few additions take a
    # tenth of the time of a power; one power is left, and none if that denominator is 1, as for most quorums of four.
    weights, denominator = _weights_at_0(tuple(shares))
    total = _INFINITY_2
    for (number, share), weight in zip(shares.items(), weights, strict=True):
        try:
            point = _read_signature(share)
        except ValueError as exc:
            raise SlotError("signature", f"share {number}: {exc}.") from None
        total += _times(point, weight) if weight > 0 else -_times(point, -weight)
    if denominator != 1:
        total = total.scalar_mul(pow(denominator, -1, ORDER))
    return _written(total)


def value_at(commitments: Sequence[bytes], number: int) -> bytes:
    """Return the public key of a polynomial's value: the sum of commitment k times number^k.

    Args:
        commitments: public keys of its coefficients, the constant first; one or more.
        number: of the share, 1 and up.

    Raises:
        SlotError: ``key``: one of them is no public key, or the sum is none.
    """
    # Horner's scheme: numbers are small, and a few additions take an eightieth of the time of powers of them.
    total = BlstP1Element()
    for commitment in reversed(commitments):
        total = _times(total, number) + _key_or_raise(commitment)
    return _compressed(total)


def add_keys(keys: Sequence[bytes]) -> bytes:
    """Return the public key of the sum of the keys' secrets.

    Raises:
        SlotError: ``key``: one of them is no public key, or the sum is none.
    """
    total = BlstP1Element()
    for key in keys:
        total += _key_or_raise(key)
    return _compressed(total)


@functools.lru_cache(maxsize=256)  # of a committee the same few make nearly every signature
def _weights_at_0(numbers: tuple[int, ...]) -> tuple[list[int], int]:
    """Return what a polynomial's values at these numbers count for in its value at 0, and what that sum is to be divided by."""
    weights = [
        math.prod(
            (Fraction(other, other - number) for other in numbers if other != number),
            start=Fraction(1),
        )
        for number in numbers
    ]
    denominator = math.lcm(*(weight.denominator for weight in weights))
    return [int(weight * denominator) for weight in weights], denominator


@functools.lru_cache(maxsize=64)  # a member signs the same that it then checks
def _hashed(data: bytes, suite: bytes) -> BlstP2Element:
    return BlstP2Element.hash_to_group(data, suite)


def _times(point: _Point, number: int) -> _Point:
    """Return a multiple of a point, 1 and up: doubled for each binary digit, and added where that is 1."""
    total = point
    for digit in f"{number:b}"[1:]:
        total += total
        if digit == "1":
            total += point
    return total


def _key_or_raise(key: bytes) -> BlstP1Element:
    try:
        return _read_key(key)
    except ValueError as exc:
        raise SlotError("key", f"{key.hex()[:16]} is no public key: {exc}.") from None


def _compressed(point: BlstP1Element) -> bytes:
    if point == _INFINITY_1:
        raise SlotError("key", "the sum is the point at infinity.")
    compressed: bytes = point.compress()
    return compressed


def _possession(account: bytes, public_key: bytes) -> bytes:
    return tagged("possession", account, public_key)


def _verify(public_key: bytes, data: bytes, signature: bytes, suite: bytes) -> bool:
    try:
        key, point = _read_key(public_key), _read_signature(signature)
    except ValueError:
        return False
    hashed = _hashed(data, suite)
    return bool(final_verify(miller_loop(key, hashed), miller_loop(_GENERATOR, point)))


def _read_signature(signature: bytes) -> BlstP2Element:
    made = _made(signature)
    # What is not of the group is refused.
    point = made[0] if made else BlstP2Element.uncompress(signature)
    if point == _INFINITY_2:
        raise ValueError("the point at infinity")
    return point


def _written(point: BlstP2Element) -> bytes:
    compressed: bytes = point.compress()
    _made(compressed)[:] = [point]
    return compressed


@functools.lru_cache(maxsize=64)
def _made(_signature: bytes) -> list[BlstP2Element]:
    """Return the point of a signature that was made here lately, as a list: a member combines, and checks, what it has made."""
    return []


@functools.lru_cache(maxsize=256)
def _read_key(public_key: bytes) -> BlstP1Element:
    key = BlstP1Element.uncompress(public_key)
    if key == _INFINITY_1:
        raise ValueError("the point at infinity")
    return key
