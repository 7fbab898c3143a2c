"""What messages show of numbers and values."""

from __future__ import annotations

import pytest

from pocqueue.words import counted, shown


@pytest.mark.parametrize(
    ("num", "noun", "wanted"),
    [
        (0, "valid nonce", "0 valid nonces"),
        (1, "valid nonce", "1 valid nonce"),
        (2_000, "valid nonce", "2,000 valid nonces"),
        (1, "batch", "1 batch"),
        (2, "batch", "2 batches"),
        (2, "process", "2 processes"),
    ],
)
def test_one_thing_and_many(num: int, noun: str, wanted: str) -> None:
    """In the words of English."""
    assert counted(num, noun) == wanted


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("callback_url", "http://me:hunter2@host:80/hook?key=hunter2", "'http://…@host:80/…'"),
        ("callback_url", "http://me:hun/hunter2@host", "'http://…@host'"),
        ("callback_url", "me:hunter2@host/hook", "'…@host/…'"),
        ("params.model", "http://host/?hunter2", "'http://host/…'"),
        ("callback_url", "ftp://[::1]", "'ftp://[::1]'"),
        ("auth_token", "hunter2", "'…'"),
        ("auth_token", 5, "'…'"),
        ("body", {"auth_token": "hunter2", "b": 1}, "an object with 'auth_token', 'b'"),
        ("body", [{"auth_token": "hunter2"}], "a list of 1"),
        ("body", [], "[]"),
        ("nonces", [1, -2], "[1, -2]"),
        ("model", "name@bfloat16", "'name@bfloat16'"),
        ("public_key", "x" * 100, f"'{'x' * 59}… (100 characters)"),
    ],
)
def test_a_message_repeats_no_secret(field: str, value: object, wanted: str) -> None:
    """Neither of a URL nor of a token; the rest is repeated as it was given, if it is short."""
    assert shown(field, value) == wanted
