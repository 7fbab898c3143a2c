"""The programs that a node needs on a server, and what its package manager could install of those that are missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pocqueue.deploy.facts.docker import MIN_COMPOSE, DockerFacts, numbers
from pocqueue.deploy.facts.parts import UnexpectedAnswer, os_release, read_parts
from pocqueue.deploy.words import Command

#: Programs whose mere presence counts.
_TOOLS = ("git", "curl", "python3")
#: Packages that have compose 2, the first that is offered and new enough: of Docker's repository, of Ubuntu, of Debian.
_COMPOSE = ("docker-compose-plugin", "docker-compose-v2", "docker-compose")
_ENGINES = ("docker-ce", "docker.io")
_TOOLKIT = "nvidia-container-toolkit"
#: All that apt is asked for.
ASKED = (*_ENGINES, *_COMPOSE, _TOOLKIT, *_TOOLS, "python3-venv", "ca-certificates")
#: Fingerprints of the keys that sign the repositories of strangers, as both publish them.
DOCKER_KEY = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
NVIDIA_KEY = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """What is there, and what could be.

    Attributes:
        distribution: such as ``ubuntu``.
        release: such as ``22.04``.
        codename: such as ``jammy``.
        programs: those that are there, of docker, nvidia-ctk, git, curl, python3, apt-get.
        has_venv: python3 can make venvs.
        apt_pid: who holds apt's lock; None: nobody does.
        is_broken: an installation was interrupted.
        is_installing: one of ours goes on, of a run that was cut.
        offered: versions by package; None: apt was not asked, or has no lists yet.
    """

    distribution: str
    release: str
    codename: str
    programs: frozenset[str]
    has_venv: bool
    apt_pid: int | None
    is_broken: bool
    is_installing: bool = False
    offered: Mapping[str, str] | None = field(default=None)


def package_facts(job: str, *names: str) -> Command:
    """Return the command that reads them; as root, who may see all locks.

    Args:
        job: folder of the job that installs.
        names: packages to ask apt for, which takes half a second.
    """
    return Command((job, *names), script="package_facts", sudo=True, timeout_s=60)


def read_packages(text: str) -> PackageFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    programs = ("docker", "nvidia-ctk", *_TOOLS, "apt-get")
    parts = read_parts(text, "os", *programs, "venv", "holder", "broken", "installing")
    release = os_release(parts["os"])
    holder = parts["holder"].wanted().text.strip()
    if holder and not holder.isdecimal():
        raise UnexpectedAnswer("/proc/locks", holder, "a process")
    offered = None
    if (
        "offered" in parts
        and parts["offered"].exit_code == 0
        and parts["lists"].text.strip() != "0"
    ):
        offered = read_policy(parts["offered"].text)
    return PackageFacts(
        distribution=release.get("ID", ""),
        release=release.get("VERSION_ID", ""),
        codename=release.get("VERSION_CODENAME", ""),
        programs=frozenset(name for name in programs if parts[name].exit_code == 0),
        has_venv=parts["venv"].exit_code == 0,
        apt_pid=int(holder) if holder else None,
        is_broken=bool(parts["broken"].text.strip()),
        is_installing=bool(parts["installing"].text.strip()),
        offered=offered,
    )


def read_policy(text: str) -> dict[str, str]:
    """Return the versions that `apt-cache policy` would install, by package.

    >>> read_policy("git:\\n  Installed: (none)\\n  Candidate: 1:2.39.5-0+deb12u2\\n")
    {'git': '1:2.39.5-0+deb12u2'}
    """
    found, name = {}, ""
    for line in text.split("\n"):
        if match := re.fullmatch(r"(\S+):", line):
            name = match[1].partition(":")[0]
        elif (match := re.match(r"  Candidate: (\S+)", line)) and name and match[1] != "(none)":
            found[name] = match[1]
    return found


def missing(docker: DockerFacts, packages: PackageFacts) -> tuple[str, ...]:
    """Return what a node lacks, in words."""
    lacks = []
    if not docker.engine:
        lacks.append("a docker that answers" if "docker" in packages.programs else "docker")
    if not docker.compose or numbers("compose", docker.compose) < MIN_COMPOSE:
        least = ".".join(map(str, MIN_COMPOSE))
        lacks.append(
            f"compose {least} or newer" + (f" (is {docker.compose})" if docker.compose else "")
        )
    if not docker.has_nvidia:
        lacks.append("NVIDIA's runtime in docker")
    lacks += [name for name in _TOOLS if name not in packages.programs]
    if "python3" in packages.programs and not packages.has_venv:
        lacks.append("python3's venv")
    return tuple(lacks)


@dataclass(frozen=True, slots=True)
class Remedy:
    """What is to be done about all that is missing.

    Attributes:
        packages: that apt installs from the repositories that the server has.
        runtime: NVIDIA's runtime has to be made known to docker.
        by_hand: commands that a person has to type before; none: the rest can be done.
        why: a sentence on them.
    """

    packages: tuple[str, ...] = ()
    runtime: bool = False
    by_hand: tuple[str, ...] = ()
    why: str = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """Return all commands that a person would type, in their order."""
        found = list(self.by_hand)
        if self.packages:
            found += [
                "apt-get update",
                f"apt-get install --no-install-recommends {' '.join(self.packages)}",
            ]
        if self.runtime:
            found += ["nvidia-ctk runtime configure --runtime=docker", "systemctl reload docker"]
        return tuple(found)


def remedy(docker: DockerFacts, packages: PackageFacts) -> Remedy:
    """Return what is to be done about what is missing: by apt where the server's own repositories have it."""
    if "apt-get" not in packages.programs:
        lacks = ", ".join(missing(docker, packages))
        return Remedy(
            by_hand=(f"# by the package manager of this system: {lacks}",),
            why="This server has no apt.",
        )
    offered = _offered(packages)
    wanted, by_hand, why = list[str](), list[str](), list[str]()
    if not docker.engine and "docker" in packages.programs:
        # It may have containers that start with it: that is a person's decision.
        return Remedy(
            by_hand=("systemctl status docker", "systemctl enable --now docker"),
            why="Docker is installed and does not answer.",
        )
    from_docker = False
    if not docker.engine:
        engine = next((name for name in _ENGINES if name in offered), None)
        from_docker = engine is None
        wanted += ["docker-ce" if engine is None else engine]
    if not docker.compose or numbers("compose", docker.compose) < MIN_COMPOSE:
        compose = next((name for name in _COMPOSE if _is_new(offered.get(name, ""))), None)
        from_docker |= compose is None
        wanted += ["docker-compose-plugin" if compose is None else compose]
    if from_docker:
        why.append("Its repositories have no compose that is new enough; Docker's has.")
        by_hand += _repository(
            "docker",
            f"https://download.docker.com/linux/{packages.distribution}/gpg",
            DOCKER_KEY,
            f"https://download.docker.com/linux/{packages.distribution} {packages.codename} stable",
        )
    if not docker.has_nvidia and "nvidia-ctk" not in packages.programs:
        wanted.append(_TOOLKIT)
        if _TOOLKIT not in offered:
            why.append("Its repositories have no NVIDIA container toolkit; NVIDIA's has.")
            place = "https://nvidia.github.io/libnvidia-container"
            by_hand += _repository(
                _TOOLKIT, f"{place}/gpgkey", NVIDIA_KEY, f"{place}/stable/deb/$(ARCH) /"
            )
    wanted += [name for name in _TOOLS if name not in packages.programs]
    if not packages.has_venv:
        wanted.append("python3-venv")
    if wanted:
        # What comes over https needs them, and nothing that is recommended is installed.
        wanted.append("ca-certificates")
    return Remedy(tuple(wanted), not docker.has_nvidia, tuple(by_hand), " ".join(why))


