"""What the gateway sends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pocqueue.hosts.wire.fields import Message


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
    node_key: str | None = None  #: the node's key; None to agents of protocol 1


class RotateKey(Message):
    """Is to make itself a new key: its owner wants it."""

    type: Literal["rotate_key"] = "rotate_key"


class Key(Message):
    """The node's key from now on."""

    type: Literal["key"] = "key"
    node_key: str


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
    """Is told that nothing new comes, until jobs come again; what it has it finishes."""

    type: Literal["drain"] = "drain"


class Upgrade(Message):
    """There is a newer agent; this one may stay as it is until its owner has time."""

    type: Literal["upgrade"] = "upgrade"
    version: str  #: the gateway's own
    message: str  #: a sentence for the owner


class Replaced(Message):
    """Another socket is this node from now on; this one is closed and is not to come back by itself."""

    type: Literal["replaced"] = "replaced"
