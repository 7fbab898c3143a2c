"""Signed batches: the canonical form that is signed, and the fields that carry the signature.

A batch or verdict is signed as UTF-8 text, one ``name=value`` a line, lines joined by one newline,
none at the end; docs/signing.md has it with an example. The form does not depend on how a JSON writer
orders fields or spells numbers::

    pocqueue.proof-batch.v1              or  pocqueue.validated-batch.v1
    public_key=…                         as it is; one printable line of 1 to 256 characters
    block_hash=…                         likewise
    block_height=…                       decimal
    node_id=…                            decimal
    nonces=…,…                           decimal, comma separated
    dist=…,…                             each as the 16 hex digits of its big-endian binary64

    and for a verdict also
    received_dist=…,…                    as dist; in both, what is not finite is `null`
    r_target=…  fraud_threshold=…        binary64, a line each
    n_invalid=…                          decimal
    probability_honest=…                 binary64
    fraud_detected=…                     0 or 1

Other fields of a body are not signed. Those that repeat signed ones in the words of vLLM's callbacks
(``computed_distances``, ``received_distances``, ``valid``) have to agree with them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from pocqueue.errors import SignatureError
from pocqueue.node.keys import SigningKey, check_public_key, verify_signature
from pocqueue.poc.data import is_valid
from pocqueue.poc.fields import MAX_TEXT

#: Curve and hash, and the version of the canonical form.
SCHEME: Final = "secp256k1-sha256-v1"
PROOF_DOMAIN: Final = "pocqueue.proof-batch.v1"
VERDICT_DOMAIN: Final = "pocqueue.validated-batch.v1"

_INT64 = range(-(2**63), 2**63)
_NONCES = range(2**63)
#: A body that has one of these is a verdict.
_VERDICT_FIELDS = ("received_dist", "n_invalid", "probability_honest", "fraud_detected")


def sign_body(body: Mapping[str, Any], key: SigningKey) -> dict[str, Any]:
    """Return a batch or verdict as it goes to the chain: with its signature.

    Args:
        body: fields of a `ProofBatch` or a `ValidatedBatch` (`asdict`, or `validated_body`), and any
            others.
        key: the node's.

    Returns:
        The body, and ``signature``, ``signer`` and ``signature_scheme``, replaced if they were there.
        Distances of a verdict that are not finite are None, as JSON has no words for them.

    Raises:
        SignatureError: a field is missing or malformed, or OpenSSL is too old; says which.
    """
    plain = dict(body)
    if is_verdict(body):
        for name in ("dist", "received_dist"):
            plain[name] = [_none_unless_finite(item) for item in _list(body, name)]
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
        raise _malformed("signature_scheme", scheme, repr(SCHEME))
    named, signature = body.get("signer"), body["signature"]
    for name, value in (("signer", named), ("signature", signature)):
        if not isinstance(value, str):
            raise _malformed(name, value, "hex digits in a text")
    if signer is not None:
        check_public_key(signer)
        if signer != named:
            raise SignatureError(f"The batch is signed by {named!r} and not by {signer}.")
    message = canonical(body)
    _check_repetitions(body)
    verify_signature(str(named), message, str(signature))
    return str(named)


def is_verdict(body: Mapping[str, Any]) -> bool:
    """Say whether a body is a verdict; otherwise it is a proof batch."""
    return any(name in body for name in _VERDICT_FIELDS)


def canonical(body: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed for a batch or verdict.

    Raises:
        SignatureError: a field is missing or malformed; says which.
    """
    verdict = is_verdict(body)
    nonces = [_whole(item, "nonces", _NONCES) for item in _list(body, "nonces")]
    lines = [
        VERDICT_DOMAIN if verdict else PROOF_DOMAIN,
        f"public_key={_text(body, 'public_key')}",
        f"block_hash={_text(body, 'block_hash')}",
        f"block_height={_whole(_field(body, 'block_height'), 'block_height', _INT64)}",
        f"node_id={_whole(_field(body, 'node_id'), 'node_id', _INT64)}",
        f"nonces={','.join(map(str, nonces))}",
        _distances(body, "dist", len(nonces), _binary64_or_null if verdict else _binary64),
    ]
    if verdict:
        detected = _field(body, "fraud_detected")
        if not isinstance(detected, bool):
            raise _malformed("fraud_detected", detected, "true or false")
        lines += [
            _distances(body, "received_dist", len(nonces), _binary64_or_null),
            f"r_target={_binary64(_field(body, 'r_target'), 'r_target')}",
            f"fraud_threshold={_binary64(_field(body, 'fraud_threshold'), 'fraud_threshold')}",
            f"n_invalid={_whole(_field(body, 'n_invalid'), 'n_invalid', _NONCES)}",
            f"probability_honest={_binary64(_field(body, 'probability_honest'), 'probability_honest')}",
            f"fraud_detected={int(detected)}",
        ]
    return "\n".join(lines).encode()


