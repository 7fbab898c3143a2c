"""The container engine, and the services of a compose project: which run, for how long, and who can reach them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, read_json, read_parts
from pocqueue.deploy.words import Command

#: The first compose that knows `!override`, with which ports of others are closed.
MIN_COMPOSE = (2, 24, 4)
#: The only ports of a node that the world reaches: p2p and the proxy.
PUBLIC_PORTS = frozenset({5000, 8000, 8443})
#: A service that runs for so long does not restart all the time.
SETTLED_S = 15
_UNITS_S = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86400,
    "week": 604800,
    "month": 2592000,
    "year": 31536000,
}
_LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|::1|\[::1\]")


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the server that leads to a service."""

    service: str
    port: int
    address: str  #: of the server; empty: all of them
    protocol: str = "tcp"
    target: int = field(
        default=0, compare=False
    )  #: port of the service that it leads to; 0: not known

    @property
    def is_open(self) -> bool:
        """Return whether other machines reach it, past a firewall such as ufw."""
        return not _LOOPBACK.fullmatch(self.address)


@dataclass(frozen=True, slots=True)
class Service:
    """A container of a service."""

    name: str
    image: str
    state: str  #: ``running``, ``restarting``, ``exited``, ``created``, ``paused``, ``dead``, ``removing``
    health: str  #: ``healthy``, ``unhealthy``, ``starting``; empty: it has no check
    exit_code: int
    up_s: int | None  #: at least so long; None: it does not run
    ports: tuple[PublishedPort, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Return whether it runs, is not unhealthy, and has not just been started."""
        return (
            self.state == "running"
            and self.health in ("", "healthy")
            and (self.up_s or 0) > SETTLED_S
        )

    @property
    def shown(self) -> str:
        """Return how it does, for people."""
        how = {"running": f"running for {self.up_s} s", "exited": f"exited with {self.exit_code}"}
        return f"{self.name}: {how.get(self.state, self.state)}{f', {self.health}' if self.health else ''}"


@dataclass(frozen=True, slots=True)
class DockerFacts:
    """The engine and one project.

    Attributes:
        engine: its version; empty: there is none, or it does not answer.
        compose: version of the plugin; empty: there is none.
        has_nvidia: the engine knows NVIDIA's runtime.
        services: None: there is no project yet, or it cannot be read.
        published: by the project's files; None as with `services`.
        names: of the services that those files have; None as with `services`.
        images: of these services; none as with `services`.
    """

    engine: str
    compose: str
    has_nvidia: bool
    services: tuple[Service, ...] | None = None
    published: tuple[PublishedPort, ...] | None = None
    names: tuple[str, ...] | None = None
    images: tuple[str, ...] = ()

    def service(self, name: str) -> Service | None:
        """Return the container of a service."""
        return next((each for each in self.services or () if each.name == name), None)

    def by_image(self, part: str) -> tuple[Service, ...]:
        """Return the services whose image's name has this part: names of services change upstream."""
        return tuple(each for each in self.services or () if part in each.image.rpartition("/")[2])


def docker_facts(folder: str, files: Iterable[str] = ()) -> Command:
    """Return the command that reads them.

    Args:
        folder: of the compose files; empty: there is none yet.
        files: their names, in their order.
    """
    return Command((folder or "-", *files), script="docker_facts", sudo=True, timeout_s=60)


def read_docker(text: str) -> DockerFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "engine", "compose", "runtimes")
    services, config = parts.get("services"), parts.get("config")
    return DockerFacts(
        engine=_version(parts["engine"], '"'),
        compose=_version(parts["compose"], "v"),
        has_nvidia=parts["runtimes"].exit_code == 0
        and "nvidia" in _object(parts["runtimes"].json(), parts["runtimes"]),
        services=read_services(services.text) if services and services.exit_code == 0 else None,
        published=read_published(config.text) if config and config.exit_code == 0 else None,
        names=read_names(config.text) if config and config.exit_code == 0 else None,
        images=read_images(config.text) if config and config.exit_code == 0 else (),
    )


def _version(part: Part, stripped: str) -> str:
    """Return a version, or nothing where the command did not end well: what it says then is for people."""
    if part.exit_code:
        return ""
    version = part.text.strip().strip(stripped)
    numbers(part.name, version)
    return version


