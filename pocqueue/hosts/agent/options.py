"""What an agent is told. Imports next to nothing, as the command line reads it as well."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pocqueue.hosts.protocol import HEARTBEAT_S

SandboxName = Literal["auto", "docker", "podman", "bubblewrap", "none"]

#: Programs that a command may start, if the owner does not say otherwise.
PROGRAMS = ("nvidia-smi", "sleep")
#: Share of this machine's memory that one job may have, if the owner does not say otherwise.
MEMORY_SHARE = 0.8
#: Seconds for which each GPU multiplies matrices in a self-test.
MATRIX_S = 10.0


@dataclass(frozen=True)
class Options:
    """What an agent is told."""

    endpoint: str
    state_dir: Path
    token: str | None = field(default=None, repr=False)
    hostname: str = field(default_factory=platform.node)
    sandbox: SandboxName = "auto"
    programs: tuple[str, ...] = PROGRAMS
    memory_mib: int | None = None  #: most of one job; None: `MEMORY_SHARE` of what there is
    containers: bool = True
    stop_s: float = 8.0  #: that running jobs have to end when the agent is told to stop
    heartbeat_s: float = HEARTBEAT_S
    matrix_s: float = MATRIX_S
    new_key: bool = False  #: take another key at the next connection
