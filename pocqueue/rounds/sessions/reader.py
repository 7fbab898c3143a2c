"""Reads sessions, the rounds of a delegation, for many clients many times a second.

Promises:
- A page is how the session stood at one moment: if it says that the session is over, no proof can come after
  those in the stream.
- A session whose deadline is over is over, whether a scheduler lives or not.
- Clients that keep no cursor lose no batch: the drain cursor moves only when a reply is confirmed, and only if
  it still stands where that reply began.
- Any number of clients may wait; they share a bounded number of connections.

For the event loop. What starts, stops and lists sessions is in `control.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.errors import InvalidRound, StoreReadOnly, UnknownSession
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.connection import register_scripts
from pocqueue.rounds.records import parse_spec
from pocqueue.rounds.redis_url import RedisUrl
from pocqueue.rounds.refusals import store_errors
from pocqueue.rounds.sessions.control import check_session_id, session_word
from pocqueue.rounds.spec import RoundSpec, RoundState
from pocqueue.rounds.store import KEEP_ENDED_MS, START, Keys, close_round_call

logger = logging.getLogger(__name__)

#: What stands between two batches, and between the lists of one: see lua/read_session.lua.
RECORD = "\x1e"
UNIT = "\x1f"
#: Most batches of one page, and most bytes of their nonces and values.
MAX_ENTRIES = 10_000
MAX_PAGE_BYTES = 8 << 20
#: Readers at Redis at the same time; the others wait for a moment.
MAX_READS = 32
#: Readers that wait there for proofs at the same time; the others look a few times a second.
MAX_WAITS = 64
#: A stop or an expiry ends a wait within this time.
WAIT_STEP_S = 0.5
LOOK_STEP_S = 0.25

_CURSOR = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")
_MAX_ID = 2**63


def parse_cursor(text: str) -> str:
    """Check a cursor that came from a client; empty is the start.

    Raises:
        InvalidRound: it is none.
    """
    if not text:
        return START
    found = _CURSOR.fullmatch(text)
    if found is None or any(int(part) >= _MAX_ID for part in found.groups()):
        raise InvalidRound(
            "cursor", text, "the cursor of an earlier reply, or empty for the session's first batch"
        )
    return text


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a session's proofs, and how it stood when they were read."""

    session_id: str
    spec: RoundSpec
    state: RoundState
    reason: str
    #: Whether any nonces were given to a GPU yet.
    begun: bool
    #: Batches in the stream: before this page, in it and behind it.
    total: int
    #: Where the page begins, and behind its last batch.
    before: str
    cursor: str
    #: Batches in the page.
    num_batches: int
    #: No batch is behind this page, and none will come.
    drained: bool
    #: The page's batches with RECORD between two, each its nonces, UNIT, its values.
    packed: str

    @property
    def word(self) -> str:
        """The session's status in the word that clients know."""
        return session_word(self.state, begun=self.begun)

    def batches_json(self) -> str:
        """Return the batches as a JSON list (`ProofScheme.body`); what is JSON already is not parsed."""
        if not self.num_batches:
            return "[]"
        proof = self.spec.proof
        alike = proof.body(self.spec, Proofs())
        del alike["nonces"], alike[proof.field]
        head = json.dumps(alike, separators=(",", ":"))[:-1] + ',"nonces":'
        lists = self.packed.replace(UNIT, f',"{proof.field}":').replace(RECORD, "}," + head)
        return f"[{head}{lists}}}]"


