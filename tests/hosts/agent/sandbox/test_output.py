"""Beginning and end of an output are kept."""

from __future__ import annotations

import random

import pytest

from pocqueue.hosts.agent.sandbox.output import Output


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 149, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_head_and_tail_however_it_comes(size: int, seed: int) -> None:
    """In pieces of any length."""
    text = "".join(chr(ord("a") + number % 26) for number in range(size))
    pieces, output, rest = random.Random(seed), Output(100), text  # noqa: S311 - a test
    while rest:
        cut = pieces.randint(1, 400)
        output.feed(rest[:cut].encode())
        rest = rest[cut:]
    assert (output.total, output.left_out) == (size, max(0, size - 100))
    if size <= 100:
        assert output.text() == text
    else:
        assert output.text() == f"{text[:50]}\n[{size - 100} bytes left out]\n{text[-50:]}"


def test_what_is_no_text_is_replaced() -> None:
    """And never an error."""
    output = Output(100)
    output.feed(b"\xff\x00ok")
    assert output.text() == "�\x00ok"
