"""Signed batches: what is signed, that every change of it is found, and that docs/signing.md is right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pocqueue.errors import SignatureError
from pocqueue.node.keys import SigningKey
from pocqueue.node.signing import sign_body, verify_body
from pocqueue.poc.canonical import canonical
from pocqueue.poc.data import ProofBatch, ValidatedBatch
from pocqueue.poc.distance.data import validated_body

DOCUMENT = Path(__file__).parents[2] / "docs" / "signing.md"
KEY = SigningKey.generate()
OTHER = SigningKey.generate()

PROOF_FIELDS = ("public_key", "block_hash", "block_height", "node_id", "nonces", "dist")
VERDICT_FIELDS = (
    *PROOF_FIELDS,
    "received_dist",
    "r_target",
    "fraud_threshold",
    "n_invalid",
    "probability_honest",
    "fraud_detected",
)


def proof_body() -> dict[str, Any]:
    return asdict(ProofBatch("pk", "00ab", 7, [3, 5], [0.5, 1.25], 1))


def verdict_body(computed: float = 1.25) -> dict[str, Any]:
    return validated_body(
        ValidatedBatch(
            public_key="pk",
            block_hash="00ab",
            block_height=7,
            nonces=[3, 5],
            dist=[0.5, computed],
            node_id=1,
            received_dist=[0.5, 1.0],
            r_target=1.3,
            fraud_threshold=0.01,
        )
    )


def over_the_wire(body: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(body, allow_nan=False)
    return dict(json.loads(text))


texts = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
int64 = st.integers(-(2**63), 2**63 - 1)
distances = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Batches and verdicts of any content that may be signed."""
    nonces = draw(st.lists(st.integers(0, 2**63 - 1), max_size=4))
    verdict = draw(st.booleans())
    items = distances | st.none() if verdict else distances
    lists = st.lists(items, min_size=len(nonces), max_size=len(nonces))
    body: dict[str, Any] = {
        "public_key": draw(texts),
        "block_hash": draw(texts),
        "block_height": draw(int64),
        "node_id": draw(int64),
        "nonces": nonces,
        "dist": draw(lists),
    }
    if verdict:
        body |= {
            "received_dist": draw(lists),
            "r_target": draw(distances),
            "fraud_threshold": draw(distances),
            "n_invalid": draw(st.integers(0, 100)),
            "probability_honest": draw(distances),
            "fraud_detected": draw(st.booleans()),
        }
    return body


@given(body=bodies())
def test_signed_bodies_verify_after_json(body: dict[str, Any]) -> None:
    """With the fields that were there, and three more."""
    signed = over_the_wire(sign_body(body, KEY))
    assert verify_body(signed) == verify_body(signed, KEY.public_hex) == KEY.public_hex
    assert {name: signed[name] for name in body} == body
    assert set(signed) - set(body) == {"signature", "signer", "signature_scheme"}
    assert signed["signature_scheme"] == "secp256k1-sha256-v1"


@given(body=bodies(), other=bodies(), data=st.data())
def test_any_change_of_a_signed_field_is_found(
    body: dict[str, Any], other: dict[str, Any], data: st.DataObject
) -> None:
    """Whatever other value of its kind the field gets."""
    signed = sign_body(body, KEY)
    name = data.draw(st.sampled_from(sorted(set(body) & set(other))))
    if other[name] == body[name]:
        return
    with pytest.raises(SignatureError):
        verify_body(signed | {name: other[name]})


@given(body=bodies(), data=st.data())
def test_any_missing_field_is_found(body: dict[str, Any], data: st.DataObject) -> None:
    """And so is a verdict that is cut down to a batch."""
    signed = sign_body(body, KEY)
    name = data.draw(st.sampled_from(sorted(signed)))
    with pytest.raises(SignatureError):
        verify_body({field: value for field, value in signed.items() if field != name})
    if "received_dist" in body:
        with pytest.raises(SignatureError):
            verify_body(
                {field: signed[field] for field in signed if field not in VERDICT_FIELDS[6:]}
            )


