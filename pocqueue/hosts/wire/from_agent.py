"""What agents send."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from pocqueue.hosts.protocol import MAX_GPUS, MAX_JOBS, PROTOCOL
from pocqueue.hosts.wire.fields import (
    UNKNOWN,
    AnyIsolation,
    Attempt,
    Hex,
    Id,
    Kinds,
    Line,
    Log,
    LogPart,
    Message,
    Status,
    read,
)
from pocqueue.hosts.wire.machine import GpuLoad, HostInfo, JobRef, TestRow


class _Introduction(Message):
    """What `register` and `resume` have in common."""

    host_info: Annotated[
        HostInfo, BeforeValidator(lambda value: {} if value is None else value)
    ] = HostInfo()
    protocol: Annotated[int, Field(ge=1, le=1000)] = 1
    node_key: Hex | None = None  #: ed25519 public key, 32 bytes as hex
    signature: Hex | None = None  #: 64 bytes as hex, over `signed_text`
    isolation: AnyIsolation = "none"  #: what jobs are run in
    #: Kinds of jobs that the machine takes; agents of protocol 1 take what has a command.
    kinds: Kinds = ("test", "command")
    agent_version: Line = UNKNOWN


class Hello(Message):
    """Asks for a challenge, before anything else."""

    type: Literal["hello"] = "hello"
    protocol: Annotated[int, Field(ge=1, le=1000)] = PROTOCOL
    node_key: Hex = ""
    node_id: Id = ""


class Register(_Introduction):
    """Becomes a node, with a token."""

    type: Literal["register"] = "register"
    token: Annotated[str, Field(max_length=200)] = Field(default="", repr=False)


class Resume(_Introduction):
    """Is a node already."""

    type: Literal["resume"] = "resume"
    node_id: Id = ""
    #: The same by its next key, where it has asked for that and does not know whether the answer was lost.
    next_signature: Hex | None = None
    #: Attempts that the agent has: at work, or done and not acknowledged. What is not among them is sent again.
    jobs: Annotated[tuple[JobRef, ...], Field(max_length=MAX_JOBS)] = ()


class NewKey(Message):
    """Is to be known by another key, which it has on its disk; the old one is of no use once this is answered."""

    type: Literal["new_key"] = "new_key"
    node_key: Hex = ""
    signature: Hex = ""  #: by the new key, over `rotation_text`


class Heartbeat(Message):
    """Still there."""

    type: Literal["heartbeat"] = "heartbeat"
    node_id: Id = ""
    jobs: Annotated[
        tuple[JobRef, ...], Field(max_length=MAX_JOBS)
    ] = ()  #: their leases are renewed
    gpus: Annotated[tuple[GpuLoad, ...], Field(max_length=MAX_GPUS)] = ()
    clock_ms: int | None = None  #: the machine's clock, for its self-test; nothing is decided by it


class JobStarted(Message):
    """A job runs: its time counts from here on. What has ended meanwhile is answered with a `job_cancel`."""

    type: Literal["job_started"] = "job_started"
    id: Id = ""
    attempt: Attempt


class JobRefused(Message):
    """A job will not be run here; it goes to another node. Refusing often costs reputation."""

    type: Literal["job_refused"] = "job_refused"
    id: Id = ""
    attempt: Attempt
    reason: Line = UNKNOWN


class JobLog(Message):
    """More of what a running job writes, in order; kept as far as there is room, and replaced by the result's."""

    type: Literal["job_log"] = "job_log"
    id: Id = ""
    attempt: Attempt
    text: LogPart = Field(default="", repr=False)


class JobResult(Message):
    """A job has ended. The gateway's clock says what it is paid."""

    type: Literal["job_result"] = "job_result"
    id: Id = ""
    status: Status = "failed"
    logs: Log = Field(default="", repr=False)
    attempt: Attempt | None = None  #: None: of the only one that this socket has
    exit_code: Annotated[int, Field(ge=-(1 << 31), lt=1 << 32)] | None = None
    seconds: Annotated[float, Field(ge=0)] | None = (
        None  #: by the machine's clock; shown, never paid by
    )
    truncated: bool = False  #: the middle of the logs is left out


class SelfTest(Message):
    """What the machine found out about itself."""

    type: Literal["self_test"] = "self_test"
    rows: Annotated[tuple[TestRow, ...], Field(max_length=500)] = ()


class Draining(Message):
    """Finishes what it has and takes nothing new."""

    type: Literal["draining"] = "draining"


class Bye(Message):
    """Leaves on purpose; what it has goes to others at once."""

    type: Literal["bye"] = "bye"


FromAgent: TypeAlias = Annotated[
    Hello
    | Register
    | Resume
    | NewKey
    | Heartbeat
    | JobStarted
    | JobRefused
    | JobLog
    | JobResult
    | SelfTest
    | Draining
    | Bye,
    Field(discriminator="type"),
]

_FROM_AGENT: TypeAdapter[FromAgent] = TypeAdapter(FromAgent)
_HEARTBEAT = TypeAdapter(Heartbeat)


def read_from_agent(text: str | bytes) -> FromAgent:
    """Read what an agent has sent.

    Raises:
        BadMessage: it is none.
    """
    return read(_FROM_AGENT, text)


def read_heartbeat(text: bytes) -> Heartbeat | None:
    """Read a heartbeat, in half the time that it takes where any message may come; None: it is none."""
    try:
        found = _HEARTBEAT.validate_json(text)
    except (ValidationError, RecursionError):
        return None
    return found if "type" in found.model_fields_set else None
