"""The canonical form of a batch or verdict: the bytes that a node signs.

UTF-8 text, one ``name=value`` a line, lines joined by one newline, none at the end; docs/signing.md
has it with an example. The form does not depend on how a JSON writer orders fields or spells numbers::

    pocqueue.proof-batch.v1              or  pocqueue.validated-batch.v1
    scheme=…                             only if it is not the default one
    public_key=…                         as it is; one printable line of 1 to 256 characters
    block_hash=…                         likewise
    block_height=…                       decimal
    node_id=…                            decimal
    nonces=…,…                           decimal, comma separated
    dist=…,…                             the scheme's field and values: distances each as the 16 hex
                                         digits of their big-endian binary64
    and for a verdict also
    received_dist=…,…                    as dist; in both, what is not finite is `null`
    r_target=…  fraud_threshold=…        the scheme's parameters: binary64, a line each
    n_invalid=…                          decimal
    probability_honest=…                 binary64
    fraud_detected=…                     0 or 1

Other fields of a body are not signed. Those that repeat signed ones have to agree with them
(`check_repetitions`).

Everything here raises `SignatureError` for a body that cannot be signed; it says which field is missing or
malformed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final

from pocqueue.errors import InvalidRound, SignatureError
from pocqueue.poc.fields import MAX_TEXT
from pocqueue.poc.scheme import DEFAULT, ProofScheme, named, scheme_class

PROOF_DOMAIN: Final = "pocqueue.proof-batch.v1"
VERDICT_DOMAIN: Final = "pocqueue.validated-batch.v1"

_INT64 = range(-(2**63), 2**63)
_NONCES = range(2**63)
#: A body that has one of these is a verdict, or one whose name begins with `received_`.
_VERDICT_FIELDS = {"n_invalid", "probability_honest", "fraud_detected"}


def is_verdict(body: Mapping[str, object]) -> bool:
    """Say whether a body is a verdict; otherwise it is a proof batch."""
    return not _VERDICT_FIELDS.isdisjoint(body) or f"received_{scheme_of(body).field}" in body


def scheme_of(body: Mapping[str, object]) -> type[ProofScheme]:
    """Return the proof scheme of a body."""
    try:
        return scheme_class(body.get("scheme", DEFAULT))
    except InvalidRound as exc:
        raise SignatureError(str(exc)) from None


def canonical(body: Mapping[str, object]) -> bytes:
    """Return the bytes that are signed for a batch or verdict."""
    scheme, verdict = scheme_of(body), is_verdict(body)
    nonces = [whole(item, "nonces", _NONCES) for item in list_field(body, "nonces")]

    def values(name: str) -> str:
        items = list_field(body, name)
        if len(items) != len(nonces):
            raise malformed(
                name,
                f"a list of {len(items)}",
                f"one {scheme.noun} for each of the {len(nonces)} nonces",
            )
        written = (scheme.signed_value(item, name, in_verdict=verdict) for item in items)
        return f"{name}={','.join(written)}"

    lines = [
        VERDICT_DOMAIN if verdict else PROOF_DOMAIN,
        *(f"scheme={name}" for name in named(scheme.name).values()),
        f"public_key={_text(body, 'public_key')}",
        f"block_hash={_text(body, 'block_hash')}",
        f"block_height={whole(field(body, 'block_height'), 'block_height', _INT64)}",
        f"node_id={whole(field(body, 'node_id'), 'node_id', _INT64)}",
        f"nonces={','.join(map(str, nonces))}",
        values(scheme.field),
    ]
    if verdict:
        detected = field(body, "fraud_detected")
        if not isinstance(detected, bool):
            raise malformed("fraud_detected", detected, "true or false")
        lines.append(values(f"received_{scheme.field}"))
        for name in scheme.signed_parameters:
            lines.append(f"{name}={binary64(field(body, name), name)}")
        lines += [
            f"n_invalid={whole(field(body, 'n_invalid'), 'n_invalid', _NONCES)}",
            f"probability_honest={binary64(field(body, 'probability_honest'), 'probability_honest')}",
            f"fraud_detected={int(detected)}",
        ]
    return "\n".join(lines).encode()


def check_repetitions(body: Mapping[str, object]) -> None:
    """Refuse a verdict, already well formed, whose unsigned fields contradict the signed ones they repeat.

    Raises:
        SignatureError: one does; says which.
    """
    if not is_verdict(body):
        return
    for name, value in scheme_of(body).repetitions(body).items():
        if name in body and body[name] != value:
            raise SignatureError(
                f"{name} does not agree with the signed fields that it repeats: it was changed after "
                "the verdict was signed."
            )


def field(body: Mapping[str, object], name: str) -> object:
    """Return a field of a body that is signed."""
    if name not in body:
        raise SignatureError(f"The batch has no field {name}, which is part of what is signed.")
    return body[name]


def list_field(body: Mapping[str, object], name: str) -> list[object]:
    """Return a field that is a list."""
    value = field(body, name)
    if not isinstance(value, list):
        raise malformed(name, value, "a list")
    return value


def _text(body: Mapping[str, object], name: str) -> str:
    value = field(body, name)
    # Printable rules out newlines, so a text cannot pass for the lines after it.
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_TEXT
        or not value.isprintable()
        or not value.strip()
    ):
        raise malformed(name, value, f"1 to {MAX_TEXT} printable characters on one line")
    return value


def whole(value: object, name: str, allowed: range) -> int:
    """Return a value that has to be a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        # In powers of two: 9223372036854775807 is hard to recognise.
        low = "0" if allowed.start == 0 else "-2^63"
        raise malformed(name, value, f"whole numbers from {low} to 2^63 - 1")
    return value


def binary64(value: object, name: str, *, or_null: bool = False) -> str:
    """Return a finite number as the 16 hex digits of its big-endian binary64.

    Args:
        value: of the field.
        name: of the field, for the error.
        or_null: what is not finite, or None, is ``null``.
    """
    if or_null and value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed(name, value, "numbers")
    try:
        # Some JSON writers make 1 of 1.0, and 0.0 of -0.0, as adding 0.0 does.
        number = float(value) + 0.0
    except OverflowError:
        raise malformed(name, value, "numbers that a binary64 can hold") from None
    if math.isfinite(number):
        return struct.pack(">d", number).hex()
    if or_null:
        return "null"
    raise malformed(name, value, "finite numbers")


def malformed(name: str, value: object, allowed: str) -> SignatureError:
    """Return the error about a field that cannot be signed."""
    try:
        shown = repr(value)
    except ValueError:
        shown = "a number of thousands of digits"  # which Python does not write out
    if len(shown) > 80:
        shown = f"{shown[:60]}…"
    return SignatureError(f"{name} is {shown}; allowed: {allowed}.")
