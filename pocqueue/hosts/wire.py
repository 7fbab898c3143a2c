"""The messages of a GPU host's WebSocket, both directions: what they are called, what is in them, how they are read.

Two generations of agents speak here. Those of protocol 1, which others have written, send `register` with a token and
are told `registered`; they live until their socket ends. Ours, protocol 2, have a key as well, and come back with it:

    agent    hello {protocol, nodeKey, nodeId?}
    gateway  challenge {nonce}
    agent    register {token, hostInfo, nodeKey, signature, …}    the first time, or
             resume {nodeId, hostInfo, signature, jobs, …}        whenever it comes back
    gateway  registered {nodeId, message, serverMs}, or an error and close code 4401
    agent    heartbeat every `HEARTBEAT_S` seconds, job_started, job_result … as things happen

The signature is ed25519, as hex, over `signed_text`. A `register` with a token that this very key has used already is
a `resume`: the answer was lost on its way. A `job` may come twice, after a reconnect say; an agent of protocol 2 knows it by
(`id`, `attempt`), runs it once, and sends its result, again after each reconnect, until the `ack` with the same two comes.

Fields are camelCase on the wire. Unknown fields are ignored, unknown types answered with `ErrorText.UNKNOWN_TYPE`, what is
no such message with `ErrorText.INVALID_FORMAT`; the socket stays. Needs pydantic alone.
"""

from __future__ import annotations

import json
import re
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel

#: Ours. Agents that say nothing of it speak protocol 1.
PROTOCOL = 2
#: Seconds between two heartbeats of an agent.
HEARTBEAT_S = 15.0
#: Longest message, in bytes; longer ones end the socket with close code 1009.
MAX_MESSAGE_BYTES = 4 << 20
#: Most GPUs of one machine.
MAX_GPUS = 64
#: Characters of a result's logs that are taken; the store keeps fewer, and notes that it has cut.
MAX_LOG = 300_000
#: Most jobs that one machine can have at a time, waiting results included.
MAX_JOBS = 1024

_UNKNOWN = "unknown"
_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


class CloseCode(IntEnum):
    """Why the gateway ends a socket. 1000 to 1015 are those of RFC 6455; the rest is ours."""

    NORMAL = 1000  #: after `bye`
    TOO_LARGE = 1009  #: a message is longer than `MAX_MESSAGE_BYTES`
    RESTART = 1012  #: the gateway ends; come back after a pause
    TRY_LATER = 1013  #: the gateway has as many sockets as it can hold
    REFUSED = 4401  #: token or signature is wrong; the same again would be refused again
    BANNED = 4403  #: the node or its wallet is banned
    REPLACED = 4409  #: the same node is connected by another socket
    TOO_FAST = 4429  #: more messages than a machine has reason to send, or too many connections


class ErrorText(StrEnum):
    """What an `error` says. The first seven are what agents of protocol 1 know."""

    TOKEN_REQUIRED = "Token is required"  # noqa: S105 - a sentence
    INVALID_TOKEN = "Invalid token"  # noqa: S105
    TOKEN_USED = "Token already used"  # noqa: S105
    INVALID_NODE = "Invalid node ID"
    JOB_NOT_FOUND = "Job not found"
    UNKNOWN_TYPE = "Unknown message type"
    INVALID_FORMAT = "Invalid message format"
    CONNECTED_ELSEWHERE = "Node is connected from elsewhere"
    INVALID_SIGNATURE = "Invalid signature"
    BANNED = "Node is banned"
    NOT_NOW = "The gateway cannot do that for now; try again"
    TOO_FAST = "Too many messages"


def signed_text(origin: str, node_id: str, nonce: str) -> bytes:
    """Return what an agent signs with its key to prove who it is.

    Args:
        origin: of the gateway as the agent calls it, see `origin_of`: a gateway that is not the one that was meant
            cannot pass the signature on.
        node_id: as in `resume`; empty in `register`.
        nonce: of the `challenge` on this socket.
    """
    return f"pocqueue-node-1\n{origin}\n{node_id}\n{nonce}".encode()


