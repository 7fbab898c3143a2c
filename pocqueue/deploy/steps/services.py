"""Services that run and stay up: tmkms and node, on which the wallet and the registration stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pocqueue.deploy.engine import Host, NotYet, Plan
from pocqueue.deploy.facts.docker import DockerFacts, docker_facts, read_docker
from pocqueue.deploy.facts.service_logs import known_causes
from pocqueue.deploy.journal import Undo
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import compose_folder, looked, need_mounted
from pocqueue.deploy.words import Command

COMPOSE_FILE = "docker-compose.yml"
#: Upstream's compose files.
UPSTREAM_FILES = (COMPOSE_FILE, "docker-compose.mlnode.yml")
SERVICES = ("tmkms", "node")
#: Seconds for images to be loaded.
PULL_S = 1_800.0
#: The undo's script, and the journal's name for the services that there were before.
DOWN = "services_down"
BEFORE = "services_before"


@dataclass(frozen=True, slots=True)
class ServicesState:
    """The services, and of each that does not stay up its last lines.

    Attributes:
        folder: of the compose files.
        docker: the engine, and what runs.
        logs: by service.
        before: services that no run of ours has made, so that rollback ends none of the project; empty: all are ours.
        ours: file on the server that says so.
    """

    folder: str
    docker: DockerFacts
    logs: dict[str, str]
    before: tuple[str, ...]
    ours: str

    def shown(self, name: str) -> str:
        """Return how a service does, with what is known of why."""
        service = self.docker.service(name)
        how = service.shown if service else f"{name}: does not run"
        if service is not None and service.state == "exited" and service.exit_code == 137:
            how += " (killed: was the memory full?)"
        return "; ".join([how, *known_causes(self.logs.get(name, ""))])


def ours_file(host: Host) -> str:
    """Return the file on the server that is there since runs have made the node's first containers."""
    return f"{host.state_dir}/services-are-ours"


async def made_before(host: Host, docker: DockerFacts) -> tuple[str, ...]:
    """Return the services that were there before runs did anything to them.

    Args:
        host: whose journal has how ours are ended, since before they were made; without it the server's own note counts.
        docker: what is there now.
    """
    found = tuple(service.name for service in docker.services or ())
    if not found or any(undo.script == DOWN for undo in host.journal.undos):
        return ()
    if noted := host.journal.get(BEFORE):
        return tuple(noted)
    said = await host.look(Command(("test", "-e", ours_file(host)), sudo=True))
    return () if said.exit_code == 0 else found


async def last_lines(
    host: Host, folder: str, docker: DockerFacts, names: Iterable[str]
) -> dict[str, str]:
    """Return the last lines of those services that are there and do not stay up.

    Args:
        host: is read only.
        folder: of the compose files.
        docker: what runs.
        names: of the services that should.
    """
    logs = {}
    for name in names:
        service = docker.service(name)
        if service is not None and not service.is_settled:
            words = (folder, "logs", "--no-color", "--tail", "100", name)
            said = await host.look(Command(words, script="compose", sudo=True))
            logs[name] = f"{said.stdout}\n{said.stderr}"
    return logs


@dataclass(frozen=True, slots=True)
class ServicesRun:
    """tmkms and node run, and have for a while.

    Args:
        start_s: seconds that they have to settle.
    """

    start_s: int = 120
    phase: int = 4
    name: str = "tmkms and node"

    async def look(self, host: Host) -> ServicesState:
        """Read what runs, and the last lines of what does not stay up."""
        await need_mounted(host)
        folder = compose_folder(host.conf)
        docker = read_docker(await looked(host, self.name, docker_facts(folder, UPSTREAM_FILES)))
        if docker.services is None:
            raise NotYet(
                f"until docker runs, and {folder} has its files"
                if docker.engine
                else "until there is a docker engine"
            )
        logs = await last_lines(host, folder, docker, SERVICES)
        return ServicesState(folder, docker, logs, await made_before(host, docker), ours_file(host))

    def told(self, facts: ServicesState) -> str:
        """Say how each does."""
        return ", ".join(facts.shown(name) for name in SERVICES)

    def is_done(self, facts: ServicesState) -> bool:
        """Say whether both run, are not unhealthy, and have for more than 15 s."""
        found = [facts.docker.service(name) for name in SERVICES]
        return all(service is not None and service.is_settled for service in found)

    def plan(self, facts: ServicesState) -> Plan:
        """Pull their images, and that of api for the wallet, and start them."""
        note = "-" if facts.before else facts.ours
        words = (facts.folder, str(self.start_s), note, *SERVICES, "--", "api")
        command = Command(
            words, script="services_up", sudo=True, timeout_s=PULL_S + 2 * self.start_s + 60
        )
        undo = Undo(
            self.name,
            "end the containers of the node (docker compose down); the disk's folders stay",
            DOWN,
            (facts.folder, COMPOSE_FILE),
        )
        what = f"docker compose up -d --no-deps {' '.join(SERVICES)}"
        return Plan(
            what,
            (Job("4-services", command),),
            () if facts.before else (undo,),
            notes={BEFORE: list(facts.before)} if facts.before else {},
        )
