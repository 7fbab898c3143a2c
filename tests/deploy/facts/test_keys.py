"""Keys as `inferenced` speaks of them: their addresses, why it failed, and what the network knows of them."""

from __future__ import annotations

import json

import pytest

from pocqueue.deploy.facts.keys import (
    KeyProblem,
    checked_address,
    checked_public_key,
    key_problem,
    read_address,
    read_participant,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer

ADDRESS = "gonka17tvsmufmewvwfy3dfxz7l20jmlhhn6eqsrsss9"
PUBLIC_KEY = "ApyZAVGwm2gP8ojw8bbvDb1+TgrkyAkZb1UcM4qCbnP4"
PROMPTS = "Enter keyring passphrase (attempt 1/3):\nRe-enter keyring passphrase:\n"


def test_the_address_of_a_key() -> None:
    """Among prompts; its checksum is looked at."""
    assert read_address(f"{PROMPTS}{ADDRESS}\n") == ADDRESS
    assert read_address(f"Enter keyring passphrase (attempt 1/3):{ADDRESS}") == ADDRESS
    for text in (
        "",
        "Error: key not found",
        f"{ADDRESS[:-1]}q",
        f"{ADDRESS} gonka1{'q' * 38}",
        "cosmos1abc",
    ):
        with pytest.raises(UnexpectedAnswer):
            read_address(text)
    with pytest.raises(UnexpectedAnswer):
        checked_address(ADDRESS.upper())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Error: incorrect passphrase", KeyProblem.REFUSED),
        (
            "bcrypt: password length exceeds 72 bytes\ntoo many failed passphrase attempts",
            KeyProblem.TOO_LONG,
        ),
        ("too many failed passphrase attempts", KeyProblem.REFUSED),
        ("override the existing name quick-newton [y/N]: Error: aborted", KeyProblem.EXISTS),
        ("Error: quick-newton.info: key not found", KeyProblem.NOT_FOUND),
        ("x is not a valid name or address: decoding bech32 failed", KeyProblem.NOT_FOUND),
        ("Error: EOF", KeyProblem.NO_INPUT),
        ("write /root/.inference: no space left on device", KeyProblem.NO_SPACE),
        ("panic: runtime error", KeyProblem.UNKNOWN),
    ],
)
def test_why_it_failed(text: str, problem: KeyProblem) -> None:
    """In its own words."""
    assert key_problem(text) is problem


def test_participants_of_the_network() -> None:
    """One with a key, one that has never signed, none, and an answer that leaves it open."""
    assert read_participant(200, json.dumps({"pubkey": PUBLIC_KEY})) == PUBLIC_KEY
    assert read_participant(200, '{"pubkey": ""}') is None
    assert read_participant(404, "not found") is None
    unknown = '{"error": "rpc error: code = NotFound desc = account not found"}'
    assert read_participant(500, unknown) is None
    for status, text in (
        (200, "{}"),
        (200, "<html>"),
        (502, '{"pubkey": ""}'),
        (500, ""),
        (502, unknown),
        (500, f"[{unknown}]"),
        (500, '{"error": {"code = NotFound": 1}}'),
        (500, '{"error": "rpc error: code = Unavailable desc = connection refused"}'),
        (200, '{"pubkey": "AAAA"}'),
    ):
        with pytest.raises(UnexpectedAnswer):
            read_participant(status, text)


def test_public_keys() -> None:
    """33 bytes that begin with 02 or 03."""
    assert checked_public_key(PUBLIC_KEY) == PUBLIC_KEY
    for text in ("", "Apy", PUBLIC_KEY[:-4], "B" + PUBLIC_KEY[1:], "é" * 44):
        with pytest.raises(UnexpectedAnswer):
            checked_public_key(text)
