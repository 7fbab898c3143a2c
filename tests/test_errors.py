"""Errors that cross a process boundary, and what is shown of others' errors."""

from __future__ import annotations

import pickle

import pytest

from pocqueue.errors import (
    DelegationError,
    InvalidRound,
    PocqueueError,
    SessionsFull,
    UnknownRound,
    first_line,
)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRound("r_target", 3, "a number above 0 and up to 2"),
        UnknownRound("abc"),
        SessionsFull(10, 2.5),
        DelegationError("It refuses.", is_final=True, status=401),
    ],
)
def test_an_error_survives_the_way_between_processes(error: PocqueueError) -> None:
    """Class, message and attributes."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_of_others_errors_one_line_is_shown() -> None:
    """With their class; a message that is empty or endless does no harm."""
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 1000))) < 320
