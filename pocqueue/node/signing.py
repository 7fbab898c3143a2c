"""Signed batches: the fields that carry a signature over the canonical form (`poc/canonical.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pocqueue.errors import SignatureError
from pocqueue.node.keys import SigningKey, read_public_key, verify_signature
from pocqueue.poc.canonical import (
    canonical,
    check_repetitions,
    is_verdict,
    list_field,
    malformed,
    scheme_of,
)

#: Curve and hash, and the version of the canonical form.
SCHEME: Final = "secp256k1-sha256-v1"


def sign_body(body: Mapping[str, Any], key: SigningKey) -> dict[str, Any]:
    """Return a batch or verdict as it goes to the chain: with its signature.

    Args:
        body: of `ProofScheme.signed_body` or `verdict_body`, and any other fields.
        key: the node's.

    Returns:
        The body, and ``signature``, ``signer`` and ``signature_scheme``, replaced if they were there.
        Values of a verdict that JSON has no words for are None.

    Raises:
        SignatureError: a field is missing or malformed, or OpenSSL is too old; says which.
    """
    plain = dict(body)
    if is_verdict(body):
        scheme = scheme_of(body)
        for name in (scheme.field, f"received_{scheme.field}"):
            plain[name] = [scheme.to_json(item) for item in list_field(body, name)]
    return plain | {
        "signature": key.sign(canonical(plain)),
        "signer": key.public_hex,
        "signature_scheme": SCHEME,
    }


def verify_body(body: Mapping[str, Any], signer: str | None = None) -> str:
    """Check the signature of a batch or verdict.

    Args:
        body: as it came in, JSON decoded.
        signer: the public key it has to be signed with, 66 hex digits; None: whoever it names.

    Returns:
        The public key that it is signed with.

    Raises:
        SignatureError: it is not signed, was changed afterwards, or was signed by somebody else or in
            an unknown way; says which, and names a malformed field.
    """
    if "signature" not in body:
        raise SignatureError("The batch is not signed: it has no field signature.")
    if (scheme := body.get("signature_scheme")) != SCHEME:
        raise malformed("signature_scheme", scheme, repr(SCHEME))
    named, signature = body.get("signer"), body["signature"]
    for name, value in (("signer", named), ("signature", signature)):
        if not isinstance(value, str):
            raise malformed(name, value, "hex digits in a text")
    if signer is not None:
        read_public_key(signer)
        if signer != named:
            raise SignatureError(f"The batch is signed by {named!r} and not by {signer}.")
    message = canonical(body)
    check_repetitions(body)
    verify_signature(str(named), message, str(signature))
    return str(named)
