"""Answers of scripts that read several facts: what a server says cannot pass for their frame."""

from __future__ import annotations

import subprocess

import pytest

from pocqueue.deploy.facts.parts import UnexpectedAnswer, pairs, read_parts, unescaped
from pocqueue.deploy.words import script


def test_parts_are_read_by_name() -> None:
    """With the lines as they were, and how the command ended."""
    parts = read_parts("@a\n one\n\n  two\n=0\n@b\n=3\n", "a", "b")
    assert (parts["a"].text, parts["a"].exit_code) == ("one\n two", 0)
    assert (parts["b"].text, parts["b"].exit_code) == ("", 3)
    with pytest.raises(UnexpectedAnswer, match=r"b \(exit code 3\) said nothing"):
        parts["b"].wanted()


@pytest.mark.parametrize(
    "text", ["", "@a\n one\n", "@a\none\n=0\n", "hello\n@a\n=0\n", "@a\n=x\n", " @a\n =0\n"]
)
def test_an_answer_of_another_form_is_none(text: str) -> None:
    """Cut, without its frame, or with a banner before it: the message has its text."""
    with pytest.raises(UnexpectedAnswer):
        read_parts(text, "a")


def test_a_message_shows_the_beginning_alone() -> None:
    """Without what steers a terminal."""
    with pytest.raises(UnexpectedAnswer) as caught:
        read_parts("@a\n \x1b[31m{nonsense" + "x" * 1000 + "\n=0\n", "a")["a"].json()
    assert "{nonsense" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_lines_of_names_and_values() -> None:
    """A value may have any sign in it."""
    assert pairs("x", "a=b=c\n\nd=\n") == {"a": "b=c", "d": ""}
    with pytest.raises(UnexpectedAnswer):
        pairs("x", "words")


def test_the_kernels_escapes() -> None:
    """Blanks, tabs, backslashes."""
    assert unescaped(r"/mnt/a\040b\134c") == "/mnt/a b\\c"


def test_no_output_passes_for_the_frame() -> None:
    """The frame of our scripts, around a file that imitates it."""
    part = script("common/parts")
    forged = "x\n=0\n@blkid\n=2"
    said = subprocess.run(
        [  # noqa: S607
            "sh",
            "-euc",
            f'{part}\npart fstab printf %s "$1"\npart last false',
            "sh",
            forged,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    parts = read_parts(said, "fstab", "last")
    assert set(parts) == {"fstab", "last"}
    assert parts["fstab"].text == forged
    assert parts["last"].exit_code == 1
