"""All services of a node: their inner ports closed, all of them up, the model served."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

from typing_extensions import override

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Host, NotYet, Plan
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.docker import (
    PUBLIC_PORTS,
    DockerFacts,
    PublishedPort,
    docker_facts,
    open_ports,
    read_docker,
)
from pocqueue.deploy.facts.gpu import gpu_facts, read_gpus
from pocqueue.deploy.facts.http import Answer, http_facts, read_answers
from pocqueue.deploy.facts.image import CAPABILITY, MLNODE, UNFIT, built_for, computing_image
from pocqueue.deploy.facts.node import HEALTH_URL, MODELS_URL, served_models
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.journal import Undo
from pocqueue.deploy.node_files import NodeFile, num_gpus
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import compose_folder, looked, need_mounted
from pocqueue.deploy.steps.node_files import OUR_FILE, HasNodeFile
from pocqueue.deploy.steps.services import (
    BEFORE,
    DOWN,
    UPSTREAM_FILES,
    ServicesState,
    last_lines,
    made_before,
    ours_file,
)
from pocqueue.deploy.words import Command

#: Upstream's, and ours behind them.
ALL_FILES = (*UPSTREAM_FILES, OUR_FILE)
PULL_S = 1_800
UP_S = 300
#: Until services run so long that they count as settled.
SETTLE_S = 120
#: Until the model is loaded, by profile; a node of one's own may be as large as the largest.
MODEL_S = {"x1": 180}
MODEL_LONGEST_S = 900


def public_ports(conf: Conf) -> frozenset[int]:
    """Return the ports that the world may reach."""
    return PUBLIC_PORTS | {conf.api_port}


async def look_at_services(host: Host, name: str, files: Collection[str]) -> DockerFacts:
    """Return the engine's facts of the node.

    Args:
        host: is read only.
        name: of who asks.
        files: compose files.

    Raises:
        NotYet: the disk is not mounted, or they are not there.
        StepFailed: the engine does not answer.
    """
    await need_mounted(host)
    folder = compose_folder(host.conf)
    found = read_docker(await looked(host, name, docker_facts(folder, files)))
    if not found.engine:
        raise StepFailed(name, "the container engine does not answer: `systemctl start docker`.")
    if found.published is None:
        raise NotYet(f"until the compose files of {folder} can be read")
    return found


def closing_file(published: Collection[PublishedPort], allowed: Collection[int]) -> str:
    """Return the compose file that binds every port but the allowed ones to the server itself.

    A service that has only allowed ones is not named; of one that is, all ports are, since `!override` forgets the others.
    """
    return "".join(_closing_lines(published, allowed))


def _closing_lines(published: Collection[PublishedPort], allowed: Collection[int]) -> Iterator[str]:
    yield "# Made by pocqueue deploy of what the other files publish: inner ports are for the server itself.\nservices:\n"
    for service, found in groupby(
        sorted(published, key=lambda port: port.service), lambda p: p.service
    ):
        ports = list(found)
        if not open_ports(ports, allowed):
            continue
        yield f"  {service}:\n    ports: !override\n"
        for port in ports:
            address = port.address if not port.is_open or port.port in allowed else "127.0.0.1"
            place = f"{address}:" if address else ""
            protocol = "" if port.protocol == "tcp" else f"/{port.protocol}"
            yield f'      - "{place}{port.port or ""}:{port.target}{protocol}"\n'


@dataclass(frozen=True, slots=True)
class ClosedPorts(HasNodeFile):
    """Our compose file is there, which closes the ports that the others open to everybody, past a firewall such as ufw."""

    file: str = OUR_FILE
    phase: int = 6

    @override
    async def wanted(self, host: Host) -> NodeFile:
        """Make it of what the other files publish."""
        found = await look_at_services(host, self.name, UPSTREAM_FILES)
        text = closing_file(found.published or (), public_ports(host.conf))
        return NodeFile(self.file, (text,), 0o644)


@dataclass(frozen=True, slots=True)
class AllState(ServicesState):
    """The services as they are.

    Attributes:
        open: ports that the world would reach and should not.
        num_gpus: that the node needs.
        unfit: why the image that computes does not run on the GPUs, before any of it is loaded; empty: it may.
    """

    open: tuple[PublishedPort, ...]
    num_gpus: int
    unfit: str

    @property
    def missing(self) -> tuple[str, ...]:
        """Return how those do that are not up."""
        up = {each.name for each in self.docker.services or () if each.is_settled}
        return tuple(self.shown(name) for name in self.docker.names or () if name not in up)


async def _unfit(host: Host, docker: DockerFacts) -> str:
    """Say why the image that computes does not run on the GPUs; empty: it may, or the operator knows better."""
    image = computing_image(docker.images)
    if CAPABILITY in host.ignored or not built_for(image).fails:
        return ""
    found = read_gpus(await looked(host, "all services", gpu_facts())).gpus
    capabilities = sorted({gpu.compute_capability for gpu in found})
    if built_for(image).runs_on(capabilities) is not False:
        return ""
    return f"{image} is not built for GPUs of compute capability {', '.join(capabilities)}."


@dataclass(frozen=True, slots=True)
class AllServices:
    """All services of the three compose files are up.

    Args:
        settle_s: seconds that they may take until they have settled.
        every_s: seconds between two looks at them.
    """

    settle_s: float = SETTLE_S
    every_s: float = 5.0
    phase: int = 6
    name: str = "all services"

    async def look(self, host: Host) -> AllState:
        """Read the services, and what the three files would open."""
        found = await look_at_services(host, self.name, ALL_FILES)
        bare = open_ports(found.published or (), public_ports(host.conf))
        running = [port for service in found.services or () for port in service.ports]
        folder = compose_folder(host.conf)
        logs = await last_lines(host, folder, found, found.names or ())
        opened = (*bare, *open_ports(running, public_ports(host.conf)))
        before = await made_before(host, found)
        unfit = "" if found.by_image(MLNODE) else await _unfit(host, found)
        need = num_gpus(host.conf)
        return AllState(folder, found, logs, before, ours_file(host), opened, need, unfit)

    def told(self, facts: AllState) -> str:
        """Say which run, and what is wrong with the others."""
        if facts.open:
            shown = sorted({f"{port.service} {port.port}" for port in facts.open})
            return f"open to everybody: {', '.join(shown)}"
        names = facts.docker.names or ()
        return ", ".join(facts.missing) or f"{', '.join(names)} run"

    def is_done(self, facts: AllState) -> bool:
        """Say whether all of them run, one of them is the mlnode, and none opens what it should not."""
        has_mlnode = bool(facts.docker.by_image(MLNODE))
        return has_mlnode and not facts.missing and not facts.open

    def plan(self, facts: AllState) -> Plan:
        """Load the images, try whether a container sees the GPUs, then start what does not run, or runs with other settings.

        Nothing is stopped first.

        Raises:
            StepFailed: the image that computes does not run on these GPUs.
        """
        if facts.unfit:
            raise StepFailed(self.name, f"{facts.unfit} {UNFIT}")
        words = (facts.folder, *(word for file in ALL_FILES for word in ("-f", file)))
        pull = Command(
            (*words, "pull", "--policy", "missing"), script="compose", sudo=True, timeout_s=PULL_S
        )
        image = computing_image(facts.docker.images)
        tried = Command((image, str(facts.num_gpus)), script="try_gpus", sudo=True, timeout_s=90)
        up = Command((*words, "up", "-d"), script="compose", sudo=True, timeout_s=UP_S)
        names = facts.docker.names or ()
        down = "take the containers down; volumes and data stay"
        return Plan(
            f"{', '.join(names)} of {' '.join(ALL_FILES)}",
            (Job("6-pull", pull), *([tried] if image else []), Job("6-up", up)),
            # Never with -v, and not where others have made some of them.
            () if facts.before else (Undo(self.name, down, DOWN, (facts.folder, *ALL_FILES)),),
            notes={BEFORE: list(facts.before)} if facts.before else {},
            wait_s=self.settle_s,
            every_s=self.every_s,
        )


@dataclass(frozen=True, slots=True)
class Served:
    """What the mlnode answers."""

    model: str
    health: Answer
    models: Answer
    load_s: float

    @property
    def names(self) -> tuple[str, ...]:
        """Return the models that it serves; none, where its answer is no list of them."""
        try:
            return served_models(self.models)
        except UnexpectedAnswer:
            return ()


@dataclass(frozen=True, slots=True)
class ModelServed:
    """The mlnode is well, and serves the model.

    Args:
        load_s: seconds that loading may take; None: by profile.
        every_s: seconds between two looks.
    """

    load_s: float | None = None
    every_s: float = 5.0
    phase: int = 6
    name: str = "model loaded"

    async def look(self, host: Host) -> Served:
        """Ask the mlnode, as the server reaches it.

        Raises:
            NotYet: there is none yet.
        """
        found = await look_at_services(host, self.name, ALL_FILES)
        if not found.by_image(MLNODE):
            raise NotYet("until all services are up")
        urls = (HEALTH_URL, MODELS_URL)
        answers = read_answers(await looked(host, self.name, http_facts(urls)), urls)
        longest = MODEL_S.get(str(host.conf.node_config_profile), MODEL_LONGEST_S)
        return Served(
            host.conf.model_name,
            answers[HEALTH_URL],
            answers[MODELS_URL],
            longest if self.load_s is None else self.load_s,
        )

    def told(self, facts: Served) -> str:
        """Say what it answers."""
        served = ", ".join(facts.names) or f"no model, {facts.models.shown}"
        return f"health {facts.health.shown}; {served}"

    def is_done(self, facts: Served) -> bool:
        """Say whether it is well and serves the model."""
        return facts.health.is_well and facts.model in facts.names

    def plan(self, facts: Served) -> Plan:
        """Wait: the API has the mlnode load it."""
        return Plan(
            f"wait up to {facts.load_s:.0f} s for {facts.model}",
            (),
            wait_s=facts.load_s,
            every_s=self.every_s,
        )
