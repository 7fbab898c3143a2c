"""Signatures of accounts: raw r ‖ s of the project's secp256k1 keys, over 32-byte ids.

The keys and the rules (low s, deterministic) are `node.keys`; here are bytes instead of hex, and what was
found good once is remembered: a transaction is met in the mempool, in a candidate and in a block.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pocqueue.node.keys import ORDER, SigningKey
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.transactions import Body, Transaction

_ECDSA = ec.ECDSA(hashes.SHA256())


def account_of(key: SigningKey) -> bytes:
    """Return the account of a key: its compressed public point, 33 bytes."""
    return bytes.fromhex(key.public_hex)


def sign(key: SigningKey, digest: bytes) -> bytes:
    """Return a key's signature of an id, 64 bytes: r and s."""
    return bytes.fromhex(key.sign(digest))


def sign_transaction(
    key: SigningKey, network: bytes, sequence: int, fee: int, body: Body
) -> Transaction:
    """Return a transaction with its signature.

    Raises:
        BadEncoding: a field is out of the bounds of the format.
    """
    blank = Transaction(1, network, account_of(key), sequence, fee, body, bytes(64))
    signed = msgspec.structs.replace(blank, signature=sign(key, blank.id))
    return decode(encode(signed), Transaction)


def is_account(account: bytes) -> bool:
    """Say whether these 33 bytes are a point of the curve, which somebody can have the key of."""
    try:
        _parsed(account)
    except ValueError:
        return False
    return True


def verify(account: bytes, digest: bytes, signature: bytes) -> bool:
    """Say whether a signature is that account's for this id."""
    try:
        return _verified(account, digest, signature)
    except (ValueError, InvalidSignature):
        return False


# A wrong one raises and is not kept: whoever sends wrong ones pushes no good ones out.
@lru_cache(maxsize=32_768)
def _verified(account: bytes, digest: bytes, signature: bytes) -> bool:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    # One of the two s that verify is allowed, so that a message has one signature.
    if len(signature) != 64 or not (0 < r < ORDER and 0 < s <= ORDER // 2):
        raise InvalidSignature
    _parsed(account).verify(encode_dss_signature(r, s), digest, _ECDSA)
    return True


@lru_cache(maxsize=4096)
def _parsed(account: bytes) -> ec.EllipticCurvePublicKey:
    if len(account) != 33 or account[0] not in (2, 3):
        raise ValueError("no compressed point")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), account)