def origin_of(endpoint: str) -> str:
    """Return the name that an endpoint is called by: its host in small letters, without port.

    The port is left out, as proxies before a gateway pass it on or not.

    >>> origin_of("wss://GPU.example.com:443/ws")
    'gpu.example.com'
    """
    return (urlsplit(endpoint).hostname or "").rstrip(".")


def _plain(value: Any) -> Any:
    """Make one printable line of a text that a stranger sent; what is not there is unknown."""
    if value is None or value == "":
        return _UNKNOWN
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return (one_line(value) or _UNKNOWN) if isinstance(value, str) else value


def one_line(text: str) -> str:
    """Return a text as one printable line: control characters and halves of surrogate pairs are blanks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _text(value: Any) -> Any:
    """Take any JSON for a text: what a job has written is worth more than its type."""
    if value is None:
        return ""
    # No database keeps NUL in a text.
    return (value if isinstance(value, str) else json.dumps(value)).replace("\0", "\ufffd")


def _log(value: Any) -> Any:
    """Take what a job has written, without the middle of what is too long: it may wait for a database."""
    text = _text(value)
    half = MAX_LOG // 2
    return text if len(text) <= MAX_LOG else f"{text[:half]}\n… cut …\n{text[-half:]}"


def _id(value: Any) -> Any:
    """Make nobody's id of what cannot be one."""
    return value if not isinstance(value, str) or _ID.fullmatch(value) else ""


def _status(value: Any) -> Any:
    """Take a status that is not known for a failure."""
    return value if value in {"completed", "cancelled", "timeout"} else "failed"


def _isolation(value: Any) -> Any:
    """Take an engine of containers for a container."""
    return "container" if value in ("docker", "podman") else value


def _known_kinds(value: Any) -> Any:
    """Leave out kinds of jobs that only newer agents know."""
    return [kind for kind in value if kind in get_args(Kind)] if isinstance(value, list) else value


#: What jobs are run in: a container of Docker or podman, bubblewrap, or nothing; then only jobs that need nothing.
Isolation: TypeAlias = Literal["none", "bubblewrap", "container"]
Kind: TypeAlias = Literal["test", "command", "container"]

_Line = Annotated[str, BeforeValidator(_plain), Field(max_length=200)]
_Text = Annotated[str, BeforeValidator(_text), Field(max_length=1000)]
_Id = Annotated[str, BeforeValidator(_id)]
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]
_Attempt = Annotated[int, Field(ge=1, le=1_000_000)]


class Message(BaseModel):
    """A JSON object on the wire."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=AliasGenerator(alias=to_camel),
        populate_by_name=True,
        allow_inf_nan=False,
    )

    def to_json(self) -> str:
        """Return it as it is sent: without what is None."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


# What a machine says of itself


class HostGpu(Message):
    """A GPU of a machine. Agents of protocol 1 send `name` and `memory` alone."""

    name: _Line = _UNKNOWN
    memory: _Line = _UNKNOWN  #: as a person writes it, such as ``24GB`` or ``24564 MiB``
    uuid: _Id | None = None
    index: Annotated[int, Field(ge=0, lt=1024)] | None = None
    vram_mib: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    #: CUDA's compute capability, such as ``9.0``.
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,3}$")] | None = None
    healthy: bool = True  #: it passed its self-test
    reason: _Text | None = None  #: why not


class HostInfo(Message):
    """A machine."""

    hostname: _Line = _UNKNOWN
    os: _Line = _UNKNOWN
    gpus: Annotated[
        tuple[HostGpu, ...],
        BeforeValidator(lambda value: () if value is None else value),
        Field(max_length=MAX_GPUS),
    ] = ()


class GpuLoad(Message):
    """What a GPU does right now."""

    uuid: _Id = ""
    load: Annotated[float, Field(ge=0, le=100)] | None = None  #: per cent
    memory_mib: Annotated[int, Field(ge=0, le=1 << 30)] | None = None  #: in use
    temperature: Annotated[float, Field(ge=-100, le=300)] | None = None  #: degrees Celsius


