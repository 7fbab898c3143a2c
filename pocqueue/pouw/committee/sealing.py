"""Shares that only one candidate can read, though all the chain has them.

Both ends have an X25519 key by their tickets. What they share becomes, by HKDF-SHA256, a key for one share of one
dealer in one key generation; so ChaCha20-Poly1305 needs no nonce of its own, and a dealer that is started again
seals the same bytes.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SHARE_BYTES = 32
#: A share and the cipher's tag.
SEALED_BYTES = SHARE_BYTES + 16

_NONCE = bytes(12)
# Any: it only shows whether a key gives a secret at all.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(range(32)))


class SealKey:
    """An account's X25519 key, and what is sealed with it.

    Args:
        seed: 32 secret bytes.
    """

    def __init__(self, seed: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(seed)
        #: 32 bytes, as tickets have it.
        self.public_key = self._private.public_key().public_bytes_raw()

    def seal(self, share: bytes, other: bytes, context: bytes) -> bytes:
        """Return a share, or another secret, that whoever has the other key can open.

        Args:
            share: any bytes.
            other: public key, for which `is_seal_key` is True.
            context: of no other share between the two.
        """
        return self._cipher(other, context).encrypt(_NONCE, share, None)

    def open(self, sealed: bytes, other: bytes, context: bytes) -> bytes | None:
        """Return what whoever has the other key has sealed; None: nobody has sealed it so. Arguments as of `seal`."""
        try:
            return self._cipher(other, context).decrypt(_NONCE, sealed, None)
        except InvalidTag:
            return None

    def _cipher(self, other: bytes, context: bytes) -> ChaCha20Poly1305:
        shared = self._private.exchange(X25519PublicKey.from_public_bytes(other))
        return ChaCha20Poly1305(HKDF(hashes.SHA256(), 32, salt=None, info=context).derive(shared))


def is_seal_key(key: bytes) -> bool:
    """Say whether a public key gives a secret: those of small order give everybody the same one."""
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        return False
    return True