@given(one=bodies(), two=bodies())
def test_different_bodies_have_different_forms(one: dict[str, Any], two: dict[str, Any]) -> None:
    """The form can be read back in one way only."""
    assert (canonical(one) == canonical(two)) == (one == two)


def test_nonces_and_distances_do_not_run_together() -> None:
    """Moved commas and swapped items are changes."""
    body = proof_body() | {"nonces": [1, 23], "dist": [0.5, 0.25]}
    signed = sign_body(body, KEY)
    for change in (
        {"nonces": [12, 3]},
        {"nonces": [23, 1]},
        {"dist": [0.25, 0.5]},
        {"nonces": [1], "dist": [0.5]},
        {"nonces": [1, 23, 4], "dist": [0.5, 0.25, 0.1]},
    ):
        with pytest.raises(SignatureError, match="is not that of"):
            verify_body(signed | change)


def test_least_change_of_a_float_is_found() -> None:
    """The next representable number is another one."""
    body = proof_body()
    signed = sign_body(body, KEY)
    with pytest.raises(SignatureError, match="is not that of"):
        verify_body(signed | {"dist": [math.nextafter(0.5, 1), 1.25]})


def test_spelling_does_not_matter() -> None:
    """Order of fields, 1 for 1.0 and -0.0 for 0.0, as other JSON writers have it."""
    signed = sign_body(proof_body() | {"dist": [0.0, 1.0]}, KEY)
    again = {name: signed[name] for name in reversed(signed)} | {"dist": [-0.0, 1]}
    assert verify_body(again) == KEY.public_hex


def test_other_fields_are_not_signed() -> None:
    """They pass through, and may change."""
    signed = sign_body(proof_body() | {"r_target": 1.3, "note": "x"}, KEY)
    assert signed["note"] == "x"
    assert verify_body(signed | {"note": "y", "r_target": 2}) == KEY.public_hex


@pytest.mark.parametrize(
    "change",
    [
        {"computed_distances": [0.5, 0.5]},
        {"received_distances": [0.5, 1.1]},
        {"valid": [True, False]},
        {"valid": None},
    ],
)
def test_repetitions_have_to_agree(change: dict[str, Any]) -> None:
    """What vLLM's readers look at cannot say something else than what is signed."""
    signed = over_the_wire(sign_body(verdict_body(), KEY))
    assert verify_body(signed) == KEY.public_hex
    with pytest.raises(SignatureError, match=f"{next(iter(change))} does not agree"):
        verify_body(signed | change)


@pytest.mark.parametrize("computed", [math.nan, math.inf, -math.inf])
def test_verdict_about_no_number(computed: float) -> None:
    """Null on the wire, and signed as null."""
    plain = verdict_body(computed)
    plain["dist"] = [0.5, computed]
    signed = sign_body(plain, KEY)
    assert signed["dist"] == [0.5, None]
    assert b"dist=3fe0000000000000,null\n" in canonical(signed)
    assert verify_body(over_the_wire(signed)) == KEY.public_hex
    with pytest.raises(SignatureError):
        verify_body(signed | {"dist": [0.5, 0.0]})


def test_signing_again_replaces_the_signature() -> None:
    """A batch that somebody else signed before is ours afterwards."""
    assert verify_body(sign_body(sign_body(proof_body(), OTHER), KEY)) == KEY.public_hex


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signature_scheme": "secp256k1-sha256-v2"}, "signature_scheme is 'secp256k1-sha256-v2'"),
        ({"signature_scheme": None}, "signature_scheme is None"),
        ({"signer": None}, "signer is None"),
        ({"signer": 5}, "signer is 5"),
        ({"signer": "02ab"}, "The signer is '02ab'"),
        ({"signer": OTHER.public_hex}, "is not that of"),
        ({"signature": 5}, "signature is 5"),
        ({"signature": "00"}, "The signature is '00'"),
    ],
)
def test_malformed_signature_fields(change: dict[str, Any], words: str) -> None:
    """The sentence names the field."""
    with pytest.raises(SignatureError, match=re.escape(words)):
        verify_body(sign_body(proof_body(), KEY) | change)


