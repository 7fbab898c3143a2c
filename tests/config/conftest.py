"""A folder whose path is short enough for Unix sockets, and a Redis server in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.env_example import ROOT
from tests.support.processes import REDIS_SERVER, answers_ping, connect, running, wait_ready


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary folder; a socket's path may have 107 bytes, and pytest's tmp_path is long."""
    with tempfile.TemporaryDirectory(prefix="pq-") as folder:
        yield Path(folder)


@pytest.fixture
def redis_socket(short_dir: Path) -> Iterator[Path]:
    """The socket of a real Redis that runs config/redis.conf."""
    socket = short_dir / "redis.sock"
    config = ROOT / "config" / "redis.conf"
    overrides = ["--port", "0", "--unixsocket", str(socket), "--dir", str(short_dir)]
    command = [str(REDIS_SERVER), str(config), *overrides]
    with (
        running(command, short_dir / "redis.log") as server,
        connect(socket) as client,
    ):
        wait_ready(lambda: answers_ping(client), server)
        yield socket
