"""The programs that a node needs: docker with compose, NVIDIA's runtime, git, curl, python3 with venv.

What is missing is installed with INSTALL=yes, from the repositories that the server has already. Repositories of strangers are
the operator's to add: their commands are shown, with the fingerprint of the key that signs them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pocqueue.deploy.engine import Host, Plan
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.docker import DockerFacts, docker_facts, read_docker
from pocqueue.deploy.facts.packages import (
    ASKED,
    PackageFacts,
    missing,
    package_facts,
    read_packages,
    remedy,
)
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import compose_folder, looked
from pocqueue.deploy.steps.services import UPSTREAM_FILES
from pocqueue.deploy.words import Command

#: Seconds that another installation is waited for.
WAIT_S = 300
_NAME = "packages"
#: That installs.
_JOB = "1-packages"


@dataclass(frozen=True, slots=True)
class Software:
    """What a server has of it."""

    docker: DockerFacts
    packages: PackageFacts
    installs: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """Return what it lacks."""
        return missing(self.docker, self.packages)


async def read_software(host: Host) -> Software:
    """Return what a server has, and what apt offers where something is missing; of docker also what other steps ask of it.

    Args:
        host: is read only.

    Raises:
        StepFailed, UnexpectedAnswer: it cannot be read.
    """
    docker, packages = await asyncio.gather(_docker(host), _packages(host))
    software = Software(docker, packages, host.conf.install == "yes")
    if not software.missing:
        return software
    packages = await _installed(host)
    docker = await _docker(host, anew=True)
    return Software(docker, packages, software.installs)


async def _docker(host: Host, *, anew: bool = False) -> DockerFacts:
    command = docker_facts(compose_folder(host.conf), UPSTREAM_FILES)
    return read_docker(await looked(host, _NAME, command, anew=anew))


async def _packages(host: Host, *names: str) -> PackageFacts:
    command = package_facts(f"{host.state_dir}/jobs/{_JOB}", *names)
    # With names: they are asked until nothing is being installed.
    return read_packages(await looked(host, _NAME, command, anew=bool(names)))


async def _installed(host: Host) -> PackageFacts:
    """Return what is there and what apt offers, when no installation of an earlier run goes on: what it is about to start is not missing."""
    for second in range(WAIT_S):
        packages = await _packages(host, *ASKED)
        if not packages.is_installing:
            return packages
        if second == 0:
            host.out.info(f"An earlier run installs packages: waiting, up to {WAIT_S} s...")
        await asyncio.sleep(1)
    raise StepFailed(
        _NAME, f"an earlier run's installation has not ended after {WAIT_S} s; run again."
    )


@dataclass(frozen=True, slots=True)
class Packages:
    """All of it is there.

    Args:
        wait_s: seconds that another installation is waited for.
    """

    wait_s: int = WAIT_S
    phase: int = 1
    name: str = _NAME

    async def look(self, host: Host) -> Software:
        """Ask for versions."""
        return await read_software(host)

    def told(self, facts: Software) -> str:
        """Say what is there, or what is missing."""
        if facts.missing:
            return f"missing: {', '.join(facts.missing)}"
        docker = facts.docker
        return f"docker {docker.engine}, compose {docker.compose}, NVIDIA's runtime, git, curl, python3 with venv"

    def is_done(self, facts: Software) -> bool:
        """Say whether nothing is missing."""
        return not facts.missing

    def plan(self, facts: Software) -> Plan:
        """Install what is missing.

        Raises:
            StepFailed: that is the operator's to do, by these commands.
        """
        todo = remedy(facts.docker, facts.packages)
        lacks = ", ".join(facts.missing)
        if todo.by_hand or not facts.installs:
            why = todo.why or "Nothing is installed without INSTALL=yes in the conf file."
            raise StepFailed(
                self.name,
                f"missing: {lacks}. {why} Type on the server, as root:\n  "
                + "\n  ".join(todo.commands),
            )
        if facts.packages.is_broken:
            raise StepFailed(
                self.name,
                "an installation was interrupted, so apt installs nothing. Type on the server, as root: dpkg --configure -a",
            )
        words = (str(self.wait_s), "yes" if todo.runtime else "no", *todo.packages)
        command = Command(
            words, script="install_packages", sudo=True, timeout_s=900.0 + 2 * self.wait_s
        )
        what = (
            f"install {', '.join(todo.packages)}"
            if todo.packages
            else "make NVIDIA's runtime known to docker"
        )
        held = facts.packages.apt_pid
        return Plan(
            what + (f" (apt is held by process {held} now: waited for)" if held else ""),
            (Job(_JOB, command),),
        )