def test_who_signed() -> None:
    """Nobody, or somebody else than was asked for."""
    with pytest.raises(SignatureError, match="not signed"):
        verify_body(proof_body())
    signed = sign_body(proof_body(), KEY)
    with pytest.raises(SignatureError, match=f"and not by {OTHER.public_hex}"):
        verify_body(signed, OTHER.public_hex)
    with pytest.raises(SignatureError, match="The signer is 'me'"):
        verify_body(signed, "me")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("public_key", ""),
        ("public_key", " "),
        ("public_key", "a\nblock_hash=b"),
        ("public_key", "a\rb"),
        ("public_key", "a\u2028b"),
        ("public_key", "a\x00b"),
        ("public_key", "\ud800"),
        ("public_key", "a" * 257),
        ("public_key", b"a"),
        ("block_hash", None),
        ("block_height", "7"),
        ("block_height", True),
        ("block_height", 7.0),
        ("block_height", 2**63),
        ("node_id", None),
        ("nonces", "35"),
        ("nonces", [3, -1]),
        ("nonces", [3, 2**63]),
        ("nonces", [3, 5.0]),
        ("nonces", [3, True]),
        ("nonces", None),
        ("dist", [0.5]),
        ("dist", [0.5, 0.5, 0.5]),
        ("dist", [0.5, None]),
        ("dist", [0.5, math.nan]),
        ("dist", [0.5, math.inf]),
        ("dist", [0.5, "0.5"]),
        ("dist", [0.5, True]),
        ("dist", [0.5, 10**400]),
        ("dist", {"0": 0.5, "1": 0.5}),
    ],
)
def test_malformed_fields(field: str, value: object) -> None:
    """Neither signed nor verified, and named."""
    body = proof_body() | {field: value}
    with pytest.raises(SignatureError, match=rf"^{field} is "):
        sign_body(body, KEY)
    with pytest.raises(SignatureError, match=rf"^{field} is "):
        verify_body(sign_body(proof_body(), KEY) | {field: value})


def test_endless_number_is_malformed() -> None:
    """Python itself would not write it into the sentence."""
    with pytest.raises(SignatureError, match=r"^node_id is a number of thousands of digits"):
        sign_body(proof_body() | {"node_id": 10**5000}, KEY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("received_dist", [0.5]),
        ("received_dist", 0.5),
        ("r_target", None),
        ("r_target", math.nan),
        ("fraud_threshold", "0.01"),
        ("n_invalid", -1),
        ("probability_honest", None),
        ("fraud_detected", 0),
    ],
)
def test_malformed_verdicts(field: str, value: object) -> None:
    """Likewise for what a verdict has beside a batch."""
    with pytest.raises(SignatureError, match=rf"^{field} is "):
        sign_body(verdict_body() | {field: value}, KEY)


@pytest.mark.parametrize("kind", ["proof-batch", "validated-batch"])
def test_document_has_what_the_code_does(kind: str, tmp_path: Path) -> None:
    """The worked example of docs/signing.md: canonical form and signature, recomputed."""
    blocks = re.findall(r"```(\w+) ([\w-]+)\n(.*?)\n```", DOCUMENT.read_text(), re.DOTALL)
    found = {(language, name): text for language, name, text in blocks}
    path = tmp_path / "key"
    path.write_text(found["text", "secret"])
    path.chmod(0o600)
    key = SigningKey.load(path)
    signed = json.loads(found["json", kind])
    assert canonical(signed).decode() == found["text", kind]
    assert verify_body(signed) == key.public_hex
    plain = {
        name: value
        for name, value in signed.items()
        if name not in {"signature", "signer", "signature_scheme"}
    }
    assert sign_body(plain, key) == signed
