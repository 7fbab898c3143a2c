"""Keys as `inferenced` speaks of them: found whatever it prints where, and the words never seen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pocqueue.deploy.facts.keys import (
    KeyProblem,
    NewKey,
    checked_address,
    checked_public_key,
    key_problem,
    keyring_facts,
    read_address,
    read_keyring,
    read_new_key,
    read_participant,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer

ADDRESS = "gonka17tvsmufmewvwfy3dfxz7l20jmlhhn6eqsrsss9"
PUBLIC_KEY = "ApyZAVGwm2gP8ojw8bbvDb1+TgrkyAkZb1UcM4qCbnP4"
WORDS = " ".join(f"{a}{b}ck" for a in "abcd" for b in "aeiouy")
PROMPTS = "Enter keyring passphrase (attempt 1/3):\nRe-enter keyring passphrase:\n"
ADVICE = "**Important** write this mnemonic phrase in a safe place.\nIt is the only way to recover your account.\n"

YAML = f"""\
- address: {ADDRESS}
  name: quick-newton
  pubkey: '{{"@type":"/cosmos.crypto.secp256k1.PubKey","key":"{PUBLIC_KEY}"}}'
  type: local
"""
JSON = {
    "name": "quick-newton",
    "type": "local",
    "address": ADDRESS,
    "pubkey": json.dumps({"@type": "/cosmos.crypto.secp256k1.PubKey", "key": PUBLIC_KEY}),
}


@pytest.mark.parametrize(
    ("stdout", "stderr"),
    [
        (f"{PROMPTS}\n{YAML}\n\n{ADVICE}\n{WORDS}\n", ""),
        (YAML, f"{PROMPTS}\n{ADVICE}\n{WORDS}\n"),
        ("", f"{PROMPTS}{YAML}\n{ADVICE}\n{WORDS}\n"),
        (json.dumps(JSON | {"mnemonic": WORDS}), PROMPTS),
        ("", PROMPTS.replace("\n", "") + json.dumps(JSON | {"mnemonic": WORDS})),
        (
            YAML.replace("- address", "address").replace("  name", "name") + f"mnemonic: {WORDS}\n",
            "",
        ),
        (f'{YAML}  mnemonic: ""\n\n{ADVICE}\n  {WORDS}\n', PROMPTS),
    ],
)
def test_a_new_key_is_read_wherever_it_is_printed(stdout: str, stderr: str) -> None:
    """YAML or JSON, on either output, with prompts before it on the same line or another."""
    key = read_new_key("quick-newton", stdout, stderr)
    assert (key.name, key.address, key.public_key) == ("quick-newton", ADDRESS, PUBLIC_KEY)
    assert key.mnemonic is not None
    assert key.mnemonic.reveal() == WORDS
    assert WORDS[:20] not in f"{key!r} {key}"


def test_a_key_without_words_has_none() -> None:
    """With --no-mnemonic, or where they went elsewhere: nothing is made up."""
    assert read_new_key("quick-newton", YAML, f"{PROMPTS}{ADVICE}") == NewKey(
        "quick-newton", ADDRESS, PUBLIC_KEY, None
    )


@pytest.mark.parametrize(
    "stdout",
    [
        f"{YAML}\n{WORDS}\n".replace("quick-newton", "other"),
        f"{YAML}\n{WORDS}\n".replace(ADDRESS, ADDRESS[:-1] + "q"),
        f"{YAML}\n{WORDS}\n".replace("address", "adress"),
        f"Error: EOF\n{WORDS}\n",
        f"{{{WORDS}",
        f'{{"address": "x", "mnemonic": "{WORDS}"}}',
        f"mnemonic: {WORDS}",
    ],
)
def test_an_error_never_has_the_words(stdout: str) -> None:
    """Another name, a wrong checksum, a cut output."""
    with pytest.raises(UnexpectedAnswer) as caught:
        read_new_key("quick-newton", stdout, stdout)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert WORDS[:20] not in f"{chain} {chain!r} {vars(chain)}"
        chain = chain.__context__


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


def test_the_keyrings_folder(tmp_path: Path) -> None:
    """Names without a password: exactly the key's, not one that begins alike."""

    def listed(folder: Path) -> str:
        argv = keyring_facts(str(folder)).argv()
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout

    assert not read_keyring(listed(tmp_path / "none")).exists
    for name in ("quick-newton-2.info", "0a1b.address", "keyhash"):
        (tmp_path / name).touch()
    facts = read_keyring(listed(tmp_path))
    assert facts.exists
    assert facts.names == {"quick-newton-2"}
    assert "quick-newton" not in facts.names
    assert facts.others == {"0a1b.address", "keyhash"}
    with pytest.raises(UnexpectedAnswer):
        read_keyring(listed(tmp_path / "keyhash"))


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
