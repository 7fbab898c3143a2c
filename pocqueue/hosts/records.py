"""What the store gives out and takes in: values that know no database.

Times are Unix milliseconds of the server's clock, money is micro-HYPER.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pocqueue.hosts.leases import JobState, Outcome

JobKind = Literal["test", "command", "container"]
GpuTier = Literal["own", "proven", "new"]
#: Protocol of machines that have no socket: they poll, with their token.
POLLS: Final = 0

NodeState = Literal["active", "draining", "revoked", "banned"]
NodeStatus = Literal["online", "busy", "offline", "paused", "draining", "revoked", "banned"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a node."""

    uuid: str  #: NVML's; of agents that send none, `index-N`
    name: str = "unknown"
    vram_mib: int | None = None
    compute_capability: str | None = None  #: such as ``8.9``
    healthy: bool = True
    reason: str | None = None  #: why it is not
    #: In the pool of rounds, which no node's GPU is in yet: the Celery queue of its messages; None: its own.
    route: str | None = None
    tier: GpuTier = "new"  #: there, too: whose nonces count without being checked


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a machine says of itself when it connects. Bounded and of the right types already (`hosts.wire`)."""

    hostname: str = "unknown"
    os: str = "unknown"
    gpus: tuple[Gpu, ...] = ()  #: uuids are different
    protocol: int = 1  #: 1: today's agents, 2: those with a key; `POLLS`
    agent_version: str | None = None
    isolation: Literal["none", "bubblewrap", "container"] = "none"
    kinds: tuple[JobKind, ...] = ("test", "command")  #: of jobs that it takes


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that a token let in."""

    id: str
    wallet: str
    proven: bool  #: the wallet's owner wants it; else it gets test jobs alone and its pay is held
    state: NodeState
    drained_by: str | None  #: while it is draining: a wallet or ``admin``
    paused_until_ms: int | None
    hostname: str
    os: str
    key: str | None  #: ed25519 public key, 64 hex digits; today's agents have none
    protocol: int
    agent_version: str | None
    isolation: str
    kinds: tuple[str, ...]
    address: str  #: network address that it last came from
    first_ms: int
    last_ms: int
    relay: str | None  #: gateway that has its connection; None: not connected
    socket: str | None  #: id of that connection
    gpus: tuple[Gpu, ...] = ()

    def status(self, now_ms: int, offline_ms: int, *, busy: bool = False) -> NodeStatus:
        """Return how it stands, in one word.

        Args:
            offline_ms: silence after which it counts as offline; a busy one of protocol 1 falls silent
                while it works, and is busy as long as it is connected.
            busy: it has an open attempt.
        """
        if self.state in {"banned", "revoked"}:
            return self.state
        silent = now_ms - self.last_ms > offline_ms and not (busy and self.protocol == 1)
        if self.relay is None or silent:
            return "offline"
        if self.state == "draining":
            return "draining"
        if self.paused_until_ms is not None and self.paused_until_ms > now_ms:
            return "paused"
        return "busy" if busy else "online"


@dataclass(frozen=True, slots=True)
class Beat:
    """What a gateway has heard of a node since the last time it wrote that down."""

    node_id: str
    socket: str  #: the connection on which it was heard
    at_ms: int
    job_ids: tuple[str, ...] = ()  #: jobs that it says it is at: their leases are renewed
    polls: bool = False  #: it names none: the leases of all that it was sent are renewed


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The newest self-test of a node."""

    at_ms: int
    rows: list[Any]  #: as the agent sent them


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be done, with its bounds checked (`hosts.commands` makes one)."""

    kind: JobKind
    spec: dict[
        str, Any
    ]  #: `argv`, and what its kind has beside it; `text`: for agents that know only `command`; `paid_s`: `hosts.pay`
    submitter: str  #: a wallet, ``admin`` or ``server``
    timeout_s: int = 600  #: 1 to 86,400
    gpus: int = 0
    vram_mib: int = 0  #: on each of the GPUs
    priority: int = 0  #: higher goes first
    only_node: str | None = None  #: None: any
    max_attempts: int = 3


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands."""

    id: str
    kind: JobKind
    spec: dict[str, Any] = field(repr=False)
    submitter: str
    state: JobState
    reason: str | None  #: why it failed, or why it is queued again
    priority: int
    gpus: int
    vram_mib: int
    only_node: str | None
    timeout_s: int
    rate_micro: int  #: pay for a second
    max_attempts: int
    attempts: int  #: number of the newest one; 0: none yet
    created_ms: int
    ended_ms: int | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One node's turn at a job."""

    job_id: str
    n: int  #: 1, 2, …
    node_id: str
    relay: str  #: gateway that delivers it
    gpu_uuids: tuple[str, ...]  #: that are the job's until it ends
    leased_ms: int
    lease_until_ms: int
    sent_ms: (
        int | None
    )  #: when it went to the node; from the node's `job_started` on when that came
    hard_until_ms: int | None  #: no lease is longer
    ended_ms: int | None
    outcome: Outcome | None  #: None: open
    exit_code: int | None
    claimed_ms: int | None  #: how long it took, as the node says
    micro: int  #: what it earned
    reported_ms: int | None  #: when the node's result came, in time or not


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of a job that it has ended."""

    status: Literal["completed", "failed", "timeout", "cancelled"]  #: as in `wire.JobResult`
    log: str = ""  #: at most 256 KiB; what is more is cut
    truncated: bool = False
    exit_code: int | None = None  #: -2^31 to 2^31 - 1
    claimed_ms: int | None = None  #: how long the job itself took, by the node's clock; 0 and more
    n: int | None = None  #: number of the attempt; None: the node's newest one


@dataclass(frozen=True, slots=True)
class Balance:
    """What a wallet or a node has earned, in micro-HYPER."""

    earned: int = 0  #: by nodes that its owner wants, paid out or not
    held: int = 0  #: by others: earned once the owner wants them
    paid: int = 0  #: out of `earned`
    payable: int = 0  #: `earned` less what was paid or forfeited
