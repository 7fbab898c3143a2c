"""Words, secrets and scripts: what a shell reads back, and what is never shown."""

from __future__ import annotations

import pickle
import shutil
import subprocess

import pytest
from hypothesis import given, strategies as st

from pocqueue.deploy.words import Command, Redactor, Secret, quoted

HOSTILE = "a'b\"c $(touch x) `id` \\ \\\\ \n ; é ! ~ * {a,b}"
PASSWORD = "p\"a$s`s # ;  w'ord\\"


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20))
def test_words_stay_one_word(word: str) -> None:
    """Quoting is undone by the rules of POSIX, and no backslash stands in quotes where fish would read it otherwise."""
    import re
    import shlex

    assert shlex.split(quoted(word)) == [word]
    assert not any("\\" in part for part in re.findall(r"'([^']*)'", quoted(word)) if part != '"')


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shells_read_words_back(shell: str) -> None:
    """What is hostile comes back as it was, and runs nothing."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    line = Command(("printf", "%s|%s|", HOSTILE, "")).line()
    done = subprocess.run([shell, "-c", line], capture_output=True, check=True)
    assert done.stdout.decode() == f"{HOSTILE}||"


def test_a_nul_is_refused() -> None:
    """No word of a command can have one."""
    with pytest.raises(ValueError, match="NUL"):
        quoted("a\0b")


def test_secrets_go_by_stdin_and_are_shown_by_name() -> None:
    """Neither in the line nor in what is shown, nor by any of Python's ways to print."""
    secret = Secret("KEYRING_PASSWORD", PASSWORD)
    command = Command(("inferenced", "keys", "add", "x"), (secret, "\n", secret, "\n"), sudo=True)
    assert command.input() == f"{PASSWORD}\n{PASSWORD}\n".encode()
    assert command.line() == "sudo -n inferenced keys add x"
    assert command.line(sudo=()) == "inferenced keys add x"
    assert (
        command.shown() == "sudo -n inferenced keys add x < ‹KEYRING_PASSWORD› ‹KEYRING_PASSWORD›"
    )
    for text in (str(secret), repr(secret), f"{secret}", "%s" % secret, repr(command)):  # noqa: UP031
        assert PASSWORD not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(AssertionError):
        Command(("echo", secret))  # type: ignore[arg-type]


def test_the_redactor_knows_every_form() -> None:
    """Plain, quoted for a shell, in JSON, with colours in between, and what only looks like a secret."""
    import json
    import shlex

    redactor = Redactor([Secret("KEYRING_PASSWORD", PASSWORD), Secret("SHORT", "abc")])
    for form in (PASSWORD, shlex.quote(PASSWORD), quoted(PASSWORD), json.dumps(PASSWORD)):
        [line] = redactor.lines(f"x {form} y")
        assert "‹KEYRING_PASSWORD›" in line
        assert PASSWORD[:8] not in line
    assert redactor.lines(f"{PASSWORD[:5]}\x1b[1m{PASSWORD[5:]}") == ["‹KEYRING_PASSWORD›"]
    assert redactor("alphabet") == "alphabet"
    words = "abandon ability able about above absent absorb abstract absurd abuse access accident"
    assert redactor.lines(f"- address: x\n{words}\n") == ["- address: x", "‹mnemonic›", ""]
    assert redactor.lines(f"{words} {words}") == ["‹mnemonic›"]
    assert redactor("token hf_" + "A1b2" * 8) == "token ‹token›"
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\nAAAA\n-----END OPENSSH PRIVATE KEY-----\nafter"
    assert redactor.lines(key) == ["‹private key›", "after"]


def test_lines_are_harmless() -> None:
    """No control characters, no steering of a terminal, no endless lines."""
    lines = Redactor().lines(
        "\x1b[2J\x1b]0;title\x07red\x1b[31m\x00\x9b1mtext\r\n[OK] done\rx\u202e\ttab"
    )
    assert lines == ["redtext", "[OK] done", "x    tab"]
    [line] = Redactor().lines("y" * 100_000)
    assert len(line) < 2_100
