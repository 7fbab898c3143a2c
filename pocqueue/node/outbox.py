"""The small node's memory across restarts: its sessions, and what the receiver has not confirmed yet.

One SQLite file of one process; `outbox.sql` has its tables. `Outbox.accept` writes a page of signed
batches and moves the session's cursor in one transaction, so a page that is read twice is kept once;
a message leaves by the receiver's 200 only. Whatever dies in between, the file is as before or as after
a step, never between. Every step is on disk when it returns.

Methods are quick and block; they may be called from any thread (`asyncio.to_thread`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from pocqueue.errors import NodeStateError, OutboxError
from pocqueue.poc.callback import Kind, encode_body
from pocqueue.web.sqlite_file import FileRole, SqliteFile

Origin = Literal["delegation", "queue", "engine"]
SessionState = Literal["open", "closed", "fraud"]

#: Name of the file in the state folder.
OUTBOX_NAME: Final = "node-outbox.sqlite3"
#: Seconds that a session without messages is remembered after its end, at least.
KEEP_ENDED_S: Final = 86_400.0

_ROLE = FileRole(
    name="outbox",
    owner="small node",
    if_shared="two would send everything twice",
    setting="POCQUEUE_STATE_DIR",
    if_lost="what waits in it is then not sent",
    error=OutboxError,
)


@dataclass(frozen=True, slots=True)
class Session:
    """One search whose batches go through this node."""

    session_id: str
    origin: Origin
    state: SessionState
    cursor: str  #: behind the last page that was accepted; empty at first
    request: str  #: JSON of what it takes to go on with it
    created_s: float  #: Unix time
    batches: int  #: generated ones that were accepted
    nonces: int  #: in these
    sampled: int  #: nonces that were recomputed
    invalid: int  #: and of these, those that were wrong


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A signed batch or verdict, to be sent."""

    position: str  #: of the batch in its session; once for each kind
    kind: Kind
    url: str  #: `/` and kind are appended
    body: Mapping[str, Any]  #: signed already
    nonces: int  #: in the body


@dataclass(frozen=True, slots=True)
class Message:
    """One that waits for its receiver."""

    id: int
    session_id: str
    kind: Kind
    url: str
    body: str  #: JSON, sent as it is
    created_s: float  #: Unix time
    attempts: int  #: that failed
    next_s: float  #: Unix time before which it is not tried


_SESSION_COLUMNS = ", ".join(field.name for field in fields(Session))
_MESSAGE_COLUMNS = ", ".join(field.name for field in fields(Message))
# The first waiting message of each URL. The URLs are found one by one in the index, as DISTINCT would
# read all of it, and thousands of messages may wait for one URL.
_HEADS = f"""
WITH RECURSIVE urls (url) AS (
    SELECT min(url) FROM messages WHERE state = 'waiting'
    UNION ALL
    SELECT (SELECT min(url) FROM messages WHERE state = 'waiting' AND url > urls.url)
    FROM urls WHERE urls.url IS NOT NULL
)
SELECT {_MESSAGE_COLUMNS} FROM messages WHERE id IN (
    SELECT (SELECT min(id) FROM messages WHERE state = 'waiting' AND url = urls.url) FROM urls
) ORDER BY id
"""  # noqa: S608 - made of constants


class OutboxStatus(BaseModel):
    """Signed batches that are still on disk."""

    waiting: int = Field(description="Not confirmed by their receiver yet.")
    refused: int = Field(description="Answered with a final error by their receiver.")
    held: int = Field(description="Of a session that was found to be fraud; never sent.")
    oldest_seconds: float = Field(description="Age of the oldest one that waits; 0 if none does.")


