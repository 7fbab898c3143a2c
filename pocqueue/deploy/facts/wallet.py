"""The warm wallet as it lies on the server: the keyring, and the answer of `keys add` where that was not fetched yet."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pocqueue.deploy.facts.account import address_of
from pocqueue.deploy.facts.keys import KeyProblem, KeyringFacts, key_problem, read_keyring
from pocqueue.deploy.facts.parts import UnexpectedAnswer, read_parts
from pocqueue.deploy.words import Command


@dataclass(frozen=True, slots=True)
class WalletPlace:
    """Where it is on the server.

    Attributes:
        folder: of the compose files.
        dir: of ours.
        name: of the key.
    """

    folder: str
    dir: str
    name: str

    @property
    def ring(self) -> str:
        """Return the keyring's folder."""
        return f"{self.folder}/.inference/keyring-file"


@dataclass(frozen=True, slots=True)
class WalletFacts:
    """What is so.

    Attributes:
        keyring: its names.
        is_being_made: `keys add` runs.
        answer_hash: SHA-256 of an answer that has not been fetched; empty: there is none.
        failure: what the last `keys add` said that made no key; empty: none has.
    """

    keyring: KeyringFacts
    is_being_made: bool = False
    answer_hash: str = ""
    failure: str = ""

    @property
    def addresses(self) -> frozenset[str]:
        """Return the addresses of the keyring's keys: each has a file that is named by its account."""
        found = (re.fullmatch(r"([0-9a-f]{40})\.address", name) for name in self.keyring.others)
        return frozenset(address_of(bytes.fromhex(match[1])) for match in found if match)

    @property
    def problem(self) -> str:
        """Return why no key was made, for people; empty: nothing failed."""
        if not self.failure:
            return ""
        problem = key_problem(self.failure)
        said = f": {self.failure.splitlines()[-1]}" if problem is KeyProblem.UNKNOWN else ""
        return f"{problem.value}{said}"


def wallet_facts(place: WalletPlace) -> Command:
    """Return the command that reads them; exit code 66: there are no compose files yet."""
    words = (place.folder, place.ring, place.dir, place.name)
    return Command(words, script="wallet_facts", sudo=True)


def read_wallet(text: str) -> WalletFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "maker", "answer", "failure")
    answer = parts["answer"].wanted().text.strip()
    if not re.fullmatch(r"([0-9a-f]{64})?", answer):
        raise UnexpectedAnswer("sha256sum", answer, "a hash")
    return WalletFacts(
        read_keyring(text),
        parts["maker"].text.strip() == "running",
        answer,
        parts["failure"].wanted().text.strip(),
    )