def numbers(what: str, version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without what is behind them.

    Raises:
        UnexpectedAnswer: it is none.

    >>> numbers("compose", "2.24.4-desktop.1")
    (2, 24, 4)
    """
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    if not found:
        raise UnexpectedAnswer(what, version, "a version")
    return tuple(map(int, found[1].split(".")))


def read_services(text: str) -> tuple[Service, ...]:
    """Return the services of `docker compose ps --all --format json`: an object a line, or one list of older ones.

    Raises:
        UnexpectedAnswer: it is neither.
    """
    text = text.strip()
    rows = (
        read_json("docker compose ps", text)
        if text.startswith("[")
        else [read_json("docker compose ps", line) for line in text.splitlines() if line.strip()]
    )
    return tuple(_service(row) for row in rows)


def _service(row: object) -> Service:
    try:
        assert isinstance(row, dict)
        return Service(
            name=str(row["Service"]),
            image=str(row.get("Image") or ""),
            state=str(row["State"]).lower(),
            health=str(row.get("Health") or ""),
            exit_code=int(row.get("ExitCode") or 0),
            up_s=up_seconds(str(row.get("Status") or "")),
            ports=tuple(_publishers(str(row["Service"]), row.get("Publishers") or ())),
        )
    except (AssertionError, KeyError, TypeError, ValueError):
        raise UnexpectedAnswer("docker compose ps", str(row), "a service with its state") from None


def _publishers(service: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[PublishedPort]:
    for row in rows:
        # 0: exposed to other containers only.
        if port := int(row.get("PublishedPort") or 0):
            yield PublishedPort(
                service, port, _address(row.get("URL")), str(row.get("Protocol") or "tcp")
            )


def _address(said: object) -> str:
    return "" if said in (None, "", "0.0.0.0", "::", "[::]") else str(said)  # noqa: S104 - what is looked for


def up_seconds(status: str) -> int | None:
    """Return for how long a container runs at least, from docker's words; None: it does not run.

    Raises:
        ValueError: the words are not docker's.

    >>> up_seconds("Up About a minute (healthy)"), up_seconds("Up 17 seconds"), up_seconds("Exited (1) 3 hours ago")
    (60, 17, None)
    """
    if not status.startswith("Up"):
        return None
    words = re.match(
        r"Up (?:(Less than a second)|About an? (\w+)|(\d+) (\w+?)s?)(?: \(.*\))?$", status
    )
    if not words:
        raise ValueError(status)
    if words[1]:
        return 0
    return int(words[3] or 1) * _UNITS_S[words[2] or words[4]]


def read_names(text: str) -> tuple[str, ...]:
    """Return the services that `docker compose config --format json` has, but for those of profiles that are off.

    Raises:
        UnexpectedAnswer: it is no such answer.
    """
    return tuple(_services_of(text))


def read_images(text: str) -> tuple[str, ...]:
    """Return the images of those services, but for those that are built there.

    Raises:
        UnexpectedAnswer: it is no such answer.
    """
    found = (each.get("image") for each in _services_of(text).values() if isinstance(each, dict))
    return tuple(str(image) for image in found if image)


def _services_of(text: str) -> dict[str, Any]:
    found = read_json("docker compose config", text)
    services = found.get("services") if isinstance(found, dict) else None
    if not isinstance(services, dict):
        raise UnexpectedAnswer("docker compose config", text, "services")
    return services


def read_published(text: str) -> tuple[PublishedPort, ...]:
    """Return the ports that `docker compose config --format json` publishes.

    Raises:
        UnexpectedAnswer: it is no such answer.
    """
    found = []
    try:
        for name, service in read_json("docker compose config", text)["services"].items():
            for row in service.get("ports") or ():
                first, _, last = (
                    str(row["published"]).partition("-") if row.get("published") else ("0", "", "0")
                )
                found += [
                    PublishedPort(
                        name,
                        port,
                        _address(row.get("host_ip")),
                        str(row.get("protocol") or "tcp"),
                        int(row.get("target") or 0),
                    )
                    for port in range(int(first), int(last or first) + 1)
                ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UnexpectedAnswer("docker compose config", text, "services with their ports") from None
    return tuple(found)


def open_ports(
    published: Iterable[PublishedPort], allowed: Collection[int] = PUBLIC_PORTS
) -> tuple[PublishedPort, ...]:
    """Return the ports that other machines reach though they should not; one that docker chooses counts."""
    return tuple(port for port in published if port.is_open and port.port not in allowed)


def _object(value: object, part: Part) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnexpectedAnswer(part.name, part.text, "an object")
    return value
