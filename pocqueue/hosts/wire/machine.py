"""What a machine says of itself, within the messages of its agent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pocqueue.hosts.protocol import MAX_GPUS
from pocqueue.hosts.wire.fields import UNKNOWN, Attempt, Id, Line, Message, Text


class HostGpu(Message):
    """A GPU of a machine. Agents of protocol 1 send `name` and `memory` alone."""

    name: Line = UNKNOWN
    memory: Line = UNKNOWN  #: as a person writes it, such as ``24GB`` or ``24564 MiB``
    uuid: Id | None = None
    index: Annotated[int, Field(ge=0, lt=1024)] | None = None
    vram_mib: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    #: CUDA's compute capability, such as ``9.0``.
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,3}$")] | None = None
    healthy: bool = True  #: it passed its self-test
    reason: Text | None = None  #: why not


class HostInfo(Message):
    """A machine."""

    hostname: Line = UNKNOWN
    os: Line = UNKNOWN
    gpus: Annotated[
        tuple[HostGpu, ...],
        BeforeValidator(lambda value: () if value is None else value),
        Field(max_length=MAX_GPUS),
    ] = ()


class GpuLoad(Message):
    """What a GPU does right now."""

    uuid: Id = ""
    load: Annotated[float, Field(ge=0, le=100)] | None = None  #: per cent
    memory_mib: Annotated[int, Field(ge=0, le=1 << 30)] | None = None  #: in use
    temperature: Annotated[float, Field(ge=-100, le=300)] | None = None  #: degrees Celsius


class JobRef(Message):
    """An attempt of a job."""

    id: Id
    attempt: Attempt


class TestRow(Message):
    """A row of a self-test: what was looked at, what was found, what to do about it."""

    __test__ = False  # no test of pytest's

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    state: Literal["pass", "warn", "fail", "skip"]
    measured: Text = ""
    wanted: Text = ""
    remedy: Text = ""
    gpu: Id | None = None  #: its uuid; None: of the machine
