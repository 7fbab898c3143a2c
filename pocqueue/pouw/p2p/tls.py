"""TLS 1.3 with certificates that nobody vouches for, and proofs of account keys on top.

Whoever accepts a connection shows a certificate made for this start of the process. Python's `ssl` cannot ask
the other side for one that it does not know beforehand, so both sides sign, with their account's key, what is
this channel's alone: the certificate that they see, both challenges and both accounts. Somebody in between
ends TLS with a certificate of his own, so that the two sides see different ones and neither proof is good.
"""

from __future__ import annotations

import hashlib
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from pocqueue.errors import SignatureError
from pocqueue.node.keys import SigningKey, verify_signature
from pocqueue.pouw.p2p.messages import Introduction
from pocqueue.pouw.wire.hashes import tagged


@dataclass(frozen=True, slots=True)
class Certificate:
    """What this process shows to whoever connects."""

    context: ssl.SSLContext
    digest: bytes  #: SHA-256 of its DER

    @classmethod
    def generate(cls) -> Certificate:
        """Make a key and a certificate for it. The key stays in this process."""
        key = ed25519.Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pocqueue.pouw")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=3650))
            .sign(key, None)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # no resumption: each link has a handshake of its own
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ) + certificate.public_bytes(serialization.Encoding.PEM)
        # `ssl` reads files alone. This one is its owner's, and gone a moment later.
        with tempfile.NamedTemporaryFile(prefix="pocqueue-link-") as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
        der = certificate.public_bytes(serialization.Encoding.DER)
        return cls(context, hashlib.sha256(der).digest())


def dialling_context() -> ssl.SSLContext:
    """Return the context of whoever connects: it takes any certificate, the proofs decide."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def binding(
    certificate: bytes, dialler: Introduction, listener: Introduction, *, by_dialler: bool
) -> bytes:
    """Return what a side signs: 32 bytes that belong to one channel and one side of it.

    Args:
        certificate: SHA-256 of the listener's certificate, as this side sees it.
        dialler, listener: what the sides said first, on this channel.
        by_dialler: whose proof it is.
    """
    return tagged(
        "link",
        dialler.network,
        certificate,
        dialler.challenge,
        listener.challenge,
        dialler.account,
        listener.account,
        b"\x01" if by_dialler else b"\x02",
    )


def prove(key: SigningKey, digest: bytes) -> bytes:
    """Return the signature over a binding, 64 bytes."""
    return bytes.fromhex(key.sign(digest))


def is_proven(account: bytes, digest: bytes, proof: bytes) -> bool:
    """Say whether a proof is the account's over this binding."""
    try:
        verify_signature(account.hex(), digest, proof.hex())
    except SignatureError:
        return False
    return True
