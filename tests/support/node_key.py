"""A node's key by another library than the agent's, for tests that speak to a gateway themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class NodeKey:
    """A node's secret, as an agent has it."""

    _private: Ed25519PrivateKey = field(repr=False, compare=False)
    public_hex: str  #: 64 hex digits

    @classmethod
    def generate(cls) -> NodeKey:
        """Make a new one."""
        private = Ed25519PrivateKey.generate()
        return cls(private, private.public_key().public_bytes_raw().hex())

    @property
    def seed(self) -> bytes:
        """The secret, 32 bytes, which no log may have."""
        return self._private.private_bytes_raw()

    def sign(self, text: bytes) -> str:
        """Answer a challenge, whose text `hosts.protocol.signed_text` makes; return 128 hex digits."""
        return self._private.sign(text).hex()
