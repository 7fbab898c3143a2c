"""`pocqueue agent` at the command line: what it needs, and its self-test as a table and as JSON."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.support.commands import pocqueue


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://host:3002", "'http://host:3002'"),
        ("host:3002", "'host:3002'"),
        ("ws://", "'ws://'"),
        ("ws://user:hunter2@host:1", "'ws://…@host:1'"),
        ("ws://host:port", "'ws://host:port'"),
        ("ws://host:65536", "'ws://host:65536'"),
        ("ws://host:0", "'ws://host:0'"),
        ("ws://[::", "'ws://[::'"),
        ("ws://a..b", "'ws://a..b'"),
    ],
)
def test_an_endpoint_is_a_websocket(tmp_path: Path, endpoint: str, shown: str) -> None:
    """One sentence without secrets, and exit code 2."""
    done = pocqueue(tmp_path, "agent", "--endpoint", endpoint)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"pocqueue: HN_ENDPOINT cannot be {shown}: allowed is ws://HOST:PORT or wss://HOST"
    )
    assert "hunter2" not in done.stderr


def test_an_agent_needs_a_server(tmp_path: Path) -> None:
    """It says where to find one."""
    done = pocqueue(tmp_path, "agent")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--endpoint ws://HOST:3002, or HN_ENDPOINT" in done.stderr


def test_a_check_is_a_table_with_remedies(tmp_path: Path) -> None:
    """What failed makes the exit code 1; here nobody listens, and there is no sandbox."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"ws://127.0.0.1:{taken.getsockname()[1]}"
        done = pocqueue(
            tmp_path, "agent", "check", "--endpoint", endpoint, HN_SANDBOX="none", COLUMNS="200"
        )
    assert done.returncode == 1, done.stderr
    assert "no connection to 127.0.0.1" in done.stdout
    assert "way: see whether the server runs" in done.stdout
    assert (
        "sandbox: The owner of this machine wants no command jobs (HN_SANDBOX=none)." in done.stdout
    )


def test_a_check_is_json_for_programs(tmp_path: Path) -> None:
    """Rows as they are sent to a server."""
    argv = ("agent", "check", "--json", "--matrix-seconds", "0")
    done = pocqueue(tmp_path, *argv, HN_SANDBOX="none")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["sandbox"]["state"] == "fail"
    assert rows["clock"]["state"] == "skip"
    assert {"driver", "memory", "disk_free", "disk_speed"} <= set(rows)
    assert done.returncode == 1
