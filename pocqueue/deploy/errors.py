"""Errors of provisioning, each with the code that the command leaves with.

DeployError (1)
├── BadUsage (2): ConfError
├── Unreachable, HostKeyUnknown, HostKeyChanged
├── Locked (3)
├── StepFailed, OutcomeUnknown
├── UnsafeDisk
└── VerificationFailed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from pocqueue.errors import PocqueueError
from pocqueue.words import counted


class DeployError(PocqueueError):
    """Something about provisioning a server.

    Attributes:
        exit_code: what the command leaves with.
    """

    exit_code = 1


class BadUsage(DeployError):
    """A command is asked for something that it cannot do as it is asked; nothing was done."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one field of a conf file."""

    #: Counted from 1; 0: with the file as a whole.
    line: int
    #: Empty: with no field in particular.
    field: str
    #: A sentence, which never has a secret in it.
    text: str

    @override
    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.text}"


class ConfError(BadUsage, ValueError):
    """A conf file cannot be used; every problem that was found is in the message.

    Attributes:
        problems: at least one.
    """

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        said = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(
            f"{path} has {counted(len(problems), 'problem')}, nothing was connected:{said}"
        )


class Unreachable(DeployError, ConnectionError):
    """No SSH connection could be made, or none could be made again."""


class HostKeyUnknown(DeployError):
    """The server has a host key that nobody has confirmed.

    Attributes:
        key: ``TYPE BASE64``.
        fingerprint: of that key, ``SHA256:…``.
    """

    def __init__(self, server: str, key: str, fingerprint: str) -> None:
        self.server = server
        self.key = key
        self.fingerprint = fingerprint
        super().__init__(
            f"{server} has a host key that is not known yet: {fingerprint}. Compare it with the one that your "
            f"provider shows; then answer the question of a run without --yes, or write SSH_HOST_KEY={fingerprint} "
            "into the conf file."
        )


class HostKeyChanged(DeployError):
    """The server has another host key than before: it was installed anew, or somebody is in between.

    Attributes:
        expected: fingerprints that would do.
        found: the server's.
    """

    def __init__(self, server: str, expected: Sequence[str], found: str, known_hosts: str) -> None:
        self.expected = tuple(expected)
        self.found = found
        super().__init__(
            f"{server} has the host key {found}, but {' or '.join(expected)} is expected ({known_hosts}). Nothing was "
            "done. If the server was installed anew, compare the key with the one that your provider shows and "
            f"change it there; {known_hosts} is never overwritten by a run."
        )


class Locked(DeployError):
    """Another run works on this server, or on this conf's folder.

    Attributes:
        holder: who, as far as is known.
    """

    exit_code = 3

    def __init__(self, what: str, holder: str) -> None:
        self.holder = holder
        super().__init__(
            f"{what} is in use by another run ({holder or 'unknown'}): wait for its end, or end it there. The lock frees itself."
        )


class StepFailed(DeployError):
    """A step did not do what it is for.

    Attributes:
        step: its name.
        exit_code_there: of the command; None: it went well, but the server is not as it should be.
        tail: the last lines that the command printed, redacted.
    """

    def __init__(
        self,
        step: str,
        reason: str,
        *,
        exit_code_there: int | None = None,
        tail: Sequence[str] = (),
    ) -> None:
        self.step = step
        self.exit_code_there = exit_code_there
        self.tail = tuple(tail)
        super().__init__(f"{step}: {reason}")


class OutcomeUnknown(DeployError):
    """The connection broke while a command ran: it may have done its work, or not, or may be running still."""

    def __init__(self, shown: str) -> None:
        super().__init__(
            f"The connection broke while this ran: {shown[:300]}. Whether it did its work is not known; run the same command again, "
            "it looks at the server first."
        )


class UnsafeDisk(DeployError):
    """A disk is not what may be formatted.

    Attributes:
        device: such as ``/dev/vdc``.
        found: what speaks against it, a sentence each.
    """

    def __init__(self, device: str, found: Sequence[str]) -> None:
        self.device = device
        self.found = tuple(found)
        super().__init__(f"{device} is not formatted: {' '.join(found)}")


class VerificationFailed(DeployError):
    """A node does not do what a verified node does.

    Attributes:
        checks: names of the required checks that failed.
    """

    def __init__(self, checks: Sequence[str]) -> None:
        self.checks = tuple(checks)
        super().__init__(f"{counted(len(checks), 'check')} failed: {', '.join(checks)}.")
