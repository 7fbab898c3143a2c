"""The server as a whole, by its own words and by those of the machine that the tests run on."""

from __future__ import annotations

import fcntl
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.facts.system import read_system, system_facts
from tests.deploy.facts.answers import answer


def system(**parts: str | tuple[str, int]) -> str:
    """Return the answer of a server of the usual kind."""
    usual: dict[str, str | tuple[str, int]] = {
        "id": "0",
        "os": 'NAME="Ubuntu"\nVERSION_ID="22.04"\nID=ubuntu\n# a comment\nPRETTY_NAME="Ubuntu 22.04.5 LTS"',
        "kernel": "Linux 6.8.0-1 x86_64",
        "clock": "1795876515",
        "memory": "MemTotal=1056460000\nMemAvailable=1000000000",
        "free": "1900000000000 120000000",
        "ports": 'LISTEN 0 4096 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=700,fd=3))\nLISTEN 0 128 [::1]:6379 [::]:*',
        "apt": "",
        "reboot": "",
        "synced": "yes",
        "tools": "sudo\ngit\ncurl\npython3\ndocker\nflock\nfindmnt\nss",
        "reach": "200 https://huggingface.co\n000 http://node2.gonka.ai:8000/v1",
    }
    return answer(**usual | parts)


def test_a_usual_server() -> None:
    """All that it says."""
    facts = read_system(system())
    assert (facts.distribution, facts.release, facts.machine) == ("ubuntu", "22.04", "x86_64")
    assert facts.memory_bytes == 1056460000 * 1024
    assert facts.listeners is not None
    first, second = facts.listeners
    assert (first.port, first.program, first.pid, first.is_loopback) == (22, "sshd", 700, False)
    assert (second.port, second.program, second.is_loopback) == (6379, "", True)
    assert dict(facts.reached) == {
        "https://huggingface.co": 200,
        "http://node2.gonka.ai:8000/v1": 0,
    }
    assert (facts.apt_pid, facts.is_apt_broken, facts.needs_reboot, facts.is_clock_synced) == (
        None,
        False,
        False,
        True,
    )


def test_a_server_in_trouble() -> None:
    """Locked, interrupted, without ss, with a disk that counts no inodes."""
    facts = read_system(
        system(
            apt="pid=4711\nbroken=1",
            reboot="reboot",
            ports=("", 127),
            synced="",
            free="1 -",
            id="1000",
        )
    )
    assert (facts.apt_pid, facts.is_apt_broken, facts.needs_reboot) == (4711, True, True)
    assert (facts.listeners, facts.is_clock_synced, facts.is_root) == (None, None, False)
    assert facts.free_inodes > 1_000_000


@pytest.mark.parametrize(
    "parts",
    [
        {"id": ("", 1)},
        {"clock": "now"},
        {"memory": "MemTotal=1"},
        {"free": "much"},
        {"ports": "State Recv-Q"},
        {"reach": "https://x"},
        {"apt": "pid=x"},
    ],
)
def test_what_is_not_understood_is_an_error(parts: dict[str, str | tuple[str, int]]) -> None:
    """Nothing is made up."""
    with pytest.raises(UnexpectedAnswer):
        read_system(system(**parts))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_this_machine(tmp_path: Path) -> None:
    """The script's own words are understood; a server that is not there is not reached."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        argv = system_facts(str(tmp_path / "not" / "yet"), [url]).argv()
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120)
    facts = read_system(done.stdout)
    assert facts.kernel.startswith("Linux ")
    assert facts.free_bytes > 0
    assert dict(facts.reached) == {url: 0}


def test_the_lock_of_the_package_manager_names_its_holder(tmp_path: Path) -> None:
    """By the kernel's list of locks, on a file of the test's in its place."""
    lock = tmp_path / "lock"
    script = system_facts("/").argv()[3].replace("/var/lib/dpkg/lock-frontend", str(lock))
    with lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        argv = ["sh", "-euc", script, "sh", "/"]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120)
    assert read_system(done.stdout).apt_pid is not None
