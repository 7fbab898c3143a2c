"""What a sandbox is: it runs one command within limits, and says how that ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, Protocol

#: How a job ended: by itself, by one of its limits, or because it was told to.
EndedBy = Literal["itself", "wall time", "cpu time", "memory", "processes", "output", "cancelled"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may use; whatever goes beyond one of these is refused to it, or ends it."""

    wall_s: float = 3600.0
    cpu_s: float = 3600.0  #: of all its processes together
    memory_mib: int = 4096  #: of all its processes and files together
    disk_mib: int = 1024  #: files in its /tmp; they are kept in memory
    processes: int = 256  #: at the same time, threads included
    output_mib: int = 64  #: that it may write to standard output and error
    kept_kib: int = 256  #: of that, its beginning and its end


@dataclass(frozen=True, slots=True)
class Command:
    """One command to run: a program and its arguments, never a line for a shell."""

    argv: tuple[str, ...]
    limits: Limits = Limits()
    #: GPUs that it gets: their index on this machine and their UUID.
    gpus: tuple[tuple[int, str], ...] = ()
    #: Of a container, by digest; None: the programs of this machine.
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    exit_code: int  #: 128 + N if signal N ended it
    ended_by: EndedBy
    seconds: float
    output: str  #: standard output and error, its beginning and its end
    left_out: int  #: bytes between the two

    @property
    def is_good(self) -> bool:
        """Whether it ended by itself, with exit code 0."""
        return self.ended_by == "itself" and self.exit_code == 0


class Sandbox(Protocol):
    """A way to run commands of strangers."""

    #: `bubblewrap`, `docker` or `podman`.
    name: str
    #: Whether a command may name an image.
    takes_images: bool
    #: What bounds a job, in words.
    bounds: str

    async def run(self, command: Command, stop: asyncio.Event) -> Outcome:
        """Run a command to its end, the end of its time, or until `stop` is set; nothing of it is left then.

        Raises:
            SandboxUnavailable: it was not run, as the sandbox cannot be set up.
        """

    def clean(self) -> None:
        """Remove what a killed agent has left behind."""
