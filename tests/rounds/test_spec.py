"""The specification of a round: what is let in, and what is said about the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pocqueue.errors import InvalidRound, PocqueueError
from pocqueue.poc.distance.scheme import Distance
from pocqueue.rounds.spec import MAX_GIVEN, RoundSpec, RoundState
from pocqueue.words import shown
from tests.support.factories import FINGERPRINT, make_spec

_LONG = "x" * 257

# field, bad value, a part of what the message has to say is allowed
BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("block_hash", "", "1 to 256"),
    ("block_hash", "   ", "not all of them blank"),
    ("block_hash", _LONG, "1 to 256"),
    ("block_hash", "two\nlines", "on one line"),
    ("block_hash", "\x1b[31m", "printable"),
    ("block_hash", "\ud800", "printable"),
    ("block_hash", 5, "1 to 256"),
    ("block_hash", None, "1 to 256"),
    ("public_key", "", "1 to 256"),
    ("public_key", _LONG, "1 to 256"),
    ("public_key", "\t", "not all of them blank"),
    ("block_height", -1, "from 0"),
    ("block_height", 2**63, "2^63 - 1"),
    ("block_height", 1.5, "whole number"),
    ("node_id", -1, "from 0 to node_count - 1"),
    ("node_id", 1, "node_count - 1 = 0"),
    ("node_count", 0, "from 1"),
    ("node_count", 2**31, "2147483647"),
    ("r_target", 0, "above 0"),
    ("r_target", 0.0, "above 0"),
    ("r_target", -0.5, "above 0"),
    ("r_target", math.nan, "above 0"),
    ("r_target", math.inf, "above 0"),
    ("r_target", "near", "above 0"),
    ("fraud_threshold", 0, "above 0 and below 1"),
    ("fraud_threshold", 1, "above 0 and below 1"),
    ("window_s", 0, "above 0 and up to 3600"),
    ("window_s", -5, "above 0 and up to 3600"),
    ("window_s", 3600.5, "one hour"),
    ("window_s", math.inf, "one hour"),
    ("window_s", math.nan, "one hour"),
    ("seq_len", 0, "from 1 to the model's limit"),
    ("seq_len", -256, "from 1 to the model's limit"),
    ("batch_size", 0, "of at least 1"),
    ("batch_size", 2.5, "of at least 1"),
    ("model", "", "name of a deployed model"),
    ("model_fingerprint", "abc", "64 hexadecimal digits"),
    ("model_fingerprint", "G" * 64, "64 hexadecimal digits"),
    ("model_fingerprint", FINGERPRINT + "\n", "64 hexadecimal digits"),
    ("callback_url", "ftp://receiver/", "http:// or https://"),
    ("callback_url", "receiver:80", "http:// or https://"),
    ("callback_url", "http://", "with a host"),
    ("callback_url", "http://[::1/", "with a host"),
    ("callback_url", "http://receiver:99999/", "with a host"),
    ("callback_url", "http://receiver/a b", "http:// or https://"),
    ("callback_url", "http://user:word@receiver/", "without a user name or password"),
    ("callback_url", "http://receiver/" + "x" * 2048, "2048 characters"),
    ("share", 0, "from 0.01 to 100"),
    ("share", 101, "from 0.01 to 100"),
    ("max_nonces", 0, "from 1 to 2^48"),
    ("max_nonces", 2**48 + 1, "from 1 to 2^48"),
    ("expected_valid_rate", 1.5, "from 0 to 1"),
    ("expected_valid_rate", -0.1, "from 0 to 1"),
    ("given_nonces", (), "1 to 10000 whole numbers"),
    ("given_nonces", tuple(range(10_001)), "1 to 10000 whole numbers"),
    ("asked_by", "two\nlines", "on one line"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_FIELDS)
def test_a_bad_field_is_named_with_its_value_and_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    """Each bad field gives one sentence with field, value and what is allowed."""
    with pytest.raises(InvalidRound) as caught:
        make_spec(**{field: value})
    error, message = caught.value, str(caught.value)
    assert error.field == field
    assert error.value is value or error.value == value
    assert message.startswith(f"{field} is ")
    assert allowed in message
    assert shown(field, value) in message
    assert "\n" not in message
    assert "Value error" not in message
    assert message.endswith(".")
    assert not message.endswith("..")
    assert isinstance(error, PocqueueError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    "field", ["block_hash", "public_key", "r_target", "model", "model_fingerprint"]
)
def test_a_missing_field_is_named_without_showing_the_others(field: str) -> None:
    """What has no default has to be given; the other fields are not repeated."""
    fields = make_spec(block_height=987654).model_dump()
    del fields[field]
    with pytest.raises(InvalidRound, match=f"^{field} is None; allowed: [^F]") as caught:
        RoundSpec.build(**fields)
    assert "987654" not in str(caught.value)


def test_an_unknown_field_is_refused_by_name() -> None:
    """A misspelt field does not pass silently."""
    with pytest.raises(InvalidRound, match=r"^blockhash is 'x'"):
        make_spec(blockhash="x")


def test_a_node_id_beyond_the_count_names_the_count() -> None:
    """The bound of node_id depends on node_count, and the message has the number."""
    with pytest.raises(InvalidRound) as caught:
        make_spec(node_id=8, node_count=8)
    assert (
        str(caught.value) == "node_id is 8; allowed: a whole number from 0 to node_count - 1 = 7."
    )


def test_a_long_value_is_cut_in_the_message() -> None:
    """A message stays a sentence whatever was given."""
    with pytest.raises(InvalidRound) as caught:
        make_spec(block_hash="x" * 100_000)
    assert len(str(caught.value)) < 200
    assert "100000 characters" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_hash", "x"),
        ("block_hash", "x" * 256),
        ("block_hash", "блок № 1"),
        ("block_height", 0),
        ("block_height", 2**63 - 1),
        ("node_count", 2**31 - 1),
        ("r_target", 2),
        ("r_target", 1e-9),
        ("window_s", 0.2),
        ("window_s", 3600),
        ("seq_len", 1),
        ("batch_size", 1),
        ("batch_size", 4096),
        ("callback_url", None),
        ("callback_url", "http://127.0.0.1:8080/hook?a=b"),
        ("callback_url", "https://[::1]:9090"),
        ("share", 0.01),
        ("share", 100),
        ("max_nonces", 1),
        ("max_nonces", 2**48),
        ("expected_valid_rate", 0),
        ("expected_valid_rate", 1),
    ],
)
def test_the_bounds_themselves_are_allowed(field: str, value: Any) -> None:
    """The least and the greatest allowed value pass and are kept."""
    assert make_spec(**{field: value}).model_dump()[field] == value


def test_the_defaults_are_those_of_the_protocol() -> None:
    """A round that names only what it has to is 330 s of 32 x 256."""
    spec = RoundSpec.build(
        block_hash="b", public_key="k", r_target=1, model="m", model_fingerprint=FINGERPRINT
    )
    assert (spec.window_s, spec.seq_len, spec.batch_size) == (330, 256, 32)
    assert (spec.node_id, spec.node_count, spec.block_height) == (0, 1, 0)
    assert (spec.share, spec.max_nonces, spec.callback_url) == (1, None, None)
    assert spec.proof == Distance(r_target=1, fraud_threshold=0.01)


@given(
    r_target=st.floats(0, 2, exclude_min=True),
    window_s=st.floats(0.001, 3600),
    share=st.floats(0.01, 100),
    block_hash=st.text(min_size=1, max_size=256).filter(lambda t: t.isprintable() and t.strip()),
    node=st.integers(1, 2**31 - 1).flatmap(
        lambda count: st.tuples(st.integers(0, count - 1), st.just(count))
    ),
    max_nonces=st.none() | st.integers(1, 2**48),
)
def test_json_brings_back_the_same_specification(
    r_target: float,
    window_s: float,
    share: float,
    block_hash: str,
    node: tuple[int, int],
    max_nonces: int | None,
) -> None:
    """What the store writes is what it reads, to the last bit."""
    spec = make_spec(
        r_target=r_target,
        window_s=window_s,
        share=share,
        block_hash=block_hash,
        node_id=node[0],
        node_count=node[1],
        max_nonces=max_nonces,
    )
    assert RoundSpec.model_validate_json(spec.model_dump_json()) == spec
    assert RoundSpec.build(**spec.model_dump()) == spec


def test_the_parameters_of_the_proof_stand_flat() -> None:
    """They are the scheme's, and part of the specification wherever it is written."""
    spec = make_spec(r_target=1.5, fraud_threshold=0.2)
    assert spec.proof == Distance(r_target=1.5, fraud_threshold=0.2)
    written = spec.model_dump()
    assert (written["r_target"], written["fraud_threshold"]) == (1.5, 0.2)
    assert not {"proof", "scheme"} & set(written)
    with pytest.raises(InvalidRound, match=r"^scheme is 'chance'; allowed: artifact or distance"):
        make_spec(scheme="chance")


