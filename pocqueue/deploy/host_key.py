"""Which host keys of a server are taken: the one that is pinned, those that were confirmed, and no other.

A file of the node has those that were confirmed, in the form of OpenSSH's known_hosts. It is appended to, when a person said
yes or the key is the pinned one, and never overwritten.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from enum import Enum
from pathlib import Path

from pocqueue.deploy.errors import DeployError, HostKeyChanged, HostKeyUnknown


class Verdict(Enum):
    """What is thought of a server's key."""

    #: It is the pinned one, or one that was confirmed.
    KNOWN = "known"
    #: Nothing is known of this server.
    UNKNOWN = "unknown"
    #: Another one is known.
    CHANGED = "changed"


def fingerprint_of(key: str) -> str:
    """Return the fingerprint of a public key, ``SHA256:…`` as `ssh-keygen -l` prints it.

    Args:
        key: ``TYPE BASE64``, with a comment or without.

    Raises:
        ValueError: it is none.
    """
    try:
        blob = base64.b64decode(key.split()[1], validate=True)
    except (IndexError, binascii.Error):
        raise ValueError("it is no public key") from None
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


class HostKeys:
    """The host keys of one server.

    Args:
        path: the node's file of confirmed keys; it may be missing.
        host: as the conf file names it.
        port: of SSH.
        pinned: the only fingerprint that will do; None: those of the file.

    Raises:
        DeployError: the file cannot be read.
    """

    def __init__(self, path: Path, host: str, port: int, pinned: str | None = None) -> None:
        self.path = path
        self.server = host if port == 22 else f"[{host}]:{port}"
        self.pinned = pinned
        try:
            lines = path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            lines = []
        except (OSError, UnicodeDecodeError) as exc:
            raise DeployError(
                f"{path} cannot be read ({exc}): mend it, nothing was done."
            ) from None
        entries = (line.split(maxsplit=1) for line in lines if not line.startswith("#"))
        self._kept = [entry[1] for entry in entries if len(entry) == 2 and entry[0] == self.server]

    @property
    def types(self) -> list[str]:
        """Return the types of the confirmed keys: a server that has several is asked for one of these."""
        return [key.split()[0] for key in self._kept]

    @property
    def expected(self) -> list[str]:
        """Return the fingerprints that would do; none: nothing is known."""
        return [self.pinned] if self.pinned else [fingerprint_of(key) for key in self._kept]

    def judge(self, key: str) -> Verdict:
        """Say what is thought of a key, ``TYPE BASE64``."""
        expected = self.expected
        if not expected:
            return Verdict.UNKNOWN
        return Verdict.KNOWN if fingerprint_of(key) in expected else Verdict.CHANGED

    def error(self, key: str) -> HostKeyUnknown | HostKeyChanged:
        """Return what to raise for a key that is not taken."""
        found = fingerprint_of(key)
        if not self.expected:
            return HostKeyUnknown(self.server, key, found)
        where = "SSH_HOST_KEY of the conf file" if self.pinned else str(self.path)
        return HostKeyChanged(self.server, self.expected, found, where)

    def keep(self, key: str) -> None:
        """Take a key from now on, and write it down.

        Raises:
            DeployError: it cannot be written.
        """
        key = " ".join(key.split()[:2])
        if key in self._kept:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.path, flags, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(f"{self.server} {key}\n")
                file.flush()
                os.fsync(fd)
        except OSError as exc:
            raise DeployError(f"{self.path} cannot be written ({exc.strerror}): mend it.") from None
        self._kept.append(key)
