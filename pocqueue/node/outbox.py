"""The small node's memory across restarts: its sessions, and what the receiver has not confirmed yet.

One SQLite file of one process; `outbox.sql` has its tables. `Outbox.accept` writes a page of
batches and moves the session's cursor in one transaction, so a page that is read twice is kept once;
a message leaves by the receiver's 200, or by the operator. Whatever dies in between, the file is as before or as after
a step, never between. Every step is on disk when it returns.

Methods are quick and block; they may be called from any thread (`asyncio.to_thread`). The commands of
`pocqueue node outbox` open the file beside a node that runs.
"""

from __future__ import annotations

import sqlite3
import time
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pocqueue.errors import OutboxError
from pocqueue.node.messages import Message, NewMessage, Origin, OutboxStatus, Session, receiver_of
from pocqueue.poc.callback import MAX_RETRY_AFTER_S, encode_body
from pocqueue.web.sqlite_file import FileRole, SqliteFile

#: Name of the file in the state folder.
OUTBOX_NAME: Final = "node-outbox.sqlite3"
#: Seconds that a session without messages is remembered after its end, at least.
KEEP_ENDED_S: Final = 86_400.0
#: The same for its nonces, which are many: a chain does not ask for a round again so late.
KEEP_NONCES_S: Final = 3600.0
_SCRIPTS: Final = ("outbox.sql", *(f"outbox-{number}.sql" for number in range(2, 8)))

_ROLE = FileRole(
    name="outbox",
    owner="small node",
    if_shared="two would send everything twice",
    setting="POCQUEUE_STATE_DIR",
    if_lost="what waits in it is then not sent",
    error=OutboxError,
)


_SESSIONS = f"SELECT {', '.join(field.name for field in fields(Session))} FROM sessions WHERE "  # noqa: S608 - constants
_END = (
    "UPDATE sessions SET state = ?, ended_s = coalesce(ended_s, ?)"
    " WHERE session_id = ? AND state != 'fraud'"
)
# The index is named, as SQLite would take that of the states, which is longer.
_WAITING = "messages INDEXED BY messages_waiting WHERE state = 'waiting'"
_MESSAGES = f"SELECT {', '.join(field.name for field in fields(Message))} FROM messages"  # noqa: S608 - constants
# The first waiting message of each kind for each URL. The URLs are found one by one in the index, as DISTINCT
# would read all of it, and thousands of messages may wait for one URL.
_HEADS = f"""
WITH RECURSIVE urls (url) AS (
    SELECT min(url) FROM {_WAITING}
    UNION ALL
    SELECT (SELECT min(url) FROM {_WAITING} AND url > urls.url)
    FROM urls WHERE urls.url IS NOT NULL
)
{_MESSAGES} WHERE id IN (
    SELECT (SELECT min(id) FROM {_WAITING} AND url = urls.url AND kind = kinds.column1)
    FROM urls, (VALUES ('generated'), ('validated')) AS kinds
) ORDER BY id
"""  # noqa: S608 - made of constants


