"""What is missing on a server, and what is to be done about it: text in, decision out."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pocqueue.deploy.facts.docker import DockerFacts
from pocqueue.deploy.facts.packages import (
    PackageFacts,
    missing,
    read_packages,
    read_policy,
    remedy,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from tests.deploy.facts.answers import answer

ALL = frozenset({"docker", "nvidia-ctk", "git", "curl", "python3", "apt-get"})
DOCKER = DockerFacts("27.3.1", "2.29.7", True)
BARE = DockerFacts("", "", False)
GOOD = PackageFacts("ubuntu", "22.04", "jammy", ALL, True, None, False)
NOTHING = dataclasses.replace(GOOD, programs=frozenset({"apt-get", "python3"}), has_venv=False)


def packages(**parts: str | tuple[str, int]) -> str:
    """Return the answer of a server with all of it."""
    usual: dict[str, str | tuple[str, int]] = {
        "os": 'ID=ubuntu\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy',
        **dict.fromkeys(sorted(ALL), ""),
        "venv": "",
        "holder": "",
        "broken": "",
        "installing": "",
    }
    return answer(**usual | parts)


def test_a_usual_server() -> None:
    """Nothing is missing."""
    facts = read_packages(packages())
    assert facts == GOOD
    assert not missing(DOCKER, facts)


def test_a_server_in_trouble() -> None:
    """Held, interrupted, without venv, and what apt offers."""
    facts = read_packages(
        packages(
            git=("", 1),
            venv=("", 1),
            holder="4711",
            broken="broken",
            installing="installing",
            lists="12",
            offered="git:\n  Installed: (none)\n  Candidate: 1:2.34\nx:\n  Candidate: (none)",
        )
    )
    assert (facts.apt_pid, facts.is_broken, facts.is_installing) == (4711, True, True)
    assert facts.offered == {"git": "1:2.34"}
    assert missing(DOCKER, facts) == ("git", "python3's venv")
    assert read_packages(packages(lists="0", offered="")).offered is None
    with pytest.raises(UnexpectedAnswer, match="/proc/locks"):
        read_packages(packages(holder="?"))


def test_policy_without_candidates() -> None:
    """A package that no repository has is not offered."""
    assert read_policy("N: Unable to locate package x") == {}


@pytest.mark.parametrize(
    ("offered", "chosen", "by_hand"),
    [
        # Ubuntu alone; NVIDIA's repository is the operator's.
        (
            {"docker.io": "24.0.7", "docker-compose-v2": "2.24.6+ds1-0ubuntu1"},
            "docker.io docker-compose-v2 nvidia-container-toolkit",
            "nvidia",
        ),
        # An operator who has both repositories.
        (
            {
                "docker-ce": "5:27.3.1-1~ubuntu",
                "docker.io": "24",
                "docker-compose-plugin": "2.29.7-1",
                "nvidia-container-toolkit": "1.17.4-1",
            },
            "docker-ce docker-compose-plugin nvidia-container-toolkit",
            "",
        ),
        # Debian 12: no compose that is new enough.
        (
            {
                "docker.io": "20.10.24",
                "docker-compose": "1.29.2-3",
                "nvidia-container-toolkit": "1",
            },
            "docker.io docker-compose-plugin nvidia-container-toolkit",
            "docker",
        ),
        # Debian 13.
        (
            {"docker.io": "26.1.5", "docker-compose": "2.26.1-4", "nvidia-container-toolkit": "1"},
            "docker.io docker-compose nvidia-container-toolkit",
            "",
        ),
    ],
)
def test_packages_are_those_that_the_server_has(
    offered: dict[str, str], chosen: str, by_hand: str
) -> None:
    """Of its own repositories; what they lack is for the operator, with what is to be typed."""
    todo = remedy(BARE, dataclasses.replace(NOTHING, offered=offered))
    assert " ".join(todo.packages) == f"{chosen} git curl python3-venv ca-certificates"
    added = re.findall(r"> /etc/apt/sources.list.d/(\w+)", "\n".join(todo.by_hand))
    assert added == ([by_hand] if by_hand else [])
    assert todo.commands[-2:] == (
        "nvidia-ctk runtime configure --runtime=docker",
        "systemctl reload docker",
    )
    assert "restart" not in " ".join(todo.commands)


def test_a_server_that_never_asked_has_what_its_distribution_has() -> None:
    """Its lists come with the installation."""
    with_toolkit = dataclasses.replace(NOTHING, programs=NOTHING.programs | {"nvidia-ctk"})
    assert not remedy(BARE, with_toolkit).by_hand
    old = dataclasses.replace(
        with_toolkit, distribution="debian", release="12", codename="bookworm"
    )
    assert "download.docker.com/linux/debian bookworm stable" in "\n".join(
        remedy(BARE, old).by_hand
    )


def test_only_what_is_missing_is_installed() -> None:
    """An old compose alone; a toolkit that docker does not know yet needs no package."""
    todo = remedy(
        DockerFacts("24.0", "2.20.0", False),
        dataclasses.replace(GOOD, offered={"docker-compose-v2": "2.24.6"}),
    )
    assert (todo.packages, todo.runtime, todo.by_hand) == (
        ("docker-compose-v2", "ca-certificates"),
        True,
        (),
    )
    assert remedy(DockerFacts("24.0", "2.29.7", False), GOOD).packages == ()


def test_a_server_without_apt() -> None:
    """Is told what it lacks."""
    todo = remedy(BARE, dataclasses.replace(NOTHING, programs=frozenset()))
    assert "no apt" in todo.why
    assert "docker" in todo.by_hand[0]
