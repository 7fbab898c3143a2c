"""config/redis.conf is taken by a real server and gives what the design relies on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import redis
import yaml

from tests.support.env_example import ROOT
from tests.support.processes import REDIS_SERVER, answers_ping, connect, running, wait_ready

EXPECTED = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
    "maxmemory": str(2 * 1024**3),
    "protected-mode": "yes",
    "save": "",
    "timeout": "0",
}


def test_every_line_is_explained() -> None:
    """Each directive, or the group it is in, has a comment above it."""
    lines = (ROOT / "config" / "redis.conf").read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith("#"):
            assert before, f"{line!r} stands without a comment above it"


@pytest.mark.parametrize("name", EXPECTED)
def test_file_states(name: str) -> None:
    """The file says it itself and does not lean on a default of some version."""
    stated = dict(
        line.split(" ", 1)
        for line in (ROOT / "config" / "redis.conf").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert stated[name].strip('"') == {**EXPECTED, "maxmemory": "2gb"}[name]


def test_server_runs_with_it(redis_socket: Path) -> None:
    """A Redis 6.2, the oldest we support, starts with the file and reports its values."""
    with connect(redis_socket) as client:
        assert {name: client.config_get(name)[name] for name in EXPECTED} == EXPECTED


def test_compose_command_starts_it_with_a_password(short_dir: Path) -> None:
    """The script of compose.yaml's redis service, run here: password asked for, settings in force."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["redis"]
    shell, flags, script = service["command"]
    socket = short_dir / "redis.sock"
    # The paths and the port are the container's; everything else runs as it stands.
    script = (
        script.replace("$$", "$")
        .replace("/usr/local/etc/redis/redis.conf", str(ROOT / "config" / "redis.conf"))
        .replace("dir /data", f"dir {short_dir}\nport 0\nunixsocket {socket}")
        .replace("exec redis-server", f"exec {REDIS_SERVER}")
    )
    sh = shutil.which(shell)
    assert sh is not None
    password = "made-up.Test_password~1"
    env = {**os.environ, "REDIS_PASSWORD": password}
    with (
        running([sh, flags, script], short_dir / "redis.log", env=env) as server,
        connect(socket, password) as client,
        connect(socket) as stranger,
    ):
        wait_ready(lambda: answers_ping(client), server)
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("bind")["bind"] == "* -::*"
        command_line = Path(f"/proc/{server.pid}/cmdline")
        if command_line.exists():
            assert password.encode() not in command_line.read_bytes()
