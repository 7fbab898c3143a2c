"""Public keys that may log in, too: those of ADMIN_KEYS, known by the key itself and not by its comment."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pocqueue.deploy.engine import Host, Plan
from pocqueue.deploy.errors import ConfError, Problem, StepFailed
from pocqueue.deploy.journal import Undo
from pocqueue.deploy.words import Command
from pocqueue.words import counted

_TYPES = (
    *(
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
    ),
    *("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
)


def blob_of(line: str) -> str | None:
    """Return the key of a line of authorized_keys, without options and comment; None: it has none, or is commented out."""
    if line.lstrip().startswith("#"):
        return None
    words = line.split()
    for kind, blob in pairwise(words):
        if kind in _TYPES:
            try:
                raw = base64.b64decode(blob, validate=True)
            except binascii.Error:
                return None
            # The key names its own type: a line that lies about it is no key to sshd either.
            return blob if raw[4 : 4 + len(kind)] == kind.encode() else None
    return None


def read_admin_keys(path: Path) -> tuple[str, ...]:
    """Return the lines of a file of public keys.

    Raises:
        ConfError: it cannot be read, or a line is no public key alone.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfError(path, [Problem(0, "ADMIN_KEYS", f"it cannot be read ({exc}).")]) from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        blob = blob_of(line)
        if blob is None or line.split()[0] not in _TYPES or not line.isprintable():
            allowed = "allowed: TYPE KEY [COMMENT], as in a .pub file, without options."
            raise ConfError(
                path, [Problem(number, "ADMIN_KEYS", f"it is no public key; {allowed}")]
            )
        keys.setdefault(blob, line)
    return tuple(keys.values())


def _named(line: str) -> str:
    """Return a public key's line as people know it: type, end of the key, comment."""
    kind, blob, *comment = line.split(maxsplit=2)
    return " ".join([kind, f"…{blob[-8:]}", *comment])


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """Which keys may log in already, and the lines of those that may not."""

    num_wanted: int
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdminKeys:
    """The keys of ADMIN_KEYS may log in as SSH_USER.

    Args:
        keys: lines of public keys.
    """

    keys: Sequence[str]
    phase: int = 1
    name: str = "admin keys"

    async def look(self, host: Host) -> KeyFacts:
        """Read authorized_keys."""
        if not self.keys:
            return KeyFacts(0, ())
        found = await host.look(Command(("look",), script="admin_keys"))
        if found.exit_code != 0:
            raise StepFailed(self.name, found.stdout.strip() or "cannot be read", tail=found.tail)
        there = {blob_of(line) for line in found.stdout.splitlines()}
        return KeyFacts(
            len(self.keys), tuple(line for line in self.keys if blob_of(line) not in there)
        )

    def told(self, facts: KeyFacts) -> str:
        """Say how many there are."""
        if not facts.num_wanted:
            return "none to add"
        return f"{facts.num_wanted - len(facts.missing)} of {facts.num_wanted} present"

    def is_done(self, facts: KeyFacts) -> bool:
        """Say whether all are there."""
        return not facts.missing

    def plan(self, facts: KeyFacts) -> Plan:
        """Add those that are missing."""
        lines = facts.missing
        return Plan(
            f"+ {counted(len(lines), 'key')} in ~/.ssh/authorized_keys",
            (Command(("add", *lines), script="admin_keys"),),
            # As the login, whose file it is: root has one of its own.
            (
                Undo(
                    self.name,
                    f"remove the keys that were added: {', '.join(map(_named, lines))}",
                    "admin_keys",
                    ("remove", *lines),
                    sudo=False,
                ),
            ),
        )
