"""What was said before is said in few bytes, and what comes of a peer's bytes has a limit."""

from __future__ import annotations

import secrets
import zlib

import pytest
from hypothesis import given, strategies as st

from pocqueue.pouw.errors import PeerFault
from pocqueue.pouw.p2p.deflate import MAX_ADDED_BYTES, MAX_DEFLATED_BYTES, Deflater, Inflater


@given(st.lists(st.binary(max_size=2000), max_size=20))
def test_bodies_come_as_they_were(bodies: list[bytes]) -> None:
    deflater, inflater = Deflater(), Inflater()
    for body in bodies:
        assert inflater.inflate(deflater.deflate(body), len(body)) == body


def test_what_was_said_before_is_said_in_few_bytes() -> None:
    deflater = Deflater()
    task, account = secrets.token_bytes(32), secrets.token_bytes(33)
    assert len(deflater.deflate(task + account)) > 65
    assert len(deflater.deflate(b"slot 2" + task + account)) < 20


@pytest.mark.parametrize("size", [0, 1, 1000, MAX_DEFLATED_BYTES])
def test_what_cannot_be_said_shorter_is_hardly_longer(size: int) -> None:
    deflater = Deflater()
    for _ in range(20):
        assert len(deflater.deflate(secrets.token_bytes(size))) <= size + MAX_ADDED_BYTES


def test_a_bomb_is_a_fault() -> None:
    """It is inflated no further than what is allowed."""
    data = Deflater().deflate(bytes(1_000_000))
    assert len(data) < 2000
    with pytest.raises(PeerFault, match="more than 1024 bytes") as fault:
        Inflater().inflate(data, 1024)
    assert fault.value.points == 20


@pytest.mark.parametrize(
    "data", [b"\xff" * 20, zlib.compressobj(wbits=-13).flush(), b"\x00\x05\x00\xfa\xffab"]
)
def test_what_is_no_stream_is_a_fault(data: bytes) -> None:
    """Nor is one that ends, or that a frame leaves in the middle of a block."""
    inflater = Inflater()
    with pytest.raises(PeerFault, match="cannot be inflated"):
        _ = [inflater.inflate(data, 1024) for _ in range(2)]


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_bytes_are_a_body_or_a_fault(data: list[bytes]) -> None:
    inflater = Inflater()
    for each in data:
        try:
            assert len(inflater.inflate(each, 64)) <= 64
        except PeerFault:
            return
