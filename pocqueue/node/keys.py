"""The small node's key: secp256k1, kept in one file that only its owner can read.

Signatures are ECDSA over SHA-256, deterministic (RFC 6979: the same key and message give the same
signature, and a weak random generator cannot leak the key), with the lower of the two possible s
values, written as r and s of 32 bytes each: 128 hex digits. Public keys are compressed points: 66 hex
digits. All hex is lower case, so that each signature has one spelling. The curve and its arithmetic
are those of the `cryptography` package.

The secret leaves this module in two ways only: `SigningKey.save_pem`, and `SigningKey.secret` for another library's signing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from typing_extensions import override

from pocqueue.errors import KeyFileError, SignatureError
from pocqueue.files import NotPrivate, read_private

if TYPE_CHECKING:
    # Its pydantic takes longer to import than all that is here, and users of `pocqueue.pouw` have no settings.
    from pocqueue.settings import NodeSettings, Settings

#: Number of points of secp256k1 (SEC 2, section 2.4.1): secrets, r and s are 1 … ORDER - 1.
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
#: Name of the key in the state folder, if no other file is set.
KEY_NAME = "node-key.pem"

_MAX_FILE_BYTES = 64 * 1024
_HEX_KEY = re.compile(rb"(?:0[xX])?([0-9a-fA-F]{64})")
_HEX_PUBLIC = re.compile(r"0[23][0-9a-f]{64}")
_HEX_SIGNATURE = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret number and its public point. Made by `load` or `generate`.

    Two are equal if their public keys are. It shows the public key only, and cannot be pickled or
    copied.
    """

    _private: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)
    #: Compressed point, 66 hex digits.
    public_hex: str

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key from a file that only its owner can read.

        Args:
            path: an unencrypted PEM file (PKCS#8 or SEC 1) or one with the number in 64 hex digits,
                with or without ``0x`` before it. May be a symbolic link.

        Raises:
            KeyFileError: it is missing, others can read it, or it holds no key of secp256k1.
        """
        data = _read_private(path)
        hex_key = _HEX_KEY.fullmatch(data.strip())
        number = int(hex_key[1], 16) if hex_key else _pem_number(data, path)
        if not 0 < number < ORDER:
            raise KeyFileError(
                f"The number in {path} is no key of secp256k1: it is 0 or not below the curve's "
                "order. `pocqueue node key new` makes a good one."
            )
        # From the number alone: a PEM file may carry the public point of another key.
        return cls._of(ec.derive_private_key(number, ec.SECP256K1()))

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key from the system's random generator."""
        return cls._of(ec.generate_private_key(ec.SECP256K1()))

    def save_pem(self, path: Path) -> None:
        """Write the key as PKCS#8 PEM to a new file of mode 0600, which is on disk on return.

        Raises:
            KeyFileError: the file is there already (it is left as it is), or cannot be written.
        """
        pem = self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            _write_new(path, pem)
        except FileExistsError:
            raise KeyFileError(
                f"{path} is there already and may hold a key that is in use: it is never "
                "overwritten. Give another path, or move it away yourself."
            ) from None
        except OSError as exc:
            raise KeyFileError(
                f"The key cannot be written to {path} ({exc.strerror}): give a path in a folder that "
                "is there and that you may write to."
            ) from None

    def secret(self) -> bytes:
        """Return the secret number, 32 bytes, big-endian; for a library that signs with it at once."""
        return self._private.private_numbers().private_value.to_bytes(32, "big")

    def sign(self, message: bytes) -> str:
        """Return the signature of a message: r and s, 64 hex digits each.

        Raises:
            SignatureError: the OpenSSL below cannot make deterministic signatures.
        """
        try:
            der = self._private.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        except UnsupportedAlgorithm as exc:
            raise SignatureError(
                "The OpenSSL of this Python's `cryptography` package cannot make deterministic "
                "signatures (RFC 6979), which takes OpenSSL 3.2 or newer: install the package's own "
                "wheel from PyPI, version 43 or newer."
            ) from exc
        r, s = decode_dss_signature(der)
        # (r, s) and (r, ORDER - s) are both good for the same message; one of them is the signature.
        return f"{r:064x}{min(s, ORDER - s):064x}"

    @override
    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("A SigningKey cannot be pickled or copied: its secret stays where it is.")

    @classmethod
    def _of(cls, private: ec.EllipticCurvePrivateKey) -> SigningKey:
        point = private.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        return cls(private, point.hex())


def key_path(settings: Settings, node: NodeSettings) -> Path:
    """Return the path of the node's key: POCQUEUE_NODE_KEY, or a file in the state folder."""
    from pocqueue.settings.base import full_path

    return settings.state_dir / KEY_NAME if node.key is None else full_path(node.key)


def verify_signature(public_hex: str, message: bytes, signature: str) -> None:
    """Return if the signature is that key's for this message.

    Args:
        public_hex: compressed point, 66 lower-case hex digits.
        message: what was signed.
        signature: r and s, 128 lower-case hex digits, s in the lower half of its range.

    Raises:
        SignatureError: key or signature is malformed, or the signature is not that key's for this
            message; says which.
    """
    public = read_public_key(public_hex)
    if not _HEX_SIGNATURE.fullmatch(signature):
        raise SignatureError(
            f"The signature is {_shown(signature)}; allowed: 128 lower-case hex digits, r and then s."
        )
    r, s = int(signature[:64], 16), int(signature[64:], 16)
    if not (0 < r < ORDER and 0 < s < ORDER):
        raise SignatureError("The signature's r or s is 0 or not below the order of secp256k1.")
    if s > ORDER // 2:
        raise SignatureError(
            "The signature's s is in the upper half of its range; only the lower one is allowed, so "
            "that a message has one signature."
        )
    try:
        public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise SignatureError(
            f"The signature is not that of {public_hex} for this content: one of the two was changed "
            "after it was signed."
        ) from None


def read_public_key(public_hex: str) -> ec.EllipticCurvePublicKey:
    """Return the key of a compressed point in 66 lower-case hex digits.

    Raises:
        SignatureError: it is written in another way, or is no point of the curve.
    """
    if not _HEX_PUBLIC.fullmatch(public_hex):
        raise SignatureError(
            f"The signer is {_shown(public_hex)}; allowed: 66 lower-case hex digits, a compressed "
            "point that begins with 02 or 03."
        )
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256K1(), bytes.fromhex(public_hex)
        )
    except ValueError:
        raise SignatureError(f"The signer {public_hex} is no point of secp256k1.") from None


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 150 else f"{text[:60]!r}… ({len(text)} characters)"


