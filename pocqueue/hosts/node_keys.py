"""A node's key: ed25519, made by the agent; the server keeps its public half.

At each connection the server sends a nonce, and the agent signs `wire.signed_text`, so that a signature is of use to
one server, for one node, once. Keys and signatures are written in lower-case hex, 64 and 128 digits.
"""

from __future__ import annotations

import re
import secrets

from pocqueue.hosts.errors import NodeKeyError

_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_HEX_SIGNATURE = re.compile(r"[0-9a-f]{128}")


def new_nonce() -> str:
    """Return 128 random bits, in hex."""
    return secrets.token_hex(16)


def check_public_key(public_hex: str) -> None:
    """See that a text is a public key that a node may have.

    Raises:
        NodeKeyError: it is no point of the curve, or one of small order, for which anybody can sign.
    """
    from nacl.bindings import crypto_core_ed25519_is_valid_point

    is_key = _HEX_KEY.fullmatch(public_hex) is not None
    if not is_key or not crypto_core_ed25519_is_valid_point(bytes.fromhex(public_hex)):
        raise NodeKeyError("nodeKey is no ed25519 public key of 64 lower-case hex digits.")


def check_answer(public_hex: str, signature_hex: str, text: bytes) -> None:
    """See that a node has signed a challenge.

    Args:
        public_hex: its public key.
        text: of `wire.signed_text`, as this server knows it.

    Raises:
        NodeKeyError: it has not.
    """
    from nacl.exceptions import CryptoError
    from nacl.signing import VerifyKey

    check_public_key(public_hex)
    if _HEX_SIGNATURE.fullmatch(signature_hex) is None:
        raise NodeKeyError("signature is none of ed25519, which has 128 lower-case hex digits.")
    try:
        VerifyKey(bytes.fromhex(public_hex)).verify(text, bytes.fromhex(signature_hex))
    except CryptoError:
        raise NodeKeyError(
            "The signature is not this node's for this server: the agent has another key, or was given another "
            "endpoint."
        ) from None
