"""Answers of HTTP services to the server itself, which reaches what the world does not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, read_json, read_parts
from pocqueue.deploy.words import Command, one_line

#: What a service says that calls itself well with its status, and not with its words.
_SAYS_ERROR = re.compile(r'ERROR|"status"\s*:\s*"(?i:error|failed|unhealthy)"')


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        status: of HTTP; 0: not reached.
        text: its body.
    """

    status: int
    text: str = ""

    @property
    def is_well(self) -> bool:
        """Return whether it is a health that says so, by its status and in its words."""
        return self.status == 200 and not _SAYS_ERROR.search(self.text)

    @property
    def shown(self) -> str:
        """Return it for people; of the words the first, where they tell more than the status."""
        if not self.status:
            return "not reached"
        said = one_line(self.text.strip())[:80]
        return f"HTTP {self.status}" + ("" if self.is_well or not said else f", {said!r}")

    def json(self, what: str) -> Any:
        """Return the JSON that it has.

        Args:
            what: it is, for the error.

        Raises:
            UnexpectedAnswer: it has another status than 200, or no JSON.
        """
        if self.status != 200:
            raise UnexpectedAnswer(f"{what} ({self.shown})", self.text, "an answer of it")
        return read_json(what, self.text)


def http_facts(urls: Iterable[str]) -> Command:
    """Return the command that asks them, one after the other."""
    asked = tuple(urls)
    return Command(asked, script="http_facts", timeout_s=15.0 * len(asked) + 15)


def read_answers(text: str, urls: Iterable[str]) -> dict[str, Answer]:
    """Return what the command said, by URL.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    asked = tuple(urls)
    parts = read_parts(text, *asked)
    return {url: _answer(parts[url]) for url in asked}


def _answer(part: Part) -> Answer:
    if part.exit_code != 0:
        # One that broke off in the middle is none, whatever its status was.
        return Answer(0)
    body, _, status = part.text.rpartition("\n")
    if not re.fullmatch(r"\d{3}", status):
        raise UnexpectedAnswer(f"curl {part.name}", part.text, "an answer with its HTTP status")
    return Answer(int(status), body)