def _read_private(path: Path) -> bytes:
    """Return the bytes of a file that only its owner can read."""
    try:
        return read_private(path, _MAX_FILE_BYTES)
    except NotPrivate as exc:
        if exc.permissions is None:
            reason = f"{path} is no file: name the file of the signing key."
        else:
            reason = (
                f"Others than its owner may use the signing key {path} (mode {exc.permissions:04o}): take that "
                f"away with `chmod 600 {path}`."
            )
    except FileNotFoundError:
        reason = (
            f"There is no signing key at {path}: make one with `pocqueue node key new`, or name yours in "
            "POCQUEUE_NODE_KEY."
        )
    except OSError as exc:
        reason = (
            f"The signing key {path} cannot be read ({exc.strerror}): it has to belong to the user that the node "
            "runs as."
        )
    raise KeyFileError(reason)


def _pem_number(data: bytes, path: Path) -> int:
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        # What `cryptography` raises if a password is needed and none given.
        raise KeyFileError(
            f"The key in {path} is encrypted, and the node has nobody to ask for a password: decrypt "
            "it with `openssl pkey -in OLD -out NEW` and then `chmod 600 NEW`."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(
            f"{path} holds no key that can be read: allowed is an unencrypted PEM file (PKCS#8 or "
            "SEC 1) or 64 hex digits. `pocqueue node key new` makes one."
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256K1):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else "another kind"
        raise KeyFileError(
            f"The key in {path} is of {kind}; allowed: secp256k1. `pocqueue node key new` makes one."
        )
    return key.private_numbers().private_value


def _write_new(path: Path, data: bytes) -> None:
    folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open(path, "xb", opener=partial(os.open, mode=0o600)) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                # Half a key would be in the way of the next try.
                path.unlink(missing_ok=True)
                raise
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)