class Outbox(SqliteFile):
    """The outbox in a file, made if it is not there; a context manager.

    Every method raises OutboxError if the file is in trouble. `accept`, `add_check`, `close_session` and
    `hold` raise NodeStateError if the session is not known.

    Args:
        path: the file. `PATH.lock` beside it keeps other processes away from it.
        clock: Unix time.
        busy_timeout_s: seconds to wait if another program, such as a backup, holds the file.

    Raises:
        OutboxError: another process has it open, it is of a newer version, corrupt, or no outbox.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        busy_timeout_s: float = 10.0,
    ) -> None:
        self._clock = clock
        schema = resources.files(__package__).joinpath("outbox.sql").read_text("utf-8")
        super().__init__(path, _ROLE, [schema], busy_timeout_s=busy_timeout_s)

    def open_session(self, session_id: str, origin: Origin, request: str) -> bool:
        """Note a session that begins; return False if it is there already, and stays as it is.

        Sessions that ended a day ago and have no messages are forgotten.

        Args:
            session_id: unique for ever.
            origin: where its nonces come from.
            request: JSON of whatever it takes to resume it.
        """
        with self.transaction() as db:
            db.execute(
                "DELETE FROM sessions WHERE ended_s < ? AND NOT EXISTS"
                " (SELECT 1 FROM messages WHERE messages.session_id = sessions.session_id)",
                (self._clock() - KEEP_ENDED_S,),
            )
            opened = db.execute(
                "INSERT INTO sessions (session_id, origin, state, cursor, request, created_s)"
                " VALUES (?, ?, 'open', '', ?, ?) ON CONFLICT DO NOTHING",
                (session_id, origin, request, self._clock()),
            )
            return opened.rowcount == 1

    def set_request(self, session_id: str, request: str) -> None:
        """Replace what it takes to resume a session; one that is not known is left so.

        Args:
            request: as for `open_session`.
        """
        with self.transaction() as db:
            db.execute(
                "UPDATE sessions SET request = ? WHERE session_id = ?", (request, session_id)
            )

    def open_sessions(self) -> list[Session]:
        """Return the sessions that are not over, oldest first: those to resume after a restart."""
        with self.transaction() as db:
            rows = db.execute(
                f"SELECT {_SESSION_COLUMNS} FROM sessions WHERE state = 'open' ORDER BY created_s, rowid"  # noqa: S608 - constants
            ).fetchall()
        return [Session(*row) for row in rows]

    def session(self, session_id: str) -> Session | None:
        """Return a session, or None if it is not known (any more)."""
        with self.transaction() as db:
            return _session(db, session_id)

    def accept(
        self, session_id: str, cursor_before: str, cursor_after: str, messages: Sequence[NewMessage]
    ) -> bool:
        """Take a page of messages and move the session's cursor behind it, both or neither.

        Args:
            session_id: of an open session.
            cursor_before: where the page was read from.
            cursor_after: where the next one begins.
            messages: what is to be sent of it; may be none.

        Returns:
            False if the page is not taken and nothing was changed: the cursor is no longer
            `cursor_before`, one of the messages is there already, or the session is over.

        Raises:
            ValueError: a body holds what JSON has no words for.
        """
        with self.transaction() as db:
            session = _known(db, session_id)
            if session.state != "open" or session.cursor != cursor_before:
                return False
            now_s = self._clock()
            try:
                for new in messages:
                    # With and without the slash it is one receiver, and one order.
                    url, body = new.url.rstrip("/"), encode_body(new.body)
                    db.execute(
                        "INSERT INTO messages"
                        " (session_id, position, kind, url, body, nonces, created_s)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (session_id, new.position, new.kind, url, body, new.nonces, now_s),
                    )
            except sqlite3.IntegrityError:
                db.rollback()
                return False
            generated = [new.nonces for new in messages if new.kind == "generated"]
            db.execute(
                "UPDATE sessions SET cursor = ?, batches = batches + ?, nonces = nonces + ?"
                " WHERE session_id = ?",
                (cursor_after, len(generated), sum(generated), session_id),
            )
        return True

    def add_check(self, session_id: str, *, sampled: int, invalid: int) -> None:
        """Add to what was recomputed of a session, and to what of it was wrong."""
        with self.transaction() as db:
            _known(db, session_id)
            db.execute(
                "UPDATE sessions SET sampled = sampled + ?, invalid = invalid + ? WHERE session_id = ?",
                (sampled, invalid, session_id),
            )

    def close_session(self, session_id: str) -> None:
        """Note that a session is over; one that was fraud stays so. Its messages are still sent."""
        with self.transaction() as db:
            _end(db, session_id, "closed", self._clock())

    def hold(self, session_id: str) -> int:
        """Send nothing more of a session, which was fraud; return how many messages are held by it."""
        with self.transaction() as db:
            _end(db, session_id, "fraud", self._clock())
            held = db.execute(
                "UPDATE messages SET state = 'held' WHERE session_id = ? AND state = 'waiting'",
                (session_id,),
            )
            return held.rowcount

    def heads(self) -> list[Message]:
        """Return the first waiting message of each URL, oldest first, due or not.

        The others of a URL wait behind its first one, so that a receiver gets them in order.
        """
        with self.transaction() as db:
            return [Message(*row) for row in db.execute(_HEADS)]

    def delivered(self, message_id: int) -> None:
        """Remove a message: its receiver said 200."""
        with self.transaction() as db:
            db.execute("DELETE FROM messages WHERE id = ?", (message_id,))

    def failed(self, message_id: int, error: str, next_s: float) -> None:
        """Note that an attempt failed, and the Unix time before which there is to be no other."""
        with self.transaction() as db:
            db.execute(
                "UPDATE messages SET attempts = attempts + 1, error = ?, next_s = ? WHERE id = ?",
                (error, next_s, message_id),
            )

    def refused(self, message_id: int, error: str) -> None:
        """Put a message aside for good: the same body would be refused again."""
        with self.transaction() as db:
            db.execute(
                "UPDATE messages SET attempts = attempts + 1, error = ?, state = 'refused'"
                " WHERE id = ? AND state = 'waiting'",
                (error, message_id),
            )

    def counts(self) -> OutboxStatus:
        """Count the messages."""
        with self.transaction() as db:
            rows = db.execute("SELECT state, count(*) FROM messages GROUP BY state")
            by_state = {"waiting": 0, "refused": 0, "held": 0} | dict(rows)
            [oldest_s] = db.execute(
                "SELECT min(created_s) FROM messages WHERE state = 'waiting'"
            ).fetchone()
        age_s = 0.0 if oldest_s is None else max(0.0, self._clock() - oldest_s)
        return OutboxStatus(**by_state, oldest_seconds=round(age_s, 3))


def _session(db: sqlite3.Connection, session_id: str) -> Session | None:
    row = db.execute(
        f"SELECT {_SESSION_COLUMNS} FROM sessions WHERE session_id = ?",  # noqa: S608 - constants
        (session_id,),
    ).fetchone()
    return None if row is None else Session(*row)


def _end(db: sqlite3.Connection, session_id: str, state: SessionState, now_s: float) -> None:
    _known(db, session_id)
    db.execute(
        "UPDATE sessions SET state = ?, ended_s = coalesce(ended_s, ?)"
        " WHERE session_id = ? AND state != 'fraud'",
        (state, now_s, session_id),
    )


def _known(db: sqlite3.Connection, session_id: str) -> Session:
    session = _session(db, session_id)
    if session is None:
        raise NodeStateError(f"The outbox knows no session {session_id!r}: open it first.")
    return session
