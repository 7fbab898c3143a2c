"""Heads of frames: what may be sent, and what is refused by five bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from pocqueue.pouw.errors import PeerFault
from pocqueue.pouw.p2p.deflate import MAX_ADDED_BYTES
from pocqueue.pouw.p2p.frames import (
    DEFLATED,
    LIMITS,
    MAX_ANSWER_BYTES,
    MAX_ITERATION_BYTES,
    REQUESTS,
    Kind,
    answer_to,
    header,
    is_answer,
    max_inflated,
    parse_header,
)
from pocqueue.pouw.slots.maps import MAX_ENTRY_BYTES, cap_of
from pocqueue.pouw.slots.task import MAX_WEIGHTS


@pytest.mark.parametrize("kind", sorted(LIMITS))
def test_a_frame_may_be_as_long_as_its_limit(kind: int) -> None:
    """And no byte longer: our own is not sent, a peer's is held against it."""
    most = LIMITS[kind].max_bytes
    assert parse_header(header(kind, most)) == (kind, most, False)
    with pytest.raises(ValueError, match=f"{most + 1} bytes; allowed: up to {most}"):
        header(kind, most + 1)
    with pytest.raises(PeerFault) as fault:
        parse_header(struct.pack(">IB", most + 1, kind))
    assert fault.value.points == 20


@pytest.mark.parametrize("kind", sorted(LIMITS))
def test_only_what_is_public_comes_deflated(kind: int) -> None:
    """And little of it at once: of noise, which is a committee's secret, the length would tell."""
    if kind not in DEFLATED:
        with pytest.raises(PeerFault, match=f"unknown kind {kind | 0x80}"):
            parse_header(struct.pack(">IB", 0, kind | 0x80))
        return
    assert kind != Kind.NOISE
    most = max_inflated(kind) + MAX_ADDED_BYTES
    assert parse_header(header(kind, most, deflated=True)) == (kind, most, True)
    with pytest.raises(PeerFault, match=f"where {most} are allowed"):
        parse_header(struct.pack(">IB", most + 1, kind | 0x80))


@given(st.binary(min_size=5, max_size=5))
def test_any_five_bytes_are_a_head_or_a_fault(data: bytes) -> None:
    """Nothing else comes of them, and what is taken is within limits."""
    try:
        kind, length, deflated = parse_header(data)
    except PeerFault:
        return
    assert header(kind, length, deflated=deflated) == data


def test_each_request_has_one_answer() -> None:
    """Whose kind is no other frame's, and which has a limit."""
    answers = {answer_to(kind) for kind in REQUESTS}
    assert len(answers) == len(REQUESTS) == len(MAX_ANSWER_BYTES)
    assert answers.isdisjoint(set(Kind))
    assert {kind for kind in LIMITS if is_answer(kind)} == answers | {Kind.REFUSED}


def test_whatever_has_no_rate_is_asked_for_or_comes_once() -> None:
    """A kind that a peer may send unasked has a bucket."""
    unlimited = {kind for kind, limit in LIMITS.items() if not limit.burst}
    assert {kind for kind in unlimited if not is_answer(kind)} == {Kind.INTRODUCTION, Kind.HELLO}


def test_the_largest_map_fits_and_little_more() -> None:
    """Nobody has a node keep much more for a message than one can have."""
    largest = cap_of(MAX_WEIGHTS) * MAX_ENTRY_BYTES
    assert largest + 1024 < MAX_ITERATION_BYTES < 2 * largest