def test_given_nonces_are_those_of_the_round() -> None:
    """By index and back, whatever the node's own are; they are as many as it checks."""
    given = (2**63 - 1, 5, 0, 7)
    spec = make_spec(given_nonces=given, node_id=1, node_count=3, max_nonces=2)
    assert spec.max_nonces == 4
    assert [*spec.nonces(0, 3), *spec.nonces(3, 4), *spec.nonces(4, 4)] == list(given)
    assert [spec.index_of(nonce) for nonce in given] == [0, 1, 2, 3]
    for start, stop in ((-1, 2), (3, 2), (2, 5)):
        with pytest.raises(InvalidRound, match=r"^nonce range is "):
            spec.nonces(start, stop)
    with pytest.raises(InvalidRound, match=r"^nonce is 1; allowed: one of those"):
        spec.index_of(1)
    assert RoundSpec.model_validate_json(spec.model_dump_json()) == spec
    assert RoundSpec.build(**spec.model_dump()) == spec


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((3, 4, 3), "is 3; allowed: each nonce once"),
        ((-1,), r"is \(-1,\); allowed: 1 to 10000 whole numbers from 0"),
    ],
)
def test_given_nonces_that_cannot_be_are_named(given: tuple[int, ...], said: str) -> None:
    """With what is allowed."""
    with pytest.raises(InvalidRound, match=f"^given_nonces {said}"):
        make_spec(given_nonces=given)


def test_a_round_is_written_as_ever_where_no_nonces_are_given() -> None:
    """Workers of an earlier version read it; and the largest one is of a bounded size."""
    assert not {"given_nonces", "asked_by"} & make_spec().model_dump().keys()
    largest = make_spec(given_nonces=tuple(range(2**63 - MAX_GIVEN, 2**63)))
    assert len(largest.model_dump_json()) < 250_000


def test_only_an_active_round_is_active() -> None:
    """Every other state is an end."""
    assert [state for state in RoundState if state.is_active] == [RoundState.ACTIVE]
