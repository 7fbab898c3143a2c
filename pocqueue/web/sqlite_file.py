"""A SQLite file of one process: its lock, its version, its upgrades, and what can be wrong with it.

The owner of a database declares its `FileRole` and a list of upgrades, which are SQL scripts: the first
makes the tables, the next one changes what the first has made, and so on. A file's version is the number
of upgrades that it has had (SQLite's ``user_version``); opening it applies the ones that it lacks, each
in a transaction of its own. An upgrade that was released is never edited.

Connections are durable: WAL, ``synchronous = FULL``, foreign keys on. What a transaction wrote is on disk
when its block ends, unless it was told not to wait for that.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.errors import PocqueueError
from pocqueue.files import FileLock


@dataclass(frozen=True)
class FileRole:
    """What a database file is to its owner, in the words of error messages."""

    name: str  #: of the file, as in ``The outbox PATH cannot be used``
    owner: str  #: the process that has it open, such as ``small node``
    if_shared: (
        str  #: what two owners at a time would do, such as ``two would send everything twice``
    )
    setting: str  #: the variable that puts the file elsewhere, such as ``POCQUEUE_STATE_DIR``
    if_lost: str  #: what is lost with the file, such as ``what waits in it is then not sent``
    error: type[PocqueueError]  #: class of what is raised


class SqliteFile(Closing):
    """An open database file, made if it is not there; a context manager. May be used from any thread.

    Args:
        path: the file. `PATH.lock` beside it keeps other processes away.
        role: what it is, for messages.
        upgrades: SQL scripts; number i (from 1 on) takes version i - 1 to version i.
        busy_timeout_s: seconds to wait if another program, such as a backup, holds the file.
        beside_owner: for a command: no lock is asked for, as the owner may be running, and no damage is
            looked for.

    Raises:
        PocqueueError: of the role's class: another process has it open, it is of a newer version, damaged
            or another program's, or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        role: FileRole,
        upgrades: Sequence[str],
        *,
        busy_timeout_s: float = 10.0,
        beside_owner: bool = False,
    ) -> None:
        self.path = path
        self._role = role
        self._mutex = threading.Lock()
        self._lock = None if beside_owner else self._locked()
        try:
            with self._errors():
                self._db = self._open(upgrades, busy_timeout_s)
        except BaseException:
            self._unlock()
            raise

    @override
    def close(self) -> None:
        """Close the file and give its lock back; may be called again."""
        with self._mutex:
            self._db.close()
            self._unlock()

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold the connection within the block, which is one transaction: all of it or nothing.

        Args:
            durable: it is on disk when the block ends. False: it outlives this process, but a machine that fails
                may lose it with what was written after it, up to the next durable one. Some ms less.

        Raises:
            PocqueueError: of the role's class: the file cannot be read or written.
        """
        with self._mutex, self._errors(), self._synchronous(durable):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.rollback()
                raise
            self._db.commit()

    def empty_log(self) -> None:
        """Write the log into the file and empty it: what was deleted is on the disk no more then.

        Raises:
            PocqueueError: of the role's class: the file cannot be written.
        """
        with self._mutex, self._errors():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextlib.contextmanager
    def _synchronous(self, durable: bool) -> Iterator[None]:
        if durable:
            yield
            return
        self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._db.execute("PRAGMA synchronous = FULL")

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _locked(self) -> FileLock:
        role = self._role
        # A file of its own: SQLite's locks are of another kind, and are lost when anything in this process
        # opens and closes the database file.
        try:
            return FileLock(self.path.with_name(f"{self.path.name}.lock"), wait=False)
        except BlockingIOError:
            raise self._error(
                f"is in use by another {role.owner}, and {role.if_shared}: stop that one, or set "
                f"{role.setting} to another folder."
            ) from None
        except OSError as exc:
            raise self._error(
                f"cannot be opened ({exc.strerror}): mend its folder, or set {role.setting} to another."
            ) from None

    def _open(self, upgrades: Sequence[str], busy_timeout_s: float) -> sqlite3.Connection:
        # Made here, so that it never has another mode; SQLite gives its -wal and -shm files the same. There
        # may be tokens in it.
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.path.chmod(0o600)
        except OSError as exc:
            raise self._error(
                f"cannot be opened ({exc.strerror}): it has to be a file that the user of the "
                f"{self._role.owner} may write to."
            ) from None
        # Transactions are begun by hand (isolation_level None); the mutex keeps threads apart.
        db = sqlite3.connect(
            self.path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            # What is deleted is overwritten: it may be a token.
            db.execute("PRAGMA secure_delete = ON")
            # All of the file is read for it, which the owner has done.
            [verdict] = db.execute("PRAGMA quick_check(1)").fetchone() if self._lock else ["ok"]
            if verdict != "ok":
                raise sqlite3.DatabaseError(f"database disk image is malformed ({verdict})")
            self._upgrade(db, upgrades)
            # Only now: an upgrade may have to make a table anew that others refer to.
            db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            db.close()
            raise
        return db

    def _upgrade(self, db: sqlite3.Connection, upgrades: Sequence[str]) -> None:
        """Apply the upgrades that the file lacks."""
        [version] = db.execute("PRAGMA user_version").fetchone()
        [num_tables] = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if version > len(upgrades):
            raise self._error(
                f"is of version {version}, and this pocqueue knows versions up to {len(upgrades)}: use the "
                "newer pocqueue that wrote it."
            )
        if version == 0 and num_tables > 0:
            raise self._role.error(
                f"{self.path} is the database of another program: name another file."
            )
        for number, script in enumerate(upgrades[version:], version + 1):
            # Where it fails the connection is closed, and the file is as before this upgrade.
            db.executescript(
                f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA user_version = {number};\nCOMMIT;"
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite raises within the block into the role's error."""
        try:
            yield
        except sqlite3.Error as exc:
            what = str(exc).rstrip(".")
            raise self._error(f"cannot be used: {what}. {self._advice(what)}") from exc

    def _error(self, text: str) -> PocqueueError:
        return self._role.error(f"The {self._role.name} {self.path} {text}")

    def _advice(self, what: str) -> str:
        if "malformed" in what or "not a database" in what:
            return (
                f"The file is damaged: with the {self._role.owner} stopped, move it and its -wal file away "
                f"({self._role.if_lost}), or restore them together from a backup."
            )
        if "full" in what:
            return "Make room on its disk; nothing is lost until then."
        return "Check its disk and the rights of its folder."