class JobRef(Message):
    """An attempt of a job."""

    id: _Id
    attempt: _Attempt


class TestRow(Message):
    """A row of a self-test: what was looked at, what was found, what to do about it."""

    __test__ = False  # no test of pytest's

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    state: Literal["pass", "warn", "fail", "skip"]
    measured: _Text = ""
    wanted: _Text = ""
    remedy: _Text = ""
    gpu: _Id | None = None  #: its uuid; None: of the machine


class _Introduction(Message):
    """What `register` and `resume` have in common."""

    host_info: Annotated[
        HostInfo, BeforeValidator(lambda value: {} if value is None else value)
    ] = HostInfo()
    protocol: Annotated[int, Field(ge=1, le=1000)] = 1
    node_key: _Hex | None = None  #: ed25519 public key, 32 bytes as hex
    signature: _Hex | None = None  #: 64 bytes as hex, over `signed_text`
    #: What jobs are run in; the engine of a container may be named, and is a ``container``.
    isolation: Annotated[Isolation, BeforeValidator(_isolation)] = "none"
    #: Kinds of jobs that the machine takes; agents of protocol 1 take what has a command.
    kinds: Annotated[tuple[Kind, ...], BeforeValidator(_known_kinds)] = ("test", "command")
    agent_version: _Line = _UNKNOWN


# From an agent


class Hello(Message):
    """Asks for a challenge, before anything else."""

    type: Literal["hello"] = "hello"
    protocol: Annotated[int, Field(ge=1, le=1000)] = PROTOCOL
    node_key: _Hex = ""
    node_id: _Id = ""


class Register(_Introduction):
    """Becomes a node, with a token."""

    type: Literal["register"] = "register"
    token: Annotated[str, Field(max_length=200)] = Field(default="", repr=False)


class Resume(_Introduction):
    """Is a node already."""

    type: Literal["resume"] = "resume"
    node_id: _Id = ""
    #: Attempts that the agent has: at work, or done and not acknowledged. What is not among them is sent again.
    jobs: Annotated[tuple[JobRef, ...], Field(max_length=MAX_JOBS)] = ()


class Heartbeat(Message):
    """Still there."""

    type: Literal["heartbeat"] = "heartbeat"
    node_id: _Id = ""
    jobs: Annotated[
        tuple[JobRef, ...], Field(max_length=MAX_JOBS)
    ] = ()  #: their leases are renewed
    gpus: Annotated[tuple[GpuLoad, ...], Field(max_length=MAX_GPUS)] = ()
    clock_ms: int | None = None  #: the machine's clock, for its self-test; nothing is decided by it


class JobStarted(Message):
    """A job runs."""

    type: Literal["job_started"] = "job_started"
    id: _Id = ""
    attempt: _Attempt


class JobRefused(Message):
    """A job will not be run here; it goes to another node. Refusing often costs reputation."""

    type: Literal["job_refused"] = "job_refused"
    id: _Id = ""
    attempt: _Attempt
    reason: _Line = _UNKNOWN


class JobLog(Message):
    """More of what a running job writes, in order; kept as far as there is room, and replaced by the result's."""

    type: Literal["job_log"] = "job_log"
    id: _Id = ""
    attempt: _Attempt
    text: Annotated[str, BeforeValidator(_text), Field(max_length=64 << 10)] = Field(
        default="", repr=False
    )


class JobResult(Message):
    """A job has ended. The gateway's clock says what it is paid."""

    type: Literal["job_result"] = "job_result"
    id: _Id = ""
    status: Annotated[
        Literal["completed", "failed", "cancelled", "timeout"], BeforeValidator(_status)
    ] = "failed"
    logs: Annotated[str, BeforeValidator(_log)] = Field(default="", repr=False)
    attempt: _Attempt | None = None  #: None: of the only one that this socket has
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


