"""What the agent says and hears, as plain values: `hosts.wire` is the same with checks, and takes much more memory.

What is sent is ours, so it is not checked; texts are cut to what the gateway takes. What comes is read leniently: a
message that is none we know is None, as a newer gateway may send one, and fields that we do not know are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias, dataclass_transform

from typing_extensions import override

from pocqueue.hosts.protocol import PROTOCOL

#: Characters of a row's texts that the gateway takes.
MAX_TEXT = 1000


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Value:
    """A value with the fields that its class names: to whoever checks types a frozen dataclass, whose `repr` has no token in it.

    For each dataclass Python compiles half a dozen functions when it is imported; thirty of them were an eighth of the agent's start.
    """

    names: ClassVar[tuple[str, ...]] = ()

    @override
    def __init_subclass__(cls) -> None:
        cls.names = (*cls.names, *cls.__annotations__)

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)
        assert values.keys() <= {*self.names}, values.keys()
        self.__post_init__()

    def __post_init__(self) -> None:
        """Make of the values what they are to be."""

    def fields(self) -> dict[str, Any]:
        """Return all values by name."""
        return {name: getattr(self, name) for name in self.names}

    @override
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.fields() == other.fields()


def to_wire(value: Any) -> Any:
    """Return a value as JSON has it: names in camelCase, nothing that is None."""
    if isinstance(value, Value):
        kept = {name: one for name, one in value.fields().items() if one is not None}
        return {_camel(name): to_wire(one) for name, one in kept.items()}
    if isinstance(value, str):
        # Names of files may have half characters, which no JSON reader takes.
        return value.encode("utf-8", "replace").decode()
    return [to_wire(one) for one in value] if isinstance(value, (list, tuple)) else value


class Message(Value):
    """A JSON object on the wire."""

    type = ""

    def to_json(self) -> str:
        """Return it as it is sent."""
        return json.dumps({"type": self.type} | to_wire(self))


# What a machine says of itself


class HostGpu(Value):
    """A GPU of this machine."""

    name: str
    memory: str  #: as a person writes it, such as ``24564 MiB``
    uuid: str
    index: int
    vram_mib: int
    compute_capability: str  #: such as ``9.0``
    healthy: bool = True  #: it passed its self-test
    reason: str | None = None  #: why not


class HostInfo(Value):
    """This machine."""

    hostname: str
    os: str
    gpus: tuple[HostGpu, ...] = ()


class GpuLoad(Value):
    """What a GPU does right now. None: it does not say."""

    uuid: str
    load: float | None = None  #: per cent
    memory_mib: int | None = None  #: in use
    temperature: float | None = None  #: degrees Celsius


class JobRef(Value):
    """An attempt of a job."""

    id: str
    attempt: int


class TestRow(Value):
    """A row of a self-test: what was looked at, what was found, what to do about it."""

    __test__ = False  # no test of pytest's

    name: str  #: small letters, digits, underscores
    state: Literal["pass", "warn", "fail", "skip"]
    measured: str = ""
    wanted: str = ""
    remedy: str = ""
    gpu: str | None = None  #: its uuid; None: of the machine

    @override
    def __post_init__(self) -> None:
        for name in ("measured", "wanted", "remedy"):
            vars(self)[name] = getattr(self, name)[:MAX_TEXT]
        assert self.state in {"pass", "skip"} or (self.measured and self.remedy), self.name


# To the gateway


class Hello(Message):
    """Asks for a challenge, before anything else."""

    type = "hello"
    node_key: str  #: ed25519 public key, as hex
    node_id: str
    protocol: int = PROTOCOL


class _Introduction(Message):
    """What `Register` and `Resume` have in common."""

    host_info: HostInfo
    node_key: str
    signature: str  #: over `protocol.signed_text`, as hex
    isolation: str  #: what jobs are run in
    kinds: tuple[str, ...]  #: of jobs that this machine takes
    agent_version: str
    protocol: int = PROTOCOL


class Register(_Introduction):
    """Becomes a node, with a token."""

    type = "register"
    token: str


class Resume(_Introduction):
    """Is a node already."""

    type = "resume"
    node_id: str
    next_signature: str | None = None  #: the same by its next key; None: there is none
    #: Attempts that the agent has: at work, or done and not acknowledged. What is not among them is sent again.
    jobs: tuple[JobRef, ...]


class NewKey(Message):
    """Is to be known by another key, which is on its disk."""

    type = "new_key"
    node_key: str
    signature: str  #: by the new key, over `protocol.rotation_text`, as hex


class Heartbeat(Message):
    """Still there."""

    type = "heartbeat"
    node_id: str
    jobs: tuple[JobRef, ...]  #: their leases are renewed
    gpus: tuple[GpuLoad, ...]
    clock_ms: int  #: this machine's clock


class JobStarted(Message):
    """A job runs."""

    type = "job_started"
    id: str
    attempt: int


class JobRefused(Message):
    """A job will not be run here; it goes to another node. Refusing often costs reputation."""

    type = "job_refused"
    id: str
    attempt: int
    reason: str


class JobResult(Message):
    """A job has ended."""

    type = "job_result"
    id: str
    attempt: int
    status: str  #: completed, failed, cancelled or timeout
    logs: str
    exit_code: int
    seconds: float  #: by this machine's clock; shown, never paid by
    truncated: bool  #: the middle of the logs is left out


class SelfTest(Message):
    """What the machine found out about itself."""

    type = "self_test"
    rows: tuple[TestRow, ...]


class Draining(Message):
    """Finishes what it has and takes nothing new."""

    type = "draining"


class Bye(Message):
    """Leaves on purpose; what it has goes to others at once."""

    type = "bye"


# From the gateway


class Challenge(Value):
    """Is to be signed. Good for this socket, once."""

    nonce: str


class Registered(Value):
    """The socket is this node's from now on."""

    node_id: str
    message: str = ""
    node_key: str | None = None  #: the node's key, as the gateway has it


