"""The database behind the store: its connections, its transactions, and what can be wrong with it.

SQLite (a file of the state folder) or PostgreSQL, with the same promises. `write` is one transaction: all of its
block or nothing, on disk when it ends. `read` is one moment of the database, whatever others write meanwhile. On
SQLite one transaction writes at a time; on PostgreSQL rows are locked (`with_for_update`, which SQLite leaves out),
always in the order wallet or job, node, attempt, and ``FOR NO KEY UPDATE``, which lets others refer to them. A commit
waits for the disk; `group` lets transactions share one.

What passes by itself (a server that restarts, a lock, a full disk) is `DatabaseUnavailable`: nothing was written,
or all of it was and the answer was lost, so that whatever the store does is safe to do again. What a person has to
mend is `DatabaseUnfit`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    exc,
    inspect,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.hosts.errors import DatabaseUnavailable, DatabaseUnfit
from pocqueue.hosts.migrations import HEAD

logger = logging.getLogger(__name__)

#: Seconds for which a service waits for a lock that somebody else holds.
BUSY_TIMEOUT_S = 5.0
#: Name of the SQLite file in the state folder.
FILE_NAME = "hosts.sqlite3"
#: Classes and codes of PostgreSQL's errors that pass by themselves
#: (https://www.postgresql.org/docs/current/errcodes-appendix.html): connection, resources, operator's
#: intervention, cannot now; serialization, deadlock, lock, read-only after a failover.
_PASSING = ("08", "53", "57", "40001", "40P01", "55P03", "25006")
#: SQLite's own words for the same.
_SQLITE_PASSING = ("locked", "busy", "full", "disk i/o error", "interrupted")


class Database(Closing):
    """An open database; a context manager. May be used from any thread.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql+psycopg://USER:PASSWORD@HOST/NAME``.
        busy_timeout_s: seconds to wait for a lock that somebody else holds.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        try:
            self._url = make_url(url)
        except (exc.ArgumentError, ValueError):
            raise _unreadable() from None
        self._busy_timeout_s = busy_timeout_s
        self._mutex = threading.RLock()
        self._group = _Group()
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._insert = sqlite.insert if self.is_sqlite else postgresql.insert
        self.engine = self._sqlite_engine() if self.is_sqlite else self._postgresql_engine()
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._reader = self.engine.execution_options(**level)
        self._writer = self.engine.execution_options(is_writer=True)

    @property
    def name(self) -> str:
        """What to call it in messages; no password is in it."""
        if self.is_sqlite:
            return str(self._url.database)
        port = f":{self._url.port}" if self._url.port else ""
        return f"postgresql://{self._url.host or ''}{port}/{self._url.database or ''}"

    @override
    def close(self) -> None:
        """Close its connections; may be called again."""
        self.engine.dispose()

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Hold a connection within the block, which is one transaction: all of it or nothing.

        Raises:
            DatabaseUnavailable: it cannot be written for now; try again.
            DatabaseUnfit: somebody has to mend it.
        """
        group = self._group
        if group.stack is None:
            with self._transaction() as connection:
                yield connection
            return
        if group.connection is None:
            group.connection = group.stack.enter_context(self._transaction())
        with self._errors(), self._part_of(group.connection):
            yield group.connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Hold a connection within the block, in which all statements see one moment.

        Raises:
            DatabaseUnavailable: it cannot be read for now; try again.
            DatabaseUnfit: somebody has to mend it.
        """
        if self._group.connection is not None:
            with self._errors():
                yield self._group.connection
            return
        with self._errors(), self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def group(self) -> Iterator[None]:
        """Let the transactions that this thread makes within the block share one commit, at its end.

        Each of them is all or nothing as ever, and what comes later in the block sees it. But none is kept before the
        block has ended well: until then nobody may be told of it. On PostgreSQL each has its own: it brings the commits
        of its connections together itself, and one that holds many nodes at a time would wait for others that do.

        Raises:
            DatabaseUnavailable: none of them is kept, or the answer was lost; also if an error of this kind leaves
                the block, which is to let it.
            DatabaseUnfit: in the same way.
        """
        if not self.is_sqlite:
            yield
            return
        with contextlib.ExitStack() as stack:
            self._group.stack = stack
            try:
                yield
            finally:
                self._group.stack = self._group.connection = None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        # SQLite lets whoever looks at the right moment go first; threads that wait for a mutex are all served.
        mutex = self._mutex if self.is_sqlite else contextlib.nullcontext()
        with mutex, self._errors(), self._writer.begin() as connection:
            yield connection
            self._must_go_on(connection)

    @contextlib.contextmanager
    def _part_of(self, connection: Connection) -> Iterator[None]:
        """Make the block a part of a transaction that can be undone by itself.

        Raises:
            DatabaseUnavailable: the whole transaction was undone, so that nothing else of it is kept either.
        """
        self._must_go_on(connection)
        # Not SQLAlchemy's, which puts each one's statements together anew. One within another may have the same name.
        connection.exec_driver_sql("SAVEPOINT part")
        try:
            yield
        except BaseException as error:
            try:
                connection.exec_driver_sql("ROLLBACK TO part")
                connection.exec_driver_sql("RELEASE part")
            except exc.DBAPIError:
                # A full disk, say, has undone the whole transaction: there is no such part any more.
                if isinstance(error, exc.DBAPIError) and self._explained(error) is not None:
                    raise error from None
                if isinstance(error, DatabaseUnavailable | DatabaseUnfit):
                    raise error from None
                raise self._undone() from error
            raise
        connection.exec_driver_sql("RELEASE part")

    def _must_go_on(self, connection: Connection) -> None:
        """See that SQLite has not undone a transaction by itself; its driver would then commit nothing in silence.

        Raises:
            DatabaseUnavailable: it has.
        """
        if self.is_sqlite:
            driver: Any = connection.connection.driver_connection
            if not driver.in_transaction:
                raise self._undone()

    def _undone(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"The hosts database {self.name} has undone what was written, as when its disk or the memory is full. "
            "Try again."
        )

    def insert(self, table: Any) -> Any:
        """Return an INSERT of the database's own, which can have ON CONFLICT."""
        return self._insert(table)

    def upsert(self, table: Table) -> Any:
        """Return an INSERT that takes whole rows, and puts each in the place of the one with its key."""
        return _upsert(self._insert, table)

    def one_at_a_time(self, connection: Connection) -> None:
        """Let no other transaction that asks for this go on before this one ends. On SQLite none does anyway."""
        if not self.is_sqlite:
            # Any number will do: it is that of this lock.
            connection.execute(text("SELECT pg_advisory_xact_lock(3001)"))

    def check(self) -> None:
        """See that its tables are those of this version; a SQLite file gets them by itself.

        Raises:
            DatabaseUnavailable: it does not answer.
            DatabaseUnfit: it has older tables (PostgreSQL), newer ones, or another program's.
        """
        version = self._version()
        if version == HEAD:
            return
        if self.is_sqlite:
            self.migrate()
            return
        if version is not None and version > HEAD:
            raise self._newer(version)
        raise DatabaseUnfit(
            f"The hosts database {self.name} has "
            f"{'no tables yet' if version is None else f'tables of version {version}'}, and this pocqueue "
            f"needs version {HEAD}: run `pocqueue hosts migrate` once, with the services stopped."
        )

    def migrate(self) -> str | None:
        """Bring the tables to this version, in one transaction; return the version that they had.

        Two at a time are one after the other.

        Raises:
            DatabaseUnavailable: it does not answer.
            DatabaseUnfit: its tables are newer, or another program's.
        """
        from pocqueue.hosts.migrations import upgrade

        with self.write() as connection:
            self.one_at_a_time(connection)
            version = _version_of(connection)
            if version is None and inspect(connection).get_table_names():
                raise DatabaseUnfit(
                    f"{self.name} is the database of another program: name another one in "
                    "POCQUEUE_HOSTS_DATABASE_URL."
                )
            if version is not None and version > HEAD:
                raise self._newer(version)
            if version != HEAD:
                upgrade(connection)
        return version

    def wait(self, check: Callable[[], None], every_s: float = 1.0) -> None:
        """Call `check` until the database answers: for a service that starts before its database."""
        said = False
        while True:
            try:
                return check()
            except DatabaseUnavailable as error:
                if not said:
                    logger.warning("%s It is waited for.", error)
                    said = True
            time.sleep(every_s)

    def _newer(self, version: str) -> DatabaseUnfit:
        return DatabaseUnfit(
            f"The hosts database {self.name} has tables of version {version}, and this pocqueue knows "
            f"versions up to {HEAD}: use the newer pocqueue that wrote them."
        )

    def _version(self) -> str | None:
        with self.read() as connection:
            return _version_of(connection)

    def _sqlite_engine(self) -> Engine:
        path = self._url.database
        if not path or path == ":memory:":
            raise DatabaseUnfit(
                "POCQUEUE_HOSTS_DATABASE_URL names no file; allowed: such as sqlite:////var/lib/hosts.sqlite3."
            )
        # Made here, so that it never has another mode; SQLite gives its -wal and -shm files the same.
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise DatabaseUnfit(
                f"The hosts database {path} cannot be opened ({error.strerror}): mend its folder, or name "
                "another file in POCQUEUE_HOSTS_DATABASE_URL."
            ) from None
        engine = create_engine(self._url, connect_args={"timeout": self._busy_timeout_s})

        @event.listens_for(engine, "connect")
        def set_up(connection: Any, _record: object) -> None:
            # Transactions are begun below, not by the driver.
            connection.isolation_level = None
            cursor = connection.cursor()
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # One that reads first and writes then would fail, not wait, if another has written meanwhile.
            writes = connection.get_execution_options().get("is_writer", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    def _postgresql_engine(self) -> Engine:
        # A connection that the server has closed meanwhile is found before it is used (pre-ping).
        lock_ms = round(1000 * self._busy_timeout_s)
        try:
            return create_engine(
                self._url,
                pool_pre_ping=True,
                pool_timeout=10,
                connect_args={
                    "connect_timeout": 5,
                    "application_name": "pocqueue hosts",
                    "options": f"-c lock_timeout={lock_ms} -c statement_timeout=30000"
                    " -c idle_in_transaction_session_timeout=60000",
                },
            )
        except ImportError:
            raise DatabaseUnfit(
                "PostgreSQL takes the package psycopg: pip install 'pocqueue[postgres]'."
            ) from None
        except exc.ArgumentError:
            raise _unreadable() from None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what is wrong with the database itself into errors of ours."""
        try:
            yield
        except exc.TimeoutError:
            raise DatabaseUnavailable(
                f"The hosts database {self.name} is busy: all connections of this process are in use. Try again."
            ) from None
        except exc.DBAPIError as error:
            if (found := self._explained(error)) is None:
                raise
            raise found from None

    def _explained(self, error: exc.DBAPIError) -> DatabaseUnavailable | DatabaseUnfit | None:
        """Return what to say of an error; None: it is a mistake of ours."""
        what = (str(error.orig).strip().splitlines() or [""])[0].rstrip(".")
        code = getattr(error.orig, "sqlstate", None) or ""
        head = f"The hosts database {self.name} cannot be used: {what}."
        if self.is_sqlite:
            low = what.lower()
            if any(words in low for words in _SQLITE_PASSING):
                todo = "Make room on its disk" if "full" in low else "Another program holds it"
                return DatabaseUnavailable(f"{head} {todo}; nothing is lost until then. Try again.")
            if isinstance(error, exc.IntegrityError) or "no such" in low or "syntax" in low:
                return None
            return DatabaseUnfit(
                f"{head} Check its disk and the rights of its folder; if it is damaged, restore it with its "
                "-wal file from a backup."
            )
        if error.connection_invalidated or code.startswith(_PASSING):
            return DatabaseUnavailable(f"{head} Try again.")
        if code.startswith(("28", "3D", "42501", "42P01")):
            return DatabaseUnfit(
                f"{head} Check POCQUEUE_HOSTS_DATABASE_URL, the rights of its user, and that "
                "`pocqueue hosts migrate` was run."
            )
        if isinstance(error, exc.OperationalError | exc.InterfaceError):
            # No code: the server was not reached. Its own words for a wrong password have none either.
            if "authentication failed" in what or "does not exist" in what or "no pg_hba" in what:
                return DatabaseUnfit(f"{head} Check POCQUEUE_HOSTS_DATABASE_URL.")
            return DatabaseUnavailable(f"{head} Is the server running? Then try again.")
        return None


class _Group(threading.local):
    """Of a thread within `Database.group`."""

    stack: contextlib.ExitStack | None = None  #: None: it is within none
    connection: Connection | None = None  #: None: nothing was written yet


@cache
def _upsert(insert: Callable[[Table], Any], table: Table) -> Any:
    new = insert(table)
    values = {
        column.name: new.excluded[column.name] for column in table.c if not column.primary_key
    }
    return new.on_conflict_do_update(index_elements=list(table.primary_key), set_=values)


def _version_of(connection: Connection) -> str | None:
    """Return the version of the tables; None: there are none of ours."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _unreadable() -> DatabaseUnfit:
    # The URL may hold a password.
    return DatabaseUnfit(
        "POCQUEUE_HOSTS_DATABASE_URL cannot be read; allowed: sqlite:///PATH or "
        "postgresql+psycopg://USER:PASSWORD@HOST:5432/NAME, with % and @ in a password as %25 and %40."
    )


def file_url(path: Path) -> str:
    """Return the URL of a SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()
