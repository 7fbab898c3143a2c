"""Prometheus and the node exporter beside a node, where the conf asks for them: our own compose file, images by digest,
loopback alone. That they do not run is a warning.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from pocqueue.deploy.engine import Host, Plan
from pocqueue.deploy.facts.docker import Service, read_services
from pocqueue.deploy.facts.parts import pairs, read_parts
from pocqueue.deploy.journal import Undo
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import looked, need_mounted
from pocqueue.deploy.words import Command, whole

FILES = ("docker-compose.yml", "prometheus.yml")
_SERVICES = ("prometheus", "node-exporter")


def file_text(name: str) -> str:
    """Return a file of the project, as it is on every server."""
    return resources.files("pocqueue.deploy").joinpath("monitoring", name).read_text("utf-8")


def _hash(name: str) -> str:
    return hashlib.sha256(file_text(name).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MonitoringFacts:
    """The project as it is.

    Attributes:
        folder: of it; empty: it is not asked for.
        hashes: SHA-256 of its files by name; ``-``: there is none.
        services: that there are.
    """

    folder: str
    hashes: dict[str, str]
    services: tuple[Service, ...]

    @property
    def changed(self) -> tuple[str, ...]:
        """Return the files that are not ours."""
        return tuple(name for name in FILES if self.hashes.get(name) != _hash(name))

    @property
    def down(self) -> tuple[str, ...]:
        """Return the services that do not do their work."""
        good = {
            each.name
            for each in self.services
            if each.state == "running" and each.health in ("", "healthy")
        }
        return tuple(name for name in _SERVICES if name not in good)


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Both run, if they are asked for."""

    phase: int = 1
    name: str = "monitoring"
    #: A node earns without it.
    is_optional: bool = True

    async def look(self, host: Host) -> MonitoringFacts:
        """Read files and services."""
        if host.conf.monitoring == "off":
            return MonitoringFacts("", {}, ())
        await need_mounted(host)
        folder = f"{host.conf.volume_mount}/prometheus"
        command = Command(("look", folder), script="monitoring", sudo=True, timeout_s=60)
        parts = read_parts(await looked(host, self.name, command), "hashes")
        services = parts.get("services")
        return MonitoringFacts(
            folder,
            pairs("sha256sum", parts["hashes"].wanted().text),
            read_services(services.text) if services and services.exit_code == 0 else (),
        )

    def told(self, facts: MonitoringFacts) -> str:
        """Say how it does."""
        if not facts.folder:
            return "MONITORING=off"
        if facts.changed or facts.down:
            return f"{facts.folder}: not there yet: {', '.join((*facts.changed, *facts.down))}"
        return f"{facts.folder}: Prometheus on 127.0.0.1:9091, node exporter on 127.0.0.1:9102"

    def is_done(self, facts: MonitoringFacts) -> bool:
        """Say whether both run as our files have them."""
        return not facts.folder or not (facts.changed or facts.down)

    def plan(self, facts: MonitoringFacts) -> Plan:
        """Put the files there, and start both."""
        ours = tuple(f"{name}={_hash(name)}" for name in FILES)
        undo = Undo(
            self.name,
            f"end Prometheus and the node exporter in {facts.folder}; what they measured stays",
            "monitoring",
            ("remove", facts.folder, *ours),
        )
        puts = (
            Command(
                ("put", facts.folder, name), whole(file_text(name)), script="monitoring", sudo=True
            )
            for name in facts.changed
        )
        up = Command(("up", facts.folder), script="monitoring", sudo=True, timeout_s=600)
        return Plan(
            f"Prometheus and node exporter in {facts.folder}, on loopback",
            (*puts, Job("1-monitoring", up)),
            (undo,),
        )