def _is_new(version: str) -> bool:
    """Say whether a package's version, with its epoch and its revision, is of a compose that will do."""
    number = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return number is not None and numbers("compose", number[1]) >= MIN_COMPOSE


def _offered(packages: PackageFacts) -> Mapping[str, str]:
    """Return what apt has; on a server that has never asked, what its distribution has."""
    if packages.offered is not None:
        return packages.offered
    names = ["docker.io", *_TOOLS, "python3-venv", "ca-certificates"]
    found = dict.fromkeys(names, "0")
    release = numbers("VERSION_ID", packages.release or "0")
    if packages.distribution == "ubuntu" and release >= (22, 4):
        found["docker-compose-v2"] = "2.24.6"
    if packages.distribution == "debian" and release >= (13,):
        found["docker-compose"] = "2.26.1"
    return found


def _repository(name: str, key_url: str, fingerprint: str, source: str) -> list[str]:
    """Return the commands that add a repository, whose key is removed again where it is another one."""
    key = f"/etc/apt/keyrings/{name}.asc"
    return [
        "install -d -m 0755 /etc/apt/keyrings",
        f"curl -fsSL {key_url} -o {key}",
        f"gpg --show-keys --with-colons {key} | grep -q '^fpr:.*:{fingerprint}:' || rm -v {key}",
        f"echo 'deb [signed-by={key}] {source}' > /etc/apt/sources.list.d/{name}.list",
    ]
