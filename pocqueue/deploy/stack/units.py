"""The units of pocqueue on a server: which there are for its roles. Files of systemd, in `units/`, are the same everywhere;
a compose project is made for its server.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from pocqueue.deploy.conf import Conf

TARGET = "pocqueue.target"
#: By role, in the order in which they are started and updated: what others need comes first, workers come last.
_FILES = {
    "redis": "pocqueue-redis.service",
    "scheduler": "pocqueue-scheduler.service",
    "io": "pocqueue-io.service",
    "delegation": "pocqueue-delegation.service",
    "hosts": "pocqueue-relay.service",
    "agent": "pocqueue-agent.service",
    "worker": "pocqueue-worker@.service",
}


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of systemd, or service of a compose project.

    Attributes:
        name: such as ``pocqueue-worker@gpu0.service``, or ``worker-gpu0``.
        role: of the conf.
        gpu: number of its worker's GPU; None: it is no worker of GPUs.
        queue: of that worker; empty: it is none.
    """

    name: str
    role: str
    gpu: int | None = None
    queue: str = ""

    @property
    def file(self) -> str:
        """Return the file of systemd that describes it."""
        return _FILES[self.role]


def unit_text(file: str) -> str:
    """Return a unit's file."""
    return resources.files("pocqueue.deploy").joinpath("units", file).read_text("utf-8")


def units_of(conf: Conf) -> tuple[Unit, ...]:
    """Return the units of a server, in their order."""
    is_compose = conf.pocqueue_run == "compose"
    found = []
    for role in (role for role in _FILES if role in conf.pocqueue_role):
        file = role if is_compose else _FILES[role]
        if role != "worker":
            found.append(Unit(file, role))
            continue
        for number in conf.pocqueue_gpus:
            name = f"worker-gpu{number}" if is_compose else file.replace("@", f"@gpu{number}")
            found.append(Unit(name, role, number, f"{conf.key_name}.gpu{number}"))
    return tuple(found)


def unit_files(units: tuple[Unit, ...]) -> dict[str, str]:
    """Return the files of systemd for units and for the target, by name."""
    names = (*dict.fromkeys(unit.file for unit in units), TARGET)
    return {name: unit_text(name) for name in names}
