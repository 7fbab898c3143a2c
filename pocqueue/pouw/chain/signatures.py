"""Signatures of accounts: raw r ‖ s of the project's secp256k1 keys, over 32-byte ids.

The keys and the rules (SHA-256 of what is signed, low s, RFC 6979) are `node.keys`; here are bytes instead of hex, and
libsecp256k1 instead of OpenSSL, which takes a tenth of the time: a slot has dozens of signatures. It comes in Blockstream's
`wallycore`, which no other module imports, so everything of the network is judged by one library. What was found good
once is remembered: a transaction is met in the mempool, in a candidate and in a block.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

import msgspec
import wallycore

from pocqueue.node.keys import ORDER, SigningKey
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.transactions import Body, Transaction

# Blinds its arithmetic with secret keys against whoever can measure it (`secp256k1_context_randomize`).
wallycore.secp_randomize(os.urandom(wallycore.WALLY_SECP_RANDOMIZE_LEN))


def account_of(key: SigningKey) -> bytes:
    """Return the account of a key: its compressed public point, 33 bytes."""
    return bytes.fromhex(key.public_hex)


def sign(key: SigningKey, digest: bytes) -> bytes:
    """Return a key's signature of an id, 64 bytes: r and s."""
    found: bytearray = wallycore.ec_sig_from_bytes(
        key.secret(), hashlib.sha256(digest).digest(), wallycore.EC_FLAG_ECDSA
    )
    return bytes(found)


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
    if not _is_compressed(account):
        return False
    try:
        wallycore.ec_public_key_verify(account)
    except ValueError:
        return False
    return True


def verify(account: bytes, digest: bytes, signature: bytes) -> bool:
    """Say whether a signature is that account's for this id."""
    try:
        return _verified(account, digest, signature)
    except ValueError:
        return False


# A wrong one raises and is not kept: whoever sends wrong ones pushes no good ones out.
@lru_cache(maxsize=32_768)
def _verified(account: bytes, digest: bytes, signature: bytes) -> bool:
    if not _is_compressed(account):
        raise ValueError("no compressed point")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    # One of the two s that ECDSA allows, so that a message has one signature.
    if len(signature) != 64 or not (0 < r < ORDER and 0 < s <= ORDER // 2):
        raise ValueError("no signature")
    message = hashlib.sha256(digest).digest()
    wallycore.ec_sig_verify(account, message, wallycore.EC_FLAG_ECDSA, signature)
    return True


def _is_compressed(account: bytes) -> bool:
    return len(account) == 33 and account[0] in (2, 3)
