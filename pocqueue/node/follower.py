"""Takes one search to its end: reads its pages, signs what is valid, and keeps it on disk to be sent.

Promises:
- A page counts once: its messages and the cursor behind it go to disk in one step, or not at all.
- An outage of the source is waited out, for as long as the source keeps what it found.
- What comes from a big node is checked before it is signed: a batch of another round, a nonce of
  another node, a distance that is not below r_target end the session as fraud. A nonce that came
  before is left out.
- A disk in trouble is waited for with the page at hand, and so is, where this process ends, a reply
  that a big node without cursors gives only once.
- With an engine a random sample is recomputed beside that (`spot_check.py`). After fraud nothing more
  of the session is sent, messages that wait included.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, ParamSpec, TypeVar

from pocqueue.errors import DelegationError, OutboxError, PocqueueError
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.keys import SigningKey
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import NewMessage, Outbox
from pocqueue.node.round import NodeRound
from pocqueue.node.signing import sign_body
from pocqueue.node.sources import Page, Source, is_final, is_refused
from pocqueue.node.spot_check import SpotCheck
from pocqueue.poc.nonces import MAX_NONCE, split_range
from pocqueue.poc.proofs import Proofs, ReceivedBatch

logger = logging.getLogger(__name__)

#: Most nonces of one message. Known receivers take thousands.
NONCES_PER_MESSAGE = 1000
#: Between two tries while the source is away: first, and at most.
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0
#: Where it refuses our token: too many wrong ones, and it would not listen to the right one either.
REFUSED_PAUSE_S = 20.0
#: Between two tries to write to the outbox.
DISK_PAUSE_S = 1.0
#: Seconds that a step under way gets when this process ends.
CLOSE_S = 5.0

P = ParamSpec("P")
T = TypeVar("T")


class Fraud(PocqueueError):
    """What the big node sent cannot be true."""


class Follower:
    """One search and the task that follows it.

    Args:
        source: where the nonces come from.
        node_round: what was asked for.
        outbox: on disk.
        key: signs every message.
        dispatcher: told of new messages.
        metrics: counts.
        spot_check: recomputes samples; None: nothing can be recomputed here.
        give_up_s: Unix time after which an absent source is not waited for any more.
        seen: nonces of the same round that were kept already, by another search; they are left out.
        on_lost: called once where the source ended the search before its time, or for fraud.

    Attributes:
        error: what is wrong now or was at the end; None while all is well.
        over: nothing more will come.
        lost: the source will give nothing more, although the round was not over.
        status: how the source says it stands.
        fraud: why the session is fraud; None where it is not.
        batches: read so far; and nonces in them.
        seen: nonces that were kept, of this search and of those before it in its round.
        heard_at: monotonic time of the last answer.
    """

    def __init__(
        self,
        source: Source,
        node_round: NodeRound,
        *,
        outbox: Outbox,
        key: SigningKey,
        dispatcher: Dispatcher,
        metrics: NodeMetrics,
        spot_check: SpotCheck | None,
        give_up_s: float,
        seen: Collection[int] = (),
        on_lost: Callable[[Follower], Awaitable[None]] | None = None,
    ) -> None:
        self.source = source
        self.round = node_round
        self.error: str | None = None
        self.over = False
        self.lost = False
        self.status = ""
        self.fraud: str | None = None
        self.batches = 0
        self.nonces = 0
        self.heard_at = time.monotonic()
        self.spot_check = spot_check
        self._outbox = outbox
        self._key = key
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._give_up_s = give_up_s
        self._on_lost = on_lost
        self.seen = set(seen)
        self._closing = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._read_all = False
        self.task: asyncio.Task[None] | None = None

    @property
    def tag(self) -> str:
        """Name the session in log lines; the word is what operators search for."""
        word = "DELEGATION" if self.source.origin == "delegation" else "LOCAL"
        return f"{word} session {self.source.session_id} node {self.round.node_id}:"

    @property
    def is_searching(self) -> bool:
        """Whether the source searches on, as far as is known: nobody stopped it, and it is not over."""
        return self._stopping is None and not self.over

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do, and no connection left open."""
        return self.task is not None and self.task.done()

    def start(self) -> None:
        """Begin to follow the search."""
        self.task = asyncio.create_task(self._run(), name=f"session {self.source.session_id}")

    def stop(self) -> None:
        """Have the source end the search; what it found is still read."""
        if self._stopping is None and not self.over:
            self._stopping = asyncio.create_task(self._stop_source())

    async def stop_arrived(self, timeout_s: float) -> None:
        """Wait until the source knows of a stop, if there was one, though not for longer than that."""
        if self._stopping is not None:
            await asyncio.wait([self._stopping], timeout=timeout_s)

    async def close(self) -> None:
        """Stop following; the search itself goes on, and so may another run of this program."""
        self._closing.set()
        if self.task is not None:
            await asyncio.wait([self.task], timeout=CLOSE_S)
        for task in (self.task, self._stopping):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self.source.close()

    async def _run(self) -> None:
        checking = None
        if self.spot_check is not None:
            checking = asyncio.create_task(self.spot_check.run())
        try:
            await self._follow(checking)
        except Fraud as exc:
            await self._end_as_fraud(str(exc))
        except Exception as exc:
            # Our own bug. The session stays open on disk: the next run of this program goes on with it.
            logger.exception("%s is not followed any more.", self.tag)
            self.error = f"The session is not followed any more: {exc or type(exc).__name__}"
        finally:
            self.over = True
            if checking is not None:
                checking.cancel()
        if (self.lost or self.fraud is not None) and self._on_lost is not None:
            await self._on_lost(self)
        if self._stopping is not None and not self._closing.is_set():
            await self._or_closing(self._stopping)
        if not self._closing.is_set():
            await self.source.close()

    async def _follow(self, checking: asyncio.Task[str | None] | None) -> None:
        session = await self._on_disk(self._outbox.session, self.source.session_id)
        assert session is not None
        cursor, self.batches, self.nonces = session.cursor, session.batches, session.nonces
        pause = FIRST_PAUSE_S
        while not self._closing.is_set():
            page, trouble = await self._read(cursor, checking)
            if trouble is not None:
                if is_final(trouble) or time.time() > self._give_up_s:
                    await self._give_up(trouble)
                    return
                await self._sleep(REFUSED_PAUSE_S if is_refused(trouble) else pause)
                pause = min(2 * pause, MAX_PAUSE_S)
                continue
            if page is None:
                return
            pause = FIRST_PAUSE_S
            batches = self._checked(page)
            messages = self._messages(page.cursor, batches)
            if not await self._on_disk(
                self._outbox.accept, self.source.session_id, cursor, page.cursor, messages
            ):
                self.seen.difference_update(n for batch in batches for n in batch.nonces)
                session = await self._on_disk(self._outbox.session, self.source.session_id)
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
            self._dispatcher.notify()
            cursor, self.status = page.cursor, page.status
            self._count(batches)
            if self.spot_check is not None:
                self.spot_check.offer(batches)
            if page.over:
                self._read_all = True
                if checking is not None and self.spot_check is not None:
                    self.spot_check.end()
                    await self._or_closing(checking)
                    if not checking.done():
                        return
                    if reason := checking.result():
                        raise Fraud(reason)
                await self._close(f"over ({page.status})")
                return

    async def _read(
        self, cursor: str, checking: asyncio.Task[str | None] | None
    ) -> tuple[Page | None, Exception | None]:
        """Read a page, or return what went wrong; neither where this process ends.

        Raises:
            Fraud: the sample was found to be, meanwhile.
        """
        reading = asyncio.ensure_future(self.source.read(cursor))
        try:
            await self._or_closing(reading, checking)
            if checking is not None and checking.done() and (reason := checking.result()):
                raise Fraud(reason)
            if self._closing.is_set() and not reading.done() and not self.source.must_end:
                return None, None
            page = await reading
        except PocqueueError as exc:
            if isinstance(exc, Fraud):
                raise
            if self.error is None:
                logger.warning("%s waits: %s", self.tag, exc)
            self.error = str(exc)
            if isinstance(exc, DelegationError):
                self._metrics.delegation_errors.inc()
            return None, exc
        finally:
            reading.cancel()
            # Whatever it ended with was seen, or does not matter any more.
            await asyncio.gather(reading, return_exceptions=True)
        if self.error is not None:
            logger.info("%s goes on.", self.tag)
            self.error = None
        self.heard_at = time.monotonic()
        return page, None

    async def _or_closing(
        self, future: asyncio.Future[Any], also: asyncio.Future[Any] | None = None
    ) -> None:
        """Wait until this is done, or this process ends, or the other is done, if it was not before."""
        if future.done():
            return
        closing = asyncio.ensure_future(self._closing.wait())
        waited: set[asyncio.Future[Any]] = {future, closing}
        if also is not None and not also.done():
            waited.add(also)
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()

    async def _sleep(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._closing.wait()
        except TimeoutError:
            return

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
                await asyncio.sleep(DISK_PAUSE_S)
            else:
                if in_trouble:
                    logger.info("%s goes on.", self.tag)
                    self.error = None
                return done

    def _checked(self, page: Page) -> list[Proofs]:
        """Return the page's batches without nonces that came before.

        Raises:
            Fraud: one of them cannot be right.
        """
        kept_batches = []
        for batch in page.batches:
            if self.source.origin == "delegation":
                self._check(batch)
            kept = Proofs()
            for nonce, value in batch.proofs:
                if nonce not in self.seen:
                    self.seen.add(nonce)
                    kept.nonces.append(nonce)
                    kept.values.append(value)
            if repeated := len(batch.proofs) - len(kept):
                logger.info("%s %d nonces came twice; kept once.", self.tag, repeated)
            if kept.nonces:
                kept_batches.append(kept)
        return kept_batches

    def _check(self, batch: ReceivedBatch) -> None:
        ours, proof = self.round, self.round.proof
        if (batch.public_key, batch.block_hash, batch.block_height) != (
            ours.public_key,
            ours.block_hash,
            ours.block_height,
        ):
            raise Fraud(f"a batch is of another round (block {batch.block_hash[:80]!r})")
        if len(batch.proofs.nonces) != len(batch.proofs.values):
            raise Fraud(f"a batch has not one {proof.noun} for each nonce")
        for nonce, value in batch.proofs:
            if not 0 <= nonce <= MAX_NONCE or nonce % ours.node_count != ours.node_id:
                raise Fraud(
                    f"nonce {str(nonce)[:40]} is not one of node {ours.node_id} of {ours.node_count}"
                )
            if reason := proof.refusal(value):
                raise Fraud(f"nonce {nonce} {reason}")

    def _messages(self, position: str, batches: list[Proofs]) -> list[NewMessage]:
        found = Proofs.joined(batches)
        messages = []
        for start, stop in split_range(0, len(found), NONCES_PER_MESSAGE):
            piece = Proofs(found.nonces[start:stop], found.values[start:stop])
            with self._metrics.signing.time():
                body = sign_body(self.round.proof.signed_body(self.round, piece), self._key)
            self._metrics.signed.inc()
            messages.append(
                NewMessage(
                    position=f"{position}/{start}",
                    kind="generated",
                    url=self.round.url,
                    body=body,
                    nonces=len(piece),
                )
            )
        return messages

    def _count(self, batches: list[Proofs]) -> None:
        num_nonces = sum(len(batch) for batch in batches)
        self.batches += len(batches)
        self.nonces += num_nonces
        self._metrics.batches.labels(self.source.origin).inc(len(batches))
        self._metrics.nonces.labels(self.source.origin).inc(num_nonces)

    async def _close(self, why: str, level: int = logging.INFO) -> None:
        await self._on_disk(self._outbox.close_session, self.source.session_id)
        logger.log(
            level,
            "%s %s; %d batches with %d valid nonces.",
            self.tag,
            why,
            self.batches,
            self.nonces,
        )

    async def _give_up(self, trouble: Exception) -> None:
        await self._close(f"given up: {trouble}", logging.ERROR)
        self.error = str(trouble)
        self.lost = True

    async def _end_as_fraud(self, reason: str) -> None:
        self.fraud = reason
        self._metrics.fraud.inc()
        held = await self._on_disk(self._outbox.hold, self.source.session_id)
        self.error = reason
        logger.error(
            "%s FRAUD: %s. The session is stopped, %d signed batches of it are held back.",
            self.tag,
            reason,
            held,
        )
        # Not waited for: a cheat that does not answer must not hold up local work.
        self.stop()

    async def _stop_source(self) -> None:
        """Tell the source, again and again while it is away and the round could still run."""
        pause = FIRST_PAUSE_S
        # What was read to its end has stopped.
        while not self._read_all or self.fraud is not None:
            try:
                await self.source.stop()
            except PocqueueError as exc:
                if is_final(exc) or time.time() > self._give_up_s:
                    logger.warning("%s cannot be stopped: %s", self.tag, exc)
                    return
                if pause == FIRST_PAUSE_S:
                    logger.warning("%s is not stopped yet: %s", self.tag, exc)
                await asyncio.sleep(REFUSED_PAUSE_S if is_refused(exc) else pause)
                pause = min(2 * pause, MAX_PAUSE_S)
            else:
                return
