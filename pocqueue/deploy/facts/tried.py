"""What only a try tells of a server: GPUs in a container, and the rate of its data disk."""

from __future__ import annotations

from dataclasses import dataclass

from pocqueue.deploy.facts.parts import read_parts
from pocqueue.deploy.words import Command, one_line


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of it.

    Attributes:
        container_gpus: that a container with `--gpus all` saw; None: no image was there to try it with, or no runtime.
        container_said: why it saw none; empty: nothing was said.
        write_mb_s: that the data disk took, past the cache, MB/s; None: it is not mounted, or cannot do without the cache.
    """

    container_gpus: int | None
    container_said: str
    write_mb_s: float | None


def tried_facts(mount: str) -> Command:
    """Return the command that tries both.

    Args:
        mount: folder where the data disk is mounted; empty: nowhere yet.
    """
    return Command((mount or "-",), script="tried_facts", sudo=True, timeout_s=120)


def read_tried(text: str) -> Tried:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "gpus", "rate")
    gpus, rate = parts["gpus"], parts["rate"]
    lines = [line.strip() for line in gpus.lines if line.strip()]
    said = rate.text.strip()
    per_s = int(said) if rate.exit_code == 0 and said.isdecimal() else 0
    return Tried(
        container_gpus=(sum(line.isdecimal() for line in lines) if not gpus.exit_code else 0)
        if lines or gpus.exit_code
        else None,
        container_said=one_line(lines[-1])[:200] if gpus.exit_code and lines else "",
        write_mb_s=per_s / 1e6 if per_s else None,
    )
