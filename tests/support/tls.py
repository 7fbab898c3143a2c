"""Certificates for servers on loopback."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certificate(folder: Path, *, days_left: float = 1) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 with its authority behind it; return the file and the key's.

    Args:
        folder: gets both. A key that is there already is used again, so that whoever trusts the first
            file of a folder trusts the later ones.
        days_left: until the certificate expires; below 0: it has expired so long ago.
    """
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    if not key_path.exists():
        key_path.write_bytes(
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)

    def signed(name: str, days: float, *extensions: x509.ExtensionType) -> bytes:
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("an authority of the tests"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - datetime.timedelta(days=20))
            .not_valid_after(end)
        )
        for extension in (*extensions, own, behind):
            is_critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(extension, critical=is_critical)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    # Python 3.13 and later take no certificate without these.
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    behind = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    uses = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
            *("key_agreement", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    usage = x509.KeyUsage(key_cert_sign=True, **uses)

    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority = x509.BasicConstraints(ca=True, path_length=None)
    cert_path.write_bytes(
        signed("a server of the tests", days_left, names)
        + signed("an authority of the tests", 10, authority, usage)
    )
    return cert_path, key_path


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