class Outbox(SqliteFile):
    """The outbox in a file, made if it is not there; a context manager.

    Every method raises OutboxError if the file is in trouble.

    Args:
        path: the file. `PATH.lock` beside it keeps other processes away from it.
        clock: Unix time.
        busy_timeout_s: seconds to wait if another program, such as a backup, holds the file.
        beside_owner: for a command, as a node may be running.

    Raises:
        OutboxError: another process has it open, it is of a newer version, corrupt, or no outbox.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        busy_timeout_s: float = 10.0,
        beside_owner: bool = False,
    ) -> None:
        self._clock = clock
        folder = resources.files(__package__)
        scripts = [folder.joinpath(name).read_text("utf-8") for name in _SCRIPTS]
        super().__init__(
            path, _ROLE, scripts, busy_timeout_s=busy_timeout_s, beside_owner=beside_owner
        )

    def open_session(self, session_id: str, origin: Origin, request: str) -> bool:
        """Note a session that begins; return False if it is there already, and stays as it is.

        Args:
            session_id: unique for ever.
            origin: where its nonces come from.
            request: JSON of whatever it takes to resume it.
        """
        opened = self._write(
            "INSERT INTO sessions (session_id, origin, state, cursor, request, created_s)"
            " VALUES (?, ?, 'open', '', ?, ?) ON CONFLICT DO NOTHING",
            *(session_id, origin, request, self._clock()),
        )
        return opened == 1

    def set_request(self, session_id: str, request: str) -> None:
        """Replace what it takes to resume a session; one that is not known is left so.

        Args:
            request: as for `open_session`.
        """
        self._write("UPDATE sessions SET request = ? WHERE session_id = ?", request, session_id)

    def open_sessions(self) -> list[Session]:
        """Return the sessions that are not over, oldest first: those to resume after a restart."""
        with self.transaction() as db:
            rows = db.execute(f"{_SESSIONS} state = 'open' ORDER BY created_s, rowid").fetchall()
        return [Session(*row) for row in rows]

    def session(self, session_id: str) -> Session | None:
        """Return a session, or None if it is not known (any more)."""
        with self.transaction() as db:
            row = db.execute(f"{_SESSIONS} session_id = ?", (session_id,)).fetchone()
        return None if row is None else Session(*row)

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
            `cursor_before`, one of the messages is there already, or the session is not open.

        Raises:
            ValueError: a body holds what JSON has no words for.
        """
        # Before the transaction, which others wait for. With and without the slash it is one receiver, and
        # one order.
        rows = [
            (
                *(new.position, new.kind, new.url.rstrip("/"), encode_body(new.body)),
                *(len(new.nonces), new.merges, new.is_signed),
            )
            for new in messages
        ]
        kept = [
            array("q", new.nonces).tobytes() if new.kind == "generated" else None
            for new in messages
        ]
        generated = [len(new.nonces) for new in messages if new.kind == "generated"]
        with self.transaction() as db:
            moved = db.execute(
                "UPDATE sessions SET cursor = ?, batches = batches + ?, nonces = nonces + ?"
                " WHERE session_id = ? AND state = 'open' AND cursor = ?",
                (cursor_after, len(generated), sum(generated), session_id, cursor_before),
            )
            if not moved.rowcount:
                return False
            try:
                for row, nonces in zip(rows, kept, strict=True):
                    added = db.execute(
                        "INSERT INTO messages"
                        " (session_id, created_s, position, kind, url, body, nonces, merges, is_signed)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (session_id, self._clock(), *row),
                    )
                    if nonces is not None:
                        new_row = (added.lastrowid, session_id, nonces)
                        db.execute("INSERT INTO kept VALUES (?, ?, ?)", new_row)
            except sqlite3.IntegrityError:
                db.rollback()
                return False
        return True

    def nonces_kept(self, is_of_round: Callable[[str], bool]) -> set[int]:
        """Return the nonces of a round's sessions that were accepted, and are not held.

        Args:
            is_of_round: says of a session's request whether it is for the round.
        """
        found: set[int] = set()
        with self.transaction() as db:
            sessions = db.execute("SELECT session_id, request FROM sessions")
            for session_id, request in sessions.fetchall():
                if is_of_round(request):
                    pages = db.execute(
                        "SELECT nonces FROM kept WHERE session_id = ?", (session_id,)
                    )
                    for [nonces] in pages:
                        found.update(array("q", nonces))
        return found

    def add_check(self, session_id: str, *, sampled: int, invalid: int) -> None:
        """Add to what was recomputed of a session, and to what of it was wrong."""
        self._write(
            "UPDATE sessions SET sampled = sampled + ?, invalid = invalid + ? WHERE session_id = ?",
            *(sampled, invalid, session_id),
        )

    def close_session(self, session_id: str) -> None:
        """Note that a session is over; one that was fraud stays so. Its messages are still sent."""
        self._write(_END, "closed", self._clock(), session_id)

    def hold(self, session_id: str) -> int:
        """Send nothing more of a session, which was fraud; return how many messages are held by it."""
        with self.transaction() as db:
            db.execute(_END, ("fraud", self._clock(), session_id))
            # What is never sent may go out when another search of the round finds it.
            db.execute(
                "DELETE FROM kept WHERE message_id IN"
                " (SELECT id FROM messages WHERE session_id = ? AND state IN ('waiting', 'refused'))",
                (session_id,),
            )
            held = db.execute(
                "UPDATE messages SET state = 'held'"
                " WHERE session_id = ? AND state IN ('waiting', 'refused')",
                (session_id,),
            )
            return held.rowcount

    def forget(self) -> None:
        """Forget sessions that ended a day ago and have no messages: a request may hold a token.

        The nonces of all sessions that ended an hour ago are forgotten too.
        """
        self._write(
            "DELETE FROM kept WHERE session_id IN (SELECT session_id FROM sessions WHERE ended_s < ?)",
            self._clock() - KEEP_NONCES_S,
        )
        forgotten = self._write(
            "DELETE FROM sessions WHERE ended_s < ? AND NOT EXISTS"
            " (SELECT 1 FROM messages WHERE messages.session_id = sessions.session_id)",
            self._clock() - KEEP_ENDED_S,
        )
        if forgotten:
            self.empty_log()

    def heads(self) -> list[Message]:
        """Return the first waiting message of each kind for each URL, oldest first, due or not.

        The others of that kind wait behind it, so that a receiver gets them in order.
        """
        with self.transaction() as db:
            return [Message(*row) for row in db.execute(_HEADS)]

    def together(self, head: Message, max_bytes: int, max_messages: int) -> list[Message]:
        """Return what may go out as one with a first waiting message: that one, and those behind it.

        Args:
            head: of `heads`.
            max_bytes: of all bodies; the first one counts whatever its size.
            max_messages: at most so many.
        """
        found = [head]
        if not head.merges:
            return found
        room = max_bytes - len(head.body)
        with self.transaction() as db:
            behind = db.execute(
                f"{_MESSAGES} INDEXED BY messages_waiting"
                " WHERE state = 'waiting' AND url = ? AND kind = ? AND id > ? ORDER BY id LIMIT ?",
                (head.url, head.kind, head.id, max_messages - 1),
            )
            for row in behind:
                message = Message(*row)
                room -= len(message.body)
                if room < 0 or not message.merges or message.session_id != head.session_id:
                    break
                found.append(message)
        return found

    def delivered(self, message_ids: Collection[int]) -> None:
        """Remove messages: their receiver said 200."""
        with self.transaction() as db:
            db.executemany("DELETE FROM messages WHERE id = ?", [(one,) for one in message_ids])

    def failed(self, message_id: int, error: str, next_s: float) -> None:
        """Note that an attempt failed, and the Unix time before which there is to be no other."""
        self._write(
            "UPDATE messages SET attempts = attempts + 1, error = ?, next_s = ? WHERE id = ?",
            *(error, next_s, message_id),
        )

    def refused(self, message_id: int, error: str, next_s: float = 0.0) -> None:
        """Put a message aside, so that it holds nobody back; `again` ends that for one that is not signed.

        Args:
            next_s: Unix time before which it is not tried again.
        """
        self._write(
            "UPDATE messages SET attempts = attempts + 1, refusals = refusals + 1, error = ?, next_s = ?,"
            " state = 'refused' WHERE id = ? AND state = 'waiting'",
            *(error, next_s, message_id),
        )

    def again(self, max_refusals: int) -> None:
        """Let what is not signed and was refused wait for its receiver again, each alone, once its pause is over.

        Not what was refused so often, nor what is of a session that was fraud.
        """
        now_s = self._clock()
        self._write(
            "UPDATE messages SET state = 'waiting', merges = 0"
            " WHERE state = 'refused' AND is_signed = 0 AND refusals < ?"
            # A longer pause than any began before the clock was set back.
            " AND next_s NOT BETWEEN ? AND ?"
            " AND session_id NOT IN (SELECT session_id FROM sessions WHERE state = 'fraud')",
            *(max_refusals, now_s, now_s + MAX_RETRY_AFTER_S),
        )

    def hurry(self, url: str) -> None:
        """End the pauses of batches that wait for a URL, as if they had never failed."""
        self._write(
            "UPDATE messages SET next_s = 0, attempts = 0, refusals = 0"
            " WHERE state = 'waiting' AND url = ? AND kind = 'generated' AND next_s > 0",
            url.rstrip("/"),
        )

    def counts(self) -> OutboxStatus:
        """Count the messages, and say what is wrong with them."""
        now_s = self._clock()
        with self.transaction() as db:
            by_state = dict(db.execute("SELECT state, count(*) FROM messages GROUP BY state"))
            [oldest_s] = db.execute(
                "SELECT coalesce(min(created_s), ?) FROM messages WHERE state = 'waiting'", (now_s,)
            ).fetchone()
            # What waits goes before what was refused.
            troubled = db.execute(
                "SELECT state, url, error FROM messages WHERE error != '' AND state != 'held'"
                " ORDER BY state DESC, id DESC LIMIT 1"
            ).fetchone()
        return OutboxStatus(
            **by_state,
            oldest_seconds=round(max(0.0, now_s - oldest_s), 3),
            last_error=None if troubled is None else _sentence(*troubled),
        )

    def listed(self) -> list[dict[str, Any]]:
        """Return what there is to know of each message, without body and URL, oldest first."""
        with self.transaction() as db:
            rows = db.execute(
                "SELECT id, state, kind, nonces, created_s, attempts, error, session_id, url"
                " FROM messages ORDER BY id"
            )
            names = [name for name, *_ in rows.description]
            found = [dict(zip(names, row, strict=True)) for row in rows]
        # Path and query of a URL may be secrets.
        return [one | {"receiver": receiver_of(one.pop("url"))} for one in found]

    def resend(self, ids: Collection[int]) -> int:
        """Let refused messages wait for their receiver again; return how many.

        Args:
            ids: of these; empty: all of them.

        Raises:
            OutboxError: one of them is not there, or was not refused; then nothing is changed.
        """
        change = "UPDATE messages SET state = 'waiting', attempts = 0, refusals = 0, next_s = 0, error = ''"
        return self._change(change, ids, ["refused"])

    def drop(self, ids: Collection[int]) -> int:
        """Remove messages that are never sent; return how many.

        Args:
            ids: of these, which may wait; empty: all that were refused or are held.

        Raises:
            OutboxError: one of them is not there; then nothing is changed.
        """
        states = ["waiting", "refused", "held"] if ids else ["refused", "held"]
        return self._change("DELETE FROM messages", ids, states)

    def _change(self, change: str, ids: Collection[int], states: Sequence[str]) -> int:
        """Change the messages of these ids, or all of these states; return how many."""
        with self.transaction() as db:
            found = dict(db.execute("SELECT id, state FROM messages"))
            for message_id in ids:
                if (state := found.get(message_id)) not in states:
                    raise OutboxError(
                        f"Message {message_id} is {state or 'not in the outbox'}; allowed: one that is "
                        f"{' or '.join(states)}. `pocqueue node outbox list` shows them."
                    )
            chosen = ids or [number for number, state in found.items() if state in states]
            db.executemany(f"{change} WHERE id = ?", [(number,) for number in chosen])
        return len(chosen)

    def _write(self, sql: str, *values: object) -> int:
        """Execute one statement as a transaction of its own; return how many rows it changed."""
        with self.transaction() as db:
            return db.execute(sql, values).rowcount


def _sentence(state: str, url: str, error: str) -> str:
    if state == "waiting":
        return f"Batches wait for {receiver_of(url)}: {error}."
    return f"Batches were refused by {receiver_of(url)}: {error}. `pocqueue node outbox list` shows them."
