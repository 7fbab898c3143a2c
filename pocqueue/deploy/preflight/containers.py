"""Checks of the container engine, of what it opens to the world, and of ports that others hold."""

from __future__ import annotations

from collections.abc import Iterator

from pocqueue.deploy.facts.docker import MIN_COMPOSE, numbers, open_ports
from pocqueue.deploy.ports import PORTS, PortUse, Reach
from pocqueue.deploy.preflight.checks import Check, Seen, Wanted, check
from pocqueue.words import counted


def container_checks(seen: Seen, wanted: Wanted) -> Iterator[Check]:
    docker = seen.docker
    yield check(
        "containers",
        "docker",
        bool(docker.engine),
        docker.engine or "none",
        "an engine that answers",
        "Install docker, or run with INSTALL=yes; `systemctl start docker`.",
        warn=wanted.installs,
    )
    least = ".".join(map(str, MIN_COMPOSE))
    is_new = bool(docker.compose) and numbers("compose", docker.compose) >= MIN_COMPOSE
    yield check(
        "containers",
        "compose",
        is_new,
        docker.compose or "none",
        f"{least} or newer",
        "Install docker-compose-plugin: older ones cannot close the ports of others.",
        warn=wanted.installs,
    )
    if wanted.num_gpus:
        yield check(
            "containers",
            "nvidia-runtime",
            docker.has_nvidia,
            "there" if docker.has_nvidia else "none",
            "NVIDIA's container toolkit",
            "Install nvidia-container-toolkit, then `nvidia-ctk runtime configure --runtime=docker`.",
            warn=wanted.installs,
        )
        count = seen.container_gpus
        is_good = None if count is None else count >= wanted.num_gpus
        yield check(
            "containers",
            "container-gpus",
            is_good,
            "not tried: no image is there for it"
            if count is None
            else counted(count, "GPU")
            + (f" ({seen.container_said})" if seen.container_said else ""),
            f"{wanted.num_gpus} in a container with --gpus all",
            "`docker pull ubuntu:24.04` on the server, then check again; phase 7 looks within the mlnode in any case."
            if count is None
            else "See nvidia-runtime, and `nvidia-ctk runtime configure --runtime=docker`.",
        )
    if docker.services:
        running = (port for service in docker.services for port in service.ports)
        found = open_ports(running, wanted.public_ports)
        shown = ", ".join(sorted({f"{p.service} {p.port or 'any'}" for p in found})) or "none"
        yield check(
            "containers",
            "open-ports",
            not found,
            shown,
            f"{', '.join(map(str, sorted(wanted.public_ports)))} alone",
            "A firewall such as ufw does not close them: run phase 6 again, which binds them to 127.0.0.1.",
            warn=True,
        )


def port_checks(seen: Seen, wanted: Wanted) -> Iterator[Check]:
    listeners = seen.system.listeners
    if listeners is None:
        yield check("ports", "ports", None, "ss is not there", "free ports", "Install iproute2.")
        return
    for use in PORTS:
        if use.role in wanted.roles:
            yield _port(seen, use)


def _port(seen: Seen, use: PortUse) -> Check:
    found = [each for each in seen.system.listeners or () if each.port == use.port]
    name, what = f"port-{use.port}", f"free, or {use.what} {use.reach.value}"
    strangers = [
        each for each in found if each.program not in use.programs and each.pid not in seen.our_pids
    ]
    if strangers:
        shown = (
            f"{strangers[0].program or 'a program that is not known'} ({strangers[0].pid or '?'})"
        )
        return check(
            "ports",
            name,
            False,
            shown,
            what,
            f"{use.what} needs port {use.port}: end that program, or move it.",
        )
    if use.reach is Reach.LOOPBACK and (bare := [each for each in found if not each.is_loopback]):
        shown = f"{bare[0].program} at {bare[0].address}"
        return check(
            "ports",
            name,
            False,
            shown,
            what,
            "Everybody reaches it: bind it to 127.0.0.1.",
            warn=True,
        )
    return check("ports", name, True, "ours" if found else "free", what, "")
