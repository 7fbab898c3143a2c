"""The answer of a script that reads several facts at once, and the error for text that is not what it should be.

A command costs 100 ms over SSH, so facts are read in few scripts. What each command there said comes as a part:

    @NAME
     its lines, each behind a blank
    =EXIT_CODE

Nothing that a file or a disk says can pass for the other lines, since all of it comes behind a blank.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pocqueue.deploy.errors import DeployError
from pocqueue.deploy.words import one_line


class UnexpectedAnswer(DeployError, ValueError):
    """A command of the server said something that is not understood; nothing is concluded from it.

    Attributes:
        what: the command or file.
        text: the beginning of what it said.
    """

    def __init__(self, what: str, text: str, wanted: str) -> None:
        self.what = what
        self.text = one_line(text[:400].replace("\n", "⏎"))[:200]
        said = f"{self.text!r}" if self.text else "nothing"
        super().__init__(
            f"{what} said {said}, which is not {wanted}. Nothing is concluded from that: look at it on the server."
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What one command said.

    Attributes:
        name: of the part.
        text: its lines, without the last line's end.
        exit_code: of the command.
    """

    name: str
    text: str
    exit_code: int

    @property
    def lines(self) -> list[str]:
        """Return its lines that are not empty."""
        return [line for line in self.text.split("\n") if line.strip()]

    def wanted(self, *exit_codes: int) -> Part:
        """Return this part if it ended in one of these ways; none given: with 0.

        Raises:
            UnexpectedAnswer: it did not.
        """
        if self.exit_code not in (exit_codes or (0,)):
            raise UnexpectedAnswer(
                f"{self.name} (exit code {self.exit_code})", self.text, "an answer of it"
            )
        return self

    def json(self) -> Any:
        """Return the JSON that it is.

        Raises:
            UnexpectedAnswer: it is none.
        """
        return read_json(self.name, self.text)


def read_parts(text: str, *names: str) -> dict[str, Part]:
    """Return the parts of an answer by their names.

    Args:
        text: what the script printed.
        names: of the parts that have to be there.

    Raises:
        UnexpectedAnswer: it is no such answer, or ended before the last part did.

    >>> read_parts("@kernel\\n 6.18\\n=0\\n", "kernel")["kernel"]
    Part(name='kernel', text='6.18', exit_code=0)
    """
    found = {part.name: part for part in _parts(text)}
    for name in names:
        if name not in found:
            raise UnexpectedAnswer(
                "The script that reads facts", text[-200:], f"an answer with the part {name}"
            )
    return found


def _parts(text: str) -> Iterator[Part]:
    name, lines = "", list[str]()
    for line in text.split("\n"):
        if line.startswith(" ") and name:
            lines.append(line[1:])
        elif line.startswith("@") and not name:
            name, lines = line[1:], []
        elif line.startswith("=") and name and line[1:].isdecimal():
            yield Part(name, "\n".join(lines), int(line[1:]))
            name = ""
        elif line:
            raise UnexpectedAnswer("The script that reads facts", line, "a line of its parts")
    if name:
        raise UnexpectedAnswer(
            "The script that reads facts", text[-200:], f"the end of the part {name}"
        )


def read_json(what: str, text: str) -> Any:
    """Return the JSON that a text is.

    Raises:
        UnexpectedAnswer: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnexpectedAnswer(what, text, "JSON") from None


def pairs(what: str, text: str) -> dict[str, str]:
    """Return lines ``name=value`` by their names.

    Raises:
        UnexpectedAnswer: a line is none.
    """
    found = {}
    for line in text.split("\n"):
        if not line:
            continue
        name, equals, value = line.partition("=")
        if not equals or not name:
            raise UnexpectedAnswer(what, line, "a line name=value")
        found[name] = value
    return found


def os_release(part: Part) -> dict[str, str]:
    """Return the fields of `/etc/os-release`, whose values may stand in quotes.

    Raises:
        UnexpectedAnswer: a line is none.
    """
    lines = [line for line in part.lines if not line.startswith("#")]
    fields = pairs("/etc/os-release", "\n".join(lines))
    return {name: _unquoted(value) for name, value in fields.items()}


def _unquoted(value: str) -> str:
    try:
        return "".join(shlex.split(value))
    except ValueError:
        return value


def unescaped(word: str) -> str:
    """Return a word of `/proc/mounts` or fstab, where blanks and the like are octal numbers.

    >>> unescaped("/mnt/a\\040disk")
    '/mnt/a disk'
    """
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
