"""Follows one search to its end: reads its pages, signs what is to be signed, keeps it on disk to be sent.

Promises:
- A page counts once: its messages and the cursor behind it go to disk in one step, or not at all.
- An outage of the source is waited out, for as long as the source keeps what it found.
- What comes from a big node is checked before it is kept: a batch of another round, a nonce of
  another node, a value that no valid nonce has end the session as fraud. A nonce that came before is
  left out (`page_check.py`). With an engine a random sample is recomputed (`spot_check.py`), and a page is
  held until its sample is judged, or until what is found is soon not taken any more.
- After fraud nothing more of the session is sent, messages that wait included.
- A big node that ends a session before its window is over, and was not told to, is lost.
- If the disk is in trouble, the follower waits with the page in memory; so it does when this process
  ends, if the page is one that a big node without cursors hands out only once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, ParamSpec, TypeVar

from pocqueue.errors import DelegationError, NodeError, OutboxError, PocqueueError
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.messages import NewMessage
from pocqueue.node.page_check import Fraud, PageCheck
from pocqueue.node.pauses import Pauses
from pocqueue.node.round import SearchRequest
from pocqueue.node.sources import Page, Source, is_final
from pocqueue.node.spot_check import SpotCheck
from pocqueue.poc.proofs import Proofs
from pocqueue.words import counted

logger = logging.getLogger(__name__)

#: Most nonces of one message. Known receivers take thousands.
NONCES_PER_MESSAGE = 1000
#: What to look at if a source ends a search before its time. An engine of our own has searched all there is.
_EARLY = {
    "delegation": "DELEGATION_WINDOW_SECONDS is to be the same on both nodes",
    "queue": "was it stopped by hand, or Redis's clock set?",
}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class Follower:
    """One search and the task that follows it."""

    source: Source  #: where the nonces come from
    request: SearchRequest  #: what was asked for, and when its window closes
    outgoing: Dispatcher  #: where batches go
    _: KW_ONLY
    spot_check: SpotCheck | None  #: recomputes samples; None: nothing can be recomputed here
    #: Nonces of the round that were kept already; they are left out, and new ones are added.
    seen: InitVar[set[int] | None] = None
    #: Writes to disk that the source cheated, and how.
    note_fraud: Callable[[str], None] | None = None
    #: Called once if the source ended the search before its time, or for fraud.
    on_lost: Callable[[Follower], Awaitable[None]] | None = None
    pauses: Pauses = Pauses()  # noqa: RUF009 - it is frozen
    #: What is wrong now or was at the end; None while all is well.
    error: str | None = field(default=None, init=False)
    over: bool = field(default=False, init=False)  #: nothing more will come
    #: The source will give nothing more, although the round was not over.
    lost: bool = field(default=False, init=False)
    fraud: str | None = field(default=None, init=False)  #: why the session is fraud, if it is
    batches: int = field(default=0, init=False)  #: read so far
    nonces: int = field(default=0, init=False)  #: in these
    #: Monotonic time of the last answer.
    heard_at: float = field(default_factory=time.monotonic, init=False)
    _closing: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _stopping: asyncio.Task[None] | None = field(default=None, init=False)
    _has_read_all: bool = field(default=False, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)
    _checking: asyncio.Task[None] | None = field(default=None, init=False)

    def __post_init__(self, seen: set[int] | None) -> None:
        self.round = self.request.round
        #: What its pages have to pass; knows the nonces that were kept.
        self.check = PageCheck(self.round, not self.is_remote, set() if seen is None else seen)

    @property
    def tag(self) -> str:
        """Name the session in log lines; the word is what operators search for."""
        word = "DELEGATION" if self.is_remote else "LOCAL"
        return f"{word} session {self.source.session_id} node {self.round.node_id}:"

    @property
    def is_remote(self) -> bool:
        """Whether a big node searches."""
        return self.source.origin == "delegation"

    @property
    def lag_s(self) -> float | None:
        """Seconds since the big node was last heard; None if none is asked any more."""
        return time.monotonic() - self.heard_at if self.is_remote and not self.over else None

    @property
    def is_searching(self) -> bool:
        """Whether the source is still searching, as far as is known: not stopped, and not over."""
        return self._stopping is None and not self.over

    @property
    def is_finished(self) -> bool:
        """Whether all was searched that there is to search in its window."""
        if self.is_searching or self.lost or self.fraud is not None:
            return False
        # One that was stopped has its window as well; one that ended by itself may say so a moment before.
        return self.request.left_s <= 0 or (self._stopping is None and self.error is None)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do, and no connection left open."""
        return self._task is not None and self._task.done()

    def start(self) -> None:
        """Begin to follow the search."""
        self._task = asyncio.create_task(self._run(), name=f"session {self.source.session_id}")

    def stop(self) -> None:
        """Have the source end the search; what it found is still read."""
        if self._stopping is None and not self.over:
            self._stopping = asyncio.create_task(self._stop_source())

    async def stop_arrived(self, timeout_s: float) -> None:
        """Wait until a stop has reached the source, if there was one, for at most so many seconds."""
        if self._stopping is not None:
            await asyncio.wait([self._stopping], timeout=timeout_s)

    async def close(self) -> None:
        """Stop following; the search itself goes on, and another run of this program may follow it."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self.pauses.close_s)
        for task in (self._task, self._stopping):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self.source.close()

    async def _run(self) -> None:
        try:
            await self._follow()
        except Fraud as exc:
            await self._end_as_fraud(str(exc))
        except DelegationError as exc:
            await self._give_up(exc)
        except Exception as exc:
            # Our own bug. The session stays open on disk: the next run of this program goes on with it.
            logger.exception("%s is not followed any more.", self.tag)
            self.error = f"The session is not followed any more: {exc or type(exc).__name__}"
        finally:
            self.over = True
            if self._checking is not None:
                self._checking.cancel()
        if (self.lost or self.fraud is not None) and self.on_lost is not None:
            await self.on_lost(self)
        if self._stopping is not None and not self._closing.is_set():
            await self._wait(self._stopping)
        if not self._closing.is_set():
            await self.source.close()

    async def _follow(self) -> None:
        outbox, session_id = self.outgoing.outbox, self.source.session_id
        session = await self._on_disk(outbox.session, session_id)
        assert session is not None
        cursor, self.batches, self.nonces = session.cursor, session.batches, session.nonces
        tries = 0
        while not self._closing.is_set():
            try:
                page = await self._unless_closing(self.source.read(cursor))
            except PocqueueError as exc:
                self._note_trouble(exc)
                if self._is_lost(exc):
                    await self._give_up(exc)
                    return
                await self._wait(timeout_s=self.pauses.after(exc, tries))
                tries += 1
                continue
            if page is None:
                return
            self._note_answer()
            tries = 0
            # In threads: a page may be large, and a node has other things to do.
            batches = await asyncio.to_thread(self._new_batches, page)
            try:
                is_judged = await self._is_judged(page, batches)
            except (Fraud, DelegationError):
                # Not kept: another search of the round may find them.
                self.check.forget(batches)
                raise
            if not is_judged:
                return
            messages = await asyncio.to_thread(self._messages, page.cursor, batches)
            if not await self._on_disk(outbox.accept, session_id, cursor, page.cursor, messages):
                self.check.forget(batches)
                session = await self._on_disk(outbox.session, session_id)
                if session is None or session.state != "open":
                    return
                if session.cursor == cursor:
                    # One of its messages is on disk already.
                    again = f"The source gives cursor {page.cursor[:40]!r} for two pages"
                    await self._give_up(DelegationError(again, is_final=True))
                    return
                logger.warning("%s a page was read twice; kept once.", self.tag)
                cursor = session.cursor
                continue
            self.outgoing.notify()
            cursor = page.cursor
            self._count(batches)
            if page.over:
                await self._end(page)
                return

    async def _is_judged(self, page: Page, batches: list[Proofs]) -> bool:
        """Hold a page until its sample is judged or it has to go; False: this process ends first.

        Raises:
            Fraud: the sample shows it.
            DelegationError: the session is of another engine than it has to be.
        """
        if self.spot_check is None:
            return True
        self._checking = asyncio.create_task(
            self.spot_check.check(batches, after=self._checking), name="spot check"
        )
        # It takes its time to be sent.
        timeout_s = self.pauses.judging_s(self.request.taken_s)
        await self._wait(self._checking, timeout_s=timeout_s)
        if self._checking.done():
            self._checking.result()
            return True
        if self._closing.is_set():
            # The next run reads it again, if it can be had again.
            return page.is_only_copy
        logger.warning(
            "%s the time is over before %s could be judged: sent.",
            *(self.tag, counted(sum(map(len, batches)), "nonce")),
        )
        return True

    async def _end(self, page: Page) -> None:
        """Close the session after its last page, once all samples are judged.

        Raises:
            Fraud, DelegationError: as `_is_judged` does.
        """
        self._has_read_all = True
        if self._checking is not None:
            await self._wait(self._checking)
            if not self._checking.done():
                return
            self._checking.result()
        left_s = self.request.left_s
        is_early = self._stopping is None and left_s > self.pauses.early_s
        if is_early and (hint := _EARLY.get(self.source.origin)):
            early = (
                f"Session over ({page.status!r}) {left_s:.0f} s before the end of its window, although "
                f"nobody here stopped it: {hint}"
            )
            await self._give_up(NodeError(early))
        else:
            await self._close_session(f"over ({page.status})")

    async def _unless_closing(self, coming: Coroutine[Any, Any, T]) -> T | None:
        """Return what comes; None if this process ends, unless it is a page that is handed out once."""
        task = asyncio.ensure_future(coming)
        try:
            await self._wait(task)
            if self._closing.is_set() and not task.done() and not self.source.must_end:
                return None
            return await task
        finally:
            task.cancel()
            # Its result was used above, or is not wanted any more.
            await asyncio.gather(task, return_exceptions=True)

    def _is_lost(self, trouble: Exception) -> bool:
        return is_final(trouble) or self.request.is_forgotten

    def _note_trouble(self, exc: PocqueueError) -> None:
        if self.error is None:
            logger.warning("%s waits: %s", self.tag, exc)
        self.error = str(exc)
        if isinstance(exc, DelegationError):
            self.outgoing.metrics.delegation_errors.inc()

    def _note_answer(self) -> None:
        if self.error is not None:
            logger.info("%s goes on.", self.tag)
        self.error = None
        self.heard_at = time.monotonic()

    def _new_batches(self, page: Page) -> list[Proofs]:
        """Return what of a page is to be kept.

        Raises:
            Fraud: something in it cannot be right.
        """
        batches = self.check.keep_new(page)
        received = sum(len(batch.proofs) for batch in page.batches)
        if repeated := received - sum(map(len, batches)):
            logger.info("%s %s came twice; kept once.", self.tag, counted(repeated, "nonce"))
        return batches

    def _messages(self, position: str, batches: list[Proofs]) -> list[NewMessage]:
        """Return a page's batches, signed if they are to be, in pieces that a receiver takes."""
        found, url, proof = Proofs.joined(batches), self.round.url, self.round.proof
        messages = []
        for start in range(0, len(found), NONCES_PER_MESSAGE):
            part = slice(start, start + NONCES_PER_MESSAGE)
            piece = Proofs(found.nonces[part], found.values[part])
            messages.append(
                self.outgoing.message(
                    *(f"{position}/{start}", "generated", url),
                    *(proof.signed_body(self.round, piece), piece.nonces),
                    is_signed=proof.is_signed,
                )
            )
        return messages

    def _count(self, batches: list[Proofs]) -> None:
        num_nonces = sum(map(len, batches))
        self.batches += len(batches)
        self.nonces += num_nonces
        metrics = self.outgoing.metrics
        metrics.batches.labels(self.source.origin).inc(len(batches))
        metrics.nonces.labels(self.source.origin).inc(num_nonces)

    async def _close_session(self, why: str, level: int = logging.INFO) -> None:
        await self._on_disk(self.outgoing.outbox.close_session, self.source.session_id)
        found = f"{counted(self.batches, 'batch')} with {counted(self.nonces, self.round.proof.kept_noun)}"
        logger.log(level, "%s %s; %s.", self.tag, why, found)

    async def _give_up(self, trouble: Exception) -> None:
        await self._close_session(f"given up: {trouble}", logging.ERROR)
        self.error = str(trouble)
        self.lost = True
        # A big node that goes on would answer a repeated request with this session.
        self.stop()

    async def _end_as_fraud(self, reason: str) -> None:
        self.fraud = reason
        self.outgoing.metrics.fraud.inc()
        held = await self._on_disk(self.outgoing.outbox.hold, self.source.session_id)
        if self.note_fraud is not None:
            await self._on_disk(self.note_fraud, reason)
        self.error = reason
        logger.error(
            "%s FRAUD: %s. The session is stopped, of what it found %s held back.",
            *(self.tag, reason, counted(held, "message")),
        )
        # Not waited for: a cheat that does not answer must not hold up local work.
        self.stop()

    async def _stop_source(self) -> None:
        """Tell the source to stop, again and again while it is away and may still be searching."""
        tries = 0
        # A source that was read to its end has stopped.
        while not self._has_read_all or self.fraud is not None:
            try:
                await self.source.stop()
            except PocqueueError as exc:
                if self._is_lost(exc):
                    logger.warning("%s cannot be stopped: %s", self.tag, exc)
                    return
                if tries == 0:
                    logger.warning("%s is not stopped yet: %s", self.tag, exc)
                await asyncio.sleep(self.pauses.after(exc, tries))
                tries += 1
            else:
                return

    async def _wait(self, *futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
        """Wait until one of the futures is done, the time is over or this process ends."""
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait(
                {closing, *futures}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            closing.cancel()

    async def _on_disk(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the outbox in a thread, again and again while its disk is in trouble."""
        in_trouble = False
        while True:
            try:
                done = await asyncio.to_thread(method, *args, **kwargs)
            except OutboxError as exc:
                if not in_trouble:
                    logger.error("%s waits: %s", self.tag, exc)
                in_trouble = True
                self.error = str(exc)
                await asyncio.sleep(self.pauses.disk_s)
            else:
                if in_trouble:
                    logger.info("%s goes on.", self.tag)
                    self.error = None
                return done
