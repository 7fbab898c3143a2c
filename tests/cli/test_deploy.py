"""`pocqueue deploy`: conf files written and refused, a server looked at, exit codes."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pocqueue.cli import app
from pocqueue.deploy.conf import read_conf
from pocqueue.deploy.host_key import fingerprint_of
from tests.deploy.confs import PASSWORD, text
from tests.deploy.fake_programs import Fakes, fake_programs
from tests.deploy.server import serving

GIVEN = {
    "--server-ip": "203.0.113.7",
    "--ssh-user": "ubuntu",
    "--account-pubkey": "AgABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
    "--profile": "x8",
}


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    """Programs of a server that are faked."""
    with fake_programs(tmp_path / "fakes") as fakes:
        yield fakes


def pocqueue(*words: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(app, ["deploy", *map(str, words)])


def test_new_writes_a_conf_file_that_can_be_used(tmp_path: Path) -> None:
    """From options alone where there is no terminal; private, commented, and never over another."""
    options = [word for pair in GIVEN.items() for word in pair]
    done = pocqueue("new", "node-1", "--folder", tmp_path / "nodes", *options)
    assert done.exit_code == 0, done.output
    path = tmp_path / "nodes" / "node-1.conf"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    conf = read_conf(path)
    assert (conf.key_name, conf.node_config_profile) == ("node-1", "x8")
    assert conf.keyring_password is None
    assert "#VOLUME_DEVICE=/dev/vdc" in path.read_text()
    before = path.read_text()
    again = pocqueue("new", "node-1", "--folder", tmp_path / "nodes", *options)
    assert again.exit_code == 2
    assert "there already" in again.output
    assert path.read_text() == before
    wrong = pocqueue("new", "a;reboot", "--folder", tmp_path / "nodes", *options)
    assert wrong.exit_code == 2
    assert "KEY_NAME" in wrong.output
    assert [file.name for file in (tmp_path / "nodes").iterdir()] == ["node-1.conf"]


@pytest.mark.parametrize("command", ["check", "status", "run"])
def test_a_bad_conf_file_is_bad_input(command: str, tmp_path: Path) -> None:
    """Exit code 2, line and field, no password, no folder made."""
    path = tmp_path / "node1.conf"
    path.write_text(text(SERVER_IP="-oProxyCommand=touch", KEYRING_PASSWORD=f"{PASSWORD}\\\\"))
    done = pocqueue(command, path)
    assert done.exit_code == 2
    assert "line 10: SERVER_IP" in done.output
    assert "line 11: KEYRING_PASSWORD" in done.output
    assert PASSWORD not in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["node1.conf"]


def test_ctrl_c_ends_a_question(tmp_path: Path) -> None:
    """Exit code 130, without waiting for an answer; nothing was connected."""
    path = tmp_path / "node1.conf"
    path.write_text(text(KEYRING_PASSWORD=None))
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "pocqueue", "deploy", "status", str(path)]
    with subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        said = ""
        while "password of the keyring: " not in said:
            said += os.read(master, 4096).decode()
        process.send_signal(signal.SIGINT)
        try:
            while more := os.read(master, 4096):
                said += more.decode()
        except OSError:
            # The other end is closed.
            os.close(master)
        assert process.wait(300) == 130, said
    assert "run again to go on" in said
    assert "[OK]" not in said


def test_two_confs_of_one_node_are_refused(tmp_path: Path) -> None:
    """They would share a folder."""
    for name in ("a.conf", "b.conf"):
        (tmp_path / name).write_text(text())
    done = pocqueue("run", tmp_path / "a.conf", tmp_path / "b.conf")
    assert done.exit_code == 2
    assert "same KEY_NAME" in done.output


async def test_check_tells_what_is_missing(tmp_path: Path, fakes: Fakes) -> None:
    """PASS, WARN and FAIL with what to do; exit code 1 if a check fails; `--ignore` is written down."""
    async with serving(tmp_path) as server:
        server.env |= fakes.env
        path = tmp_path / "node1.conf"
        where = {"SERVER_IP": "127.0.0.1", "SSH_PORT": str(server.port), "SSH_KEY": str(server.key)}
        pin = fingerprint_of(server.host_key)
        path.write_text(text(**where, SSH_HOST_KEY=pin, NODE_CONFIG_PROFILE="x8"))
        path.chmod(0o600)
        done = await asyncio.to_thread(pocqueue, "check", path)
        assert done.exit_code == 1, done.output
        assert "[OK] SSH connection successful" in done.output
        assert "[ERROR] FAIL gpu-count: " in done.output
        assert "Nothing was changed" in done.output
        names = [
            line.split("FAIL ")[1].split(": ")[0]
            for line in done.output.splitlines()
            if "FAIL " in line
        ]
        words = [word for name in names for word in ("--ignore", name)]
        done = await asyncio.to_thread(pocqueue, "check", path, *words)
        assert done.exit_code == 0, done.output
        assert "(ignored by --ignore gpu-count)" in done.output
        assert not list((server.root).glob("state*"))