def _distances(
    body: Mapping[str, Any], name: str, count: int, write: Callable[[object, str], str]
) -> str:
    distances = _list(body, name)
    if len(distances) != count:
        raise _malformed(
            name, f"a list of {len(distances)}", f"one distance for each of the {count} nonces"
        )
    return f"{name}={','.join(write(item, name) for item in distances)}"


def _check_repetitions(body: Mapping[str, Any]) -> None:
    """Refuse a verdict whose unsigned fields say something else than the signed ones they repeat."""
    if not is_verdict(body):
        return
    computed, received = body["dist"], body["received_dist"]
    r_target = float(body["r_target"])
    expected = {
        "computed_distances": computed,
        "received_distances": received,
        "valid": [item is not None and is_valid(float(item), r_target) for item in computed],
    }
    for name, value in expected.items():
        if name in body and body[name] != value:
            raise SignatureError(
                f"{name} does not agree with the signed fields that it repeats: it was changed after "
                "the verdict was signed."
            )


def _field(body: Mapping[str, Any], name: str) -> object:
    if name not in body:
        raise SignatureError(f"The batch has no field {name}, which is part of what is signed.")
    return body[name]


def _list(body: Mapping[str, Any], name: str) -> list[object]:
    value = _field(body, name)
    if not isinstance(value, list):
        raise _malformed(name, value, "a list")
    return value


def _text(body: Mapping[str, Any], name: str) -> str:
    value = _field(body, name)
    # Printable rules out newlines, so a text cannot pass for the lines after it.
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_TEXT
        or not value.isprintable()
        or not value.strip()
    ):
        raise _malformed(name, value, f"1 to {MAX_TEXT} printable characters on one line")
    return value


def _whole(value: object, name: str, allowed: range) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        # In powers of two: 9223372036854775807 is hard to recognise.
        low = "0" if allowed.start == 0 else "-2^63"
        raise _malformed(name, value, f"whole numbers from {low} to 2^63 - 1")
    return value


def _binary64(value: object, name: str) -> str:
    number = _number(value, name)
    if number is None or not math.isfinite(number):
        raise _malformed(name, value, "finite numbers")
    # Adding 0.0 makes 0.0 of -0.0, which some JSON writers do as well.
    return struct.pack(">d", number + 0.0).hex()


def _binary64_or_null(value: object, name: str) -> str:
    number = _number(value, name)
    return _binary64(number, name) if number is not None and math.isfinite(number) else "null"


def _number(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _malformed(name, value, "numbers")
    try:
        # Some JSON writers make 1 of 1.0.
        return float(value)
    except OverflowError:
        raise _malformed(name, value, "numbers that a binary64 can hold") from None


def _none_unless_finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _malformed(name: str, value: object, allowed: str) -> SignatureError:
    try:
        shown = repr(value)
    except ValueError:
        shown = "a number of thousands of digits"  # which Python does not write out
    if len(shown) > 80:
        shown = f"{shown[:60]}…"
    return SignatureError(f"{name} is {shown}; allowed: {allowed}.")
