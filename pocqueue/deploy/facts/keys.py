"""Keys of the chain as `inferenced` speaks of them: what is in the keyring, what it says, and whose keys the network knows."""

from __future__ import annotations

import base64
import binascii
import enum
import json
import re
from dataclasses import dataclass

from pocqueue.deploy.facts.account import BECH32, PREFIX, has_checksum
from pocqueue.deploy.facts.parts import UnexpectedAnswer, pairs, read_json, read_parts

_ADDRESS = re.compile(rf"\b{PREFIX}1[{BECH32}]{{38,58}}\b")


class KeyProblem(enum.Enum):
    """Why `inferenced` did not do what was asked, each with what to do."""

    REFUSED = "the keyring has another password than KEYRING_PASSWORD: correct it in the conf file"
    TOO_LONG = "its keyrings take 72 bytes of a password at most: set a shorter KEYRING_PASSWORD"
    EXISTS = "a key of this name is there already; it is never overwritten"
    NOT_FOUND = "there is no key of this name"
    NO_INPUT = "it wanted an answer that it was not given"
    NO_SPACE = "the disk is full"
    UNKNOWN = "it says something that is not known"


_SAID = (
    # Before what comes of it: three attempts that fail.
    ("exceeds 72 bytes", KeyProblem.TOO_LONG),
    ("incorrect passphrase", KeyProblem.REFUSED),
    ("too many failed passphrase attempts", KeyProblem.REFUSED),
    ("override the existing name", KeyProblem.EXISTS),
    ("already exists", KeyProblem.EXISTS),
    ("duplicated address", KeyProblem.EXISTS),
    ("key not found", KeyProblem.NOT_FOUND),
    ("is not a valid name or address", KeyProblem.NOT_FOUND),
    ("no space left on device", KeyProblem.NO_SPACE),
    ("eof", KeyProblem.NO_INPUT),
)


@dataclass(frozen=True, slots=True)
class KeyringFacts:
    """The keyring's folder, which needs no password to be listed.

    Attributes:
        names: of its keys.
        others: files that are no keys, such as ``keyhash``.
    """

    names: frozenset[str]
    others: frozenset[str] = frozenset()


def read_keyring(text: str) -> KeyringFacts:
    """Return what `wallet_facts` said of the keyring.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "folder", "files")
    folder = pairs("stat", parts["folder"].wanted().text)
    if folder.get("kind", "directory") != "directory":
        raise UnexpectedAnswer("the keyring's folder", parts["folder"].text, "a folder")
    files = frozenset(parts["files"].wanted().lines)
    names = frozenset(name.removesuffix(".info") for name in files if name.endswith(".info"))
    return KeyringFacts(names, frozenset(name for name in files if not name.endswith(".info")))


def _without_words(text: str) -> str:
    """Return a text for an error: without lines that could be, or have, the words of a key."""
    return "\n".join(
        line for line in text.split("\n") if len(line.split()) < 8 and "mnemonic" not in line
    )


def read_address(text: str) -> str:
    """Return the address that `inferenced keys show NAME -a` prints, among its prompts.

    Raises:
        UnexpectedAnswer: there is none, there are several, or its checksum is wrong.
    """
    found = set(_ADDRESS.findall(text))
    if len(found) != 1:
        raise UnexpectedAnswer(
            "inferenced keys show", _without_words(text), f"one address {PREFIX}1…"
        )
    return checked_address(found.pop())


def addresses_in(text: str) -> frozenset[str]:
    """Return the addresses in a text, such as the answer of `keys add`."""
    return frozenset(filter(has_checksum, _ADDRESS.findall(text)))


def checked_address(address: str) -> str:
    """Return an address whose checksum is right (BIP 173).

    Raises:
        UnexpectedAnswer: it is none.
    """
    if not _ADDRESS.fullmatch(address) or not has_checksum(address):
        raise UnexpectedAnswer("inferenced", address, f"an address {PREFIX}1… with its checksum")
    return address


def key_problem(text: str) -> KeyProblem:
    """Return why `inferenced` failed, from what it said."""
    lower = text.lower()
    return next((problem for said, problem in _SAID if said in lower), KeyProblem.UNKNOWN)


def read_participant(status: int, text: str) -> str | None:
    """Return the public key that the network has for a participant, base64; None: it knows none of this address.

    Args:
        status: of the HTTP answer to `GET SEED_API_URL/v1/participants/ADDRESS`.
        text: of its body.

    Raises:
        UnexpectedAnswer: it is neither; whether there is such a participant stays open then.
    """
    if status == 404 or (status == 500 and _is_not_found(text)):
        return None
    said = read_json("the participants of the network", text) if status == 200 else None
    key = said.get("pubkey") if isinstance(said, dict) else None
    if not isinstance(key, str):
        raise UnexpectedAnswer(
            f"the participants of the network (HTTP {status})",
            text,
            "a participant with its pubkey",
        )
    # An account that has never signed has none.
    return checked_public_key(key) if key else None


def _is_not_found(text: str) -> bool:
    """Return whether the body of a 500 is upstream's word for an unknown account.

    Its API hands on the chain's gRPC error as it is, in `{"error": …}`; newer releases answer 404.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return False
    error = said.get("error") if isinstance(said, dict) else None
    return isinstance(error, str) and "code = NotFound" in error


def checked_public_key(text: str) -> str:
    """Return a public key, base64 of 33 bytes that begin with 02 or 03.

    Raises:
        UnexpectedAnswer: it is none.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 33 or raw[0] not in (2, 3):
        raise UnexpectedAnswer("a public key", text, "base64 of 33 bytes that begin with 02 or 03")
    return text