class JobLimits(Value):
    """What a job may use; beyond it the job is ended."""

    seconds: float
    memory_mib: int = 4096
    cpus: float = 1.0
    processes: int = 256
    disk_mib: int = 1024
    output_kib: int = 256  #: kept of what it writes, head and tail
    network: bool = False


class Job(Value):
    """Is to be run."""

    id: str
    attempt: int
    kind: str
    argv: tuple[str, ...] = ()  #: what to start, never through a shell
    image: str | None = None  #: of a container, by digest
    limits: JobLimits | None = None
    gpus: tuple[str, ...] = ()  #: uuids of those that it has to itself


class JobCancel(Value):
    """Is to be ended; its result says ``cancelled``."""

    id: str
    attempt: int


class Ack(Value):
    """A heartbeat came, or, with the attempt of a job, its result is kept and need not be sent again."""

    id: str | None = None
    attempt: int | None = None


class Error(Value):
    """A message was refused."""

    message: str
    id: str | None = None  #: of the job that it was about
    attempt: int | None = None


class RotateKey(Value):
    """Is to make itself a new key."""


class Key(Value):
    """The node's key from now on."""

    node_key: str


class Upgrade(Value):
    """There is a newer agent."""

    message: str  #: for the owner


class Drain(Value):
    """Is to finish what it has; nothing new comes for now."""


FromGateway: TypeAlias = (
    Challenge | Registered | Job | JobCancel | Ack | Error | RotateKey | Key | Upgrade | Drain
)


def read_message(text: str | bytes) -> FromGateway | None:
    """Read what the gateway has sent; None: it is no message that we know."""
    try:
        said = json.loads(text)
        match said["type"]:
            case "challenge":
                return Challenge(nonce=_text(said, "nonce"))
            case "registered":
                key = None if said.get("nodeKey") is None else _text(said, "nodeKey")
                message = str(said.get("message", ""))
                return Registered(node_id=_text(said, "nodeId"), message=message, node_key=key)
            case "job":
                return _job(said)
            case "job_cancel":
                return JobCancel(id=_text(said, "id"), attempt=int(said["attempt"]))
            case "ack":
                return Ack(**_about(said))
            case "error":
                return Error(message=_text(said, "message"), **_about(said))
            case "rotate_key":
                return RotateKey()
            case "key":
                return Key(node_key=_text(said, "nodeKey"))
            case "upgrade":
                return Upgrade(message=_text(said, "message"))
            case "drain":
                return Drain()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def _job(said: Mapping[str, Any]) -> Job:
    limits = said.get("limits")
    return Job(
        id=_text(said, "id"),
        attempt=int(said.get("attempt") or 1),
        kind=str(said.get("kind") or "test"),
        argv=_texts(said, "argv"),
        image=None if said.get("image") is None else _text(said, "image"),
        limits=None if limits is None else _limits(limits),
        gpus=_texts(said, "gpus"),
    )


def _limits(said: Mapping[str, Any]) -> JobLimits:
    given = {name: float(said[_camel(name)]) for name in JobLimits.names if _camel(name) in said}
    if not all(0 <= value < 1e12 for value in given.values()):
        raise ValueError(given)
    seconds = max(0.001, given.pop("seconds"))
    kinds = {name: type(getattr(JobLimits, name)) for name in given}
    return JobLimits(seconds=seconds, **{name: kinds[name](given[name]) for name in given})


def _about(said: Mapping[str, Any]) -> dict[str, Any]:
    attempt = said.get("attempt")
    return {} if attempt is None else {"id": _text(said, "id"), "attempt": int(attempt)}


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _texts(said: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = said.get(name) or ()
    if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) for one in values):
        raise TypeError(name)
    return tuple(values)