# From the gateway


class Challenge(Message):
    """Is to be signed, see `signed_text`. Good for this socket, once."""

    type: Literal["challenge"] = "challenge"
    nonce: Annotated[str, Field(max_length=200)]


class Registered(Message):
    """The socket is a node's from now on."""

    type: Literal["registered"] = "registered"
    node_id: str
    message: str = "Successfully registered"
    server_ms: int | None = (
        None  #: the gateway's clock, ms since 1970; None to agents of protocol 1
    )


class Limits(Message):
    """What a job may use; beyond it the job is ended."""

    seconds: Annotated[float, Field(gt=0)]
    memory_mib: int = 4096
    cpus: float = 1.0
    processes: int = 256
    disk_mib: int = 1024
    output_kib: int = 256  #: kept of what it writes, head and tail; the rest is read and dropped
    network: bool = False


class Job(Message):
    """Is to be run."""

    type: Literal["job"] = "job"
    id: str
    #: For agents of protocol 1, which have nothing but a shell: from templates that are safe in `sh`. Empty: no command.
    command: str = ""
    kind: str | None = (
        None  #: ``test``, ``command``, ``container``; this and what follows is for protocol 2
    )
    argv: tuple[str, ...] | None = None  #: what to start, never through a shell
    image: str | None = None  #: of a container, by digest
    limits: Limits | None = None
    gpus: tuple[str, ...] | None = None  #: uuids of those that it has to itself
    attempt: int | None = None


class JobCancel(Message):
    """Is to be ended; its result says ``cancelled``."""

    type: Literal["job_cancel"] = "job_cancel"
    id: str
    attempt: int


class Ack(Message):
    """A heartbeat came, or, with a message, a result is kept and need not be sent again."""

    type: Literal["ack"] = "ack"
    message: str | None = None
    id: str | None = None  #: of the result, and so is `attempt`; None to agents of protocol 1
    attempt: int | None = None


class Error(Message):
    """A message was refused."""

    type: Literal["error"] = "error"
    message: str
    id: str | None = None  #: of the job that it was about; None to agents of protocol 1
    attempt: int | None = None


class Drain(Message):
    """Is to finish what it has; nothing new comes."""

    type: Literal["drain"] = "drain"


class Replaced(Message):
    """Another socket is this node from now on; this one is closed and is not to come back by itself."""

    type: Literal["replaced"] = "replaced"


FromGateway: TypeAlias = Annotated[
    Challenge | Registered | Job | JobCancel | Ack | Error | Drain | Replaced,
    Field(discriminator="type"),
]

#: What acknowledges a `job_result`.
RESULT_RECEIVED = "Job result received"

_FROM_AGENT: TypeAdapter[FromAgent] = TypeAdapter(FromAgent)
_FROM_GATEWAY: TypeAdapter[FromGateway] = TypeAdapter(FromGateway)


_Any = TypeVar("_Any")


class BadMessage(ValueError):
    """What came is no message; its text is one of `ErrorText`."""


def read_from_agent(text: str | bytes) -> FromAgent:
    """Read what an agent has sent.

    Raises:
        BadMessage: it is none.
    """
    return _read(_FROM_AGENT, text)


def read_from_gateway(text: str | bytes) -> FromGateway:
    """Read what the gateway has sent.

    Raises:
        BadMessage: it is none.
    """
    return _read(_FROM_GATEWAY, text)


def _read(kind: TypeAdapter[_Any], text: str | bytes) -> _Any:
    try:
        return kind.validate_json(text)
    except ValidationError as exc:
        # Nothing of the message goes on, as it may have a token in it.
        tags = {"union_tag_invalid", "union_tag_not_found"}
        is_unknown = any(error["type"] in tags for error in exc.errors(include_url=False))
    except RecursionError:
        is_unknown = False
    raise BadMessage(ErrorText.UNKNOWN_TYPE if is_unknown else ErrorText.INVALID_FORMAT)