@dataclass(eq=False, repr=False)
class SessionReader(AsyncClosing):
    """Reads sessions for the requests of one process; an async context manager.

    Used from one event loop only. Whatever asks Redis raises `StoreError` if it is away.
    """

    url: str  #: of Redis, as `connection.redis_url` gives it
    _: KW_ONLY
    max_page_bytes: int = MAX_PAGE_BYTES  #: of one page's nonces and values; at least one batch
    max_waits: int = (
        MAX_WAITS  #: readers that wait in Redis at the same time; others look now and then
    )

    def __post_init__(self) -> None:
        # For other short questions to Redis in the same loop as well, so somewhat more than for readers.
        self.client = RedisUrl.parse(self.url).async_client(max_connections=2 * MAX_READS)
        self._waiters = RedisUrl.parse(self.url).async_client(max_connections=self.max_waits)
        self._turns = asyncio.Semaphore(MAX_READS)
        self._waiting = 0
        self._closing = False
        self._scripts = register_scripts(self.client)

    @override
    async def close(self) -> None:
        """Close the connections."""
        self.end_waits()
        await self._waiters.aclose()
        await self.client.aclose()

    def end_waits(self) -> None:
        """End all waits, now and later: the process is to end."""
        self._closing = True

    async def read(
        self, session_id: str, cursor: str | None = None, limit: int = MAX_ENTRIES
    ) -> Page:
        """Read the batches behind a cursor, in one round trip.

        Args:
            session_id: the session, or any other round.
            cursor: from `parse_cursor`; None: the session's drain cursor.
            limit: most batches, 1 to MAX_ENTRIES.

        Raises:
            UnknownSession: there is no such round.
        """
        check_session_id(session_id)
        page, is_due = await self._read(session_id, cursor, limit)
        if not is_due:
            return page
        # Marked in the store, so that a clock that is set back brings no late batch; then read again.
        with contextlib.suppress(StoreReadOnly):
            call = close_round_call(session_id, RoundState.EXPIRED, "", only_if_due=True)
            await self._run("close_round", *call)
        logger.info("DELEGATION session %s of node %d expired.", session_id, page.spec.node_id)
        page, _ = await self._read(session_id, cursor, limit)
        return page

    async def wait(
        self,
        session_id: str,
        cursor: str,
        timeout_s: float,
        gone: Callable[[], bool] | None = None,
    ) -> None:
        """Wait until there is a batch behind a cursor, the session is over, or the time is up.

        Args:
            cursor: of a `Page`.
            timeout_s: seconds.
            gone: asked now and then whether the client has gone away.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while not self._closing and (left_s := end - loop.time()) > 0:
            if self._waiting < self.max_waits:
                self._waiting += 1
                try:
                    if await self._block(session_id, cursor, min(left_s, WAIT_STEP_S)):
                        return
                finally:
                    self._waiting -= 1
            else:
                await asyncio.sleep(min(left_s, LOOK_STEP_S))
            if await self._is_worth_reading(session_id, cursor):
                return
            if gone is not None and gone():
                return

    async def confirm_drain(self, session_id: str, before: str, after: str) -> bool:
        """Move the drain cursor; False: it does not stand at `before` any more.

        Args:
            before: cursor that the answer began at.
            after: cursor behind its last batch.
        """
        keys = Keys.parts(session_id, "round", "drain")
        args = [before, after, uuid.uuid4().hex, KEEP_ENDED_MS]
        return bool(await self._run("confirm_drain", keys, args))

    async def ping(self) -> None:
        """Ask Redis for a sign of life."""
        async with self._turns:
            with store_errors(self.url):
                await self.client.ping()

    async def _read(self, session_id: str, cursor: str | None, limit: int) -> tuple[Page, bool]:
        """Read a page; say whether the session expired and is not yet marked so."""
        keys = Keys.parts(session_id, "round", "proofs", "drain")
        args = ["" if cursor is None else cursor, limit, self.max_page_bytes]
        reply = await self._run("read_session", keys, args)
        if not reply:
            raise UnknownSession(session_id)
        spec, word, reason, deadline_ms, next_index, now_ms, total, *rest = reply
        before, after, more, num_batches, packed = rest
        state = RoundState(word)
        is_due = state.is_active and int(now_ms) >= int(deadline_ms)
        if is_due:
            state = RoundState.EXPIRED
        page = Page(
            session_id=session_id,
            spec=parse_spec(spec),
            state=state,
            reason=reason,
            begun=next_index != "0",
            total=total,
            before=before,
            cursor=after,
            num_batches=num_batches,
            drained=not state.is_active and more == "0",
            packed=packed,
        )
        return page, is_due

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        async with self._turns:
            with store_errors(self.url):
                return await self._scripts[name](keys=keys, args=args)

    async def _block(self, session_id: str, cursor: str, timeout_s: float) -> bool:
        key = Keys.of_round(session_id, "proofs")
        with store_errors(self.url):
            reply = await self._waiters.xread(
                {key: cursor}, count=1, block=max(1, round(timeout_s * 1000))
            )
        return bool(reply)

    async def _is_worth_reading(self, session_id: str, cursor: str) -> bool:
        """Say whether there is a batch behind the cursor, or the session is over."""
        async with self._turns:
            # No transaction: a full Redis refuses those even if they only read.
            with store_errors(self.url):
                async with self.client.pipeline(transaction=False) as pipe:
                    pipe.hmget(Keys.of_round(session_id, "round"), "state", "deadline_ms")
                    pipe.time()
                    pipe.xread({Keys.of_round(session_id, "proofs"): cursor}, count=1)
                    (state, deadline_ms), time, found = await pipe.execute()
        now_ms = time[0] * 1000 + time[1] // 1000
        return bool(found) or state != RoundState.ACTIVE.value or now_ms >= int(deadline_ms)
