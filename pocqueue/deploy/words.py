"""What goes to a server, and what of it may be seen: words, scripts, secrets, and the redactor of everything that is shown.

A secret has no text of its own: it cannot get into a command line, since a command takes texts alone, and goes out by
standard input or into a file of mode 0600.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from typing_extensions import override

#: Sequences that steer a terminal: CSI, OSC and the like, two-byte escapes.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)?|.?)|\x9b[0-?]*[ -/]*[@-~]"
)
#: Characters that a line cannot have, among them those that turn the direction of text or break lines in a viewer.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
#: As a whole, or up to the end of what there is of it.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
#: Twelve words or more of a mnemonic's form, and nothing but blanks or numbers between them.
_MNEMONIC = re.compile(r"(?<![\w./-])(?:[a-z]{3,8}[ \t]+){11,}[a-z]{3,8}(?![\w./-])")
#: The longest line that is logged.
MAX_LINE_CHARS = 2_000


class Secret:
    """A text that is used and never shown.

    Args:
        name: what stands for it, such as ``KEYRING_PASSWORD``.
        value: not empty.
    """

    __slots__ = ("_value", "name")

    def __init__(self, name: str, value: str) -> None:
        assert value
        self.name = name
        self._value = value

    def reveal(self) -> str:
        """Return the text, for standard input or a private file."""
        return self._value

    @override
    def __repr__(self) -> str:
        return f"‹{self.name}›"

    @override
    def __reduce__(self) -> str:
        raise TypeError(f"{self!r} is a secret and does not leave this process by itself.")


def quoted(word: str) -> str:
    """Return a word as every shell reads it back: sh, bash, zsh, and fish, which has escapes in single quotes.

    Raises:
        ValueError: it has a NUL, which no word of a command can have.
    """
    if "\0" in word:
        raise ValueError("a word of a command has no NUL")
    if "\\" not in word:
        return shlex.quote(word)
    return '"\\\\"'.join(shlex.quote(part) if part else "" for part in word.split("\\"))


def without_breaks(line: str) -> str:
    """Return a line of shell that does the same, and has neither line breaks nor `!`: csh takes these in no quotes.

    It is itself the same for sh, csh and fish.
    """
    plain = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 /._-=:,")
    coded = "".join(chr(c) if c in plain else f"\\0{c:03o}" for c in line.encode())
    return f"""sh -c 'eval "exec $(printf %b "$1")"' sh '{coded}'"""


@cache
def script(name: str) -> str:
    """Return the text of a script of ours, `pocqueue/deploy/scripts/NAME.sh`, in one piece.

    A line `. common/NAME.sh` is what several of them have in common; nothing but this text is on the server.
    """
    folder = resources.files("pocqueue.deploy").joinpath("scripts")
    lines = folder.joinpath(f"{name}.sh").read_text("utf-8").splitlines(keepends=True)
    return "".join(
        folder.joinpath(line[2:-1]).read_text("utf-8") if line.startswith(". common/") else line
        for line in lines
    )


def whole(*parts: str | Secret) -> tuple[str | Secret, ...]:
    """Return what a script of ours reads as a whole, or not at all (`common/take.sh`): a line before it has its SHA-256.

    It is no argument: arguments are seen by all users there, and a secret may be guessed by its hash.
    """
    return (f"{hashlib.sha256(_bytes(parts)).hexdigest()}\n", *parts)


def _bytes(parts: Iterable[str | Secret]) -> bytes:
    return "".join(p.reveal() if isinstance(p, Secret) else p for p in parts).encode()


@dataclass(frozen=True, slots=True)
class Command:
    """One command for the server.

    Attributes:
        words: program and arguments; no secret can be among them.
        stdin: what it reads, one after the other; secrets are shown by their names.
        script: name of the script of ours that `words` are the arguments of; empty: they are a command themselves.
        sudo: run as root.
        timeout_s: seconds until it is given up, though it may go on there.
    """

    words: tuple[str, ...]
    stdin: tuple[str | Secret, ...] = ()
    script: str = ""
    sudo: bool = False
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        assert all(isinstance(word, str) for word in self.words)

    def argv(self) -> tuple[str, ...]:
        """Return program and arguments as they run there, without sudo."""
        if self.script:
            return ("sh", "-eu", "-c", script(self.script), self.script, *self.words)
        return self.words

    def line(self, *, sudo: tuple[str, ...] = ("sudo", "-n")) -> str:
        """Return the line for the shell there.

        Args:
            sudo: words before a command that runs as root; none where we are root.
        """
        words = (*sudo, *self.argv()) if self.sudo else self.argv()
        return " ".join(map(quoted, words))

    def shown(self) -> str:
        """Return the line for people: a script by its name, secrets by theirs."""
        words = [f"{self.script}.sh", *self.words] if self.script else list(self.words)
        line = " ".join(map(quoted, (*(("sudo", "-n") if self.sudo else ()), *words)))
        secrets = [repr(part) for part in self.stdin if isinstance(part, Secret)]
        return f"{line} < {' '.join(secrets)}" if secrets else line

    def input(self) -> bytes:
        """Return what it reads from standard input."""
        return _bytes(self.stdin)


def _plain(text: str) -> str:
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\t", "    ")))


def one_line(text: str) -> str:
    """Return a text as one line that is safe to print: no escape sequences, no control characters, no end too far."""
    return _cut(_plain(text).replace("\n", " "))


def _cut(line: str) -> str:
    return (
        line
        if len(line) <= MAX_LINE_CHARS
        else f"{line[:MAX_LINE_CHARS]}… ({len(line):,} characters)"
    )


class Redactor:
    """Replaces the secrets of a run, and what looks like one, in everything that is shown.

    Args:
        secrets: those that are known; more may be added.
    """

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        #: What to look for and what stands for it, the longest first: one may be a part of another.
        self._forms: list[tuple[str, str]] = []
        for secret in secrets:
            self.add(secret)

    def add(self, secret: Secret) -> None:
        """Know one more, in the forms that it may come back in."""
        # Shorter ones would be found in everything.
        forms = {(form, repr(secret)) for form in _forms(secret.reveal()) if len(form) >= 4}
        self._forms = sorted({*self._forms, *forms}, key=lambda pair: (-len(pair[0]), pair))

    def __call__(self, text: str) -> str:
        """Return a text without them."""
        for form, name in self._forms:
            text = text.replace(form, name)
        text = _PRIVATE_KEY.sub("‹private key›", text)
        return _MNEMONIC.sub("‹mnemonic›", _HUB_TOKEN.sub("‹token›", text))

    def lines(self, text: str) -> list[str]:
        """Return the lines of an output, each safe to print; at least one."""
        # Redacted after the escapes went, which may stand in a secret, and before the lines are cut, which may end in one.
        plain = self(_plain(re.sub(r"\r\n?", "\n", text)))
        return [_cut(line) for line in plain.split("\n")]


def _forms(value: str) -> set[str]:
    as_json = json.dumps(value)[1:-1]
    as_text = json.dumps(value, ensure_ascii=False)[1:-1]
    return {value, quoted(value), shlex.quote(value), as_json, as_text, value.replace("$", "$$")}
