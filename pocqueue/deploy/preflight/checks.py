"""One check of a server: what was measured, what is wanted, and what to do; and what all of them look at."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, field

from typing_extensions import override

from pocqueue.deploy.facts.docker import PUBLIC_PORTS, DockerFacts
from pocqueue.deploy.facts.gpu import GpuFacts
from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.packages import Remedy
from pocqueue.deploy.facts.system import SystemFacts
from pocqueue.deploy.words import one_line


class Verdict(enum.Enum):
    """What a check found."""

    PASS = "as it should be"  # noqa: S105 - no password
    WARN = "not as it should be, or not known; a run goes on"
    FAIL = "a run stops before anything is changed"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    group: str
    name: str  #: in small letters with `-`, as `--ignore` takes it
    verdict: Verdict
    measured: str
    wanted: str
    remedy: str = ""  #: empty where it passed

    @property
    def line(self) -> str:
        """Return it without what to do, on one line whatever a server said."""
        return one_line(f"{self.verdict.name} {self.name}: {self.measured} (wanted: {self.wanted})")

    @override
    def __str__(self) -> str:
        return f"{self.line}. {self.remedy}" if self.remedy else self.line


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the conf and its profile need. None: not known, and not checked."""

    num_gpus: int = 1
    cuda: int = 12  #: of the images
    image: str = ""  #: that computes; empty: not known before the repository that names it is there
    model_bytes: int | None = None  #: that are still to be loaded
    largest_file_bytes: int | None = None
    min_write_mb_s: float = 200.0
    urls: tuple[str, ...] = ()  #: that the server has to reach
    public_key: str = ""  #: of the account, base64; empty: the network is not asked for it
    public_ports: frozenset[int] = PUBLIC_PORTS  #: that containers may open to everybody
    roles: frozenset[str] = frozenset({"node"})  #: whose ports have to be free, or ours
    installs: bool = False  #: a run installs what apt has of what is missing


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was read, and what was tried. None: it was not tried."""

    system: SystemFacts
    gpus: GpuFacts
    docker: DockerFacts
    now_s: float  #: this machine's clock, when the server's was read
    container_gpus: int | None = None  #: that a container with `--gpus all` found
    container_said: str = ""  #: by one that found none
    write_mb_s: float | None = None
    participant: Answer | None = None  #: the network's, of the account, to the server
    public_status: int | None = None  #: HTTP status of PUBLIC_URL from here; 0: not reached
    lacks: tuple[str, ...] = ()  #: of the programs that a node needs
    todo: Remedy | None = None  #: about these
    our_pids: frozenset[int] = field(default_factory=frozenset)


def failures(checks: Collection[Check], ignored: Collection[str] = ()) -> tuple[Check, ...]:
    """Return the checks that stop a run.

    Args:
        checks: the table.
        ignored: names of checks that the operator lets pass; these are for the log.
    """
    return tuple(c for c in checks if c.verdict is Verdict.FAIL and c.name not in ignored)


def check(
    group: str,
    name: str,
    is_good: bool | None,
    measured: object,
    wanted: str,
    remedy: str,
    *,
    warn: bool = False,
) -> Check:
    """Return a line; what is not known (None) is a warning."""
    bad = Verdict.WARN if warn or is_good is None else Verdict.FAIL
    verdict = Verdict.PASS if is_good else bad
    return Check(group, name, verdict, str(measured), wanted, "" if is_good else remedy)
