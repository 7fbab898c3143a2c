"""Signs, keeps and sends: POST to ``{url}/generated`` or ``{url}/validated`` until it is taken.

Each URL gets its batches one at a time and in order, and so its verdicts. The two do not wait for each other, as a
chain may take each in a phase of its own; nor do different URLs. What is not signed goes out together: a post has as many
of the messages that wait for its URL as `max_post_bytes` takes.
Retryable failures are retried for ever, with growing pauses; what was refused is put aside (`pocqueue.poc.callback`
says which answers are final), for good if it is signed: the network's receivers may take later what they refuse now.

A message whose 200 is lost, by a crash between the reply and the disk, is sent again: receivers ignore
duplicates. Logs name scheme, host, port and kind only: path and query may be secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import aiohttp
from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.errors import OutboxError
from pocqueue.node.keys import SigningKey
from pocqueue.node.messages import Message, NewMessage, merged, receiver_of
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.signing import sign_body
from pocqueue.poc.backoff import MAX_REFUSALS, REFUSAL_PAUSES, Backoff
from pocqueue.poc.callback import (
    MAX_RETRY_AFTER_S,
    SIGNED_BELOW,
    UNSIGNED_BELOW,
    CallbackClient,
    Kind,
    PostOutcome,
    PostResult,
)

logger = logging.getLogger(__name__)

#: Messages of one post, at most.
MAX_TOGETHER = 1024


@dataclass(eq=False)
class Dispatcher(AsyncClosing):
    """Makes messages and delivers those of an outbox; an async context manager that ends it."""

    outbox: Outbox  #: where they wait; nothing else delivers from it
    key: SigningKey
    metrics: NodeMetrics
    _: KW_ONLY
    #: Pauses between tries; a receiver may ask for longer ones.
    backoff: Backoff = Backoff(first_s=0.25, longest_s=30.0)  # noqa: RUF009 - it is frozen
    refusal_backoff: Backoff = REFUSAL_PAUSES  #: the same for what is not signed and was refused
    request_timeout_s: float = 10.0  #: for one attempt, all of it
    #: Bytes of a body of several messages: below the mebibyte that many servers take if nobody tells them otherwise.
    max_post_bytes: int = 1_000_000
    #: That attempts under way get to end when it is stopped.
    stop_timeout_s: float = 3.0
    #: Between two tries to read or write the outbox while its disk is in trouble.
    disk_pause_s: float = 1.0
    #: Between two looks into the outbox if nobody says that there is something: commands change it too.
    look_s: float = 5.0
    forget_s: float = 3600.0  #: after which ended sessions are looked for that can be forgotten
    #: Makes what connections are made through; None: aiohttp's own.
    connector: Callable[[], aiohttp.BaseConnector] | None = None
    _forget_at: float = field(default_factory=time.monotonic, init=False)  #: monotonic
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _closing: bool = field(default=False, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)
    #: By URL and kind.
    _busy: dict[tuple[str, Kind], asyncio.Task[None]] = field(default_factory=dict, init=False)
    #: Messages of one post, by URL, where it has refused more.
    _most: dict[str, int] = field(default_factory=dict, init=False)

    def message(
        self,
        position: str,
        kind: Kind,
        url: str,
        body: Mapping[str, Any],
        nonces: Sequence[int],
        *,
        is_signed: bool,
    ) -> NewMessage:
        """Return a message with a body.

        Args:
            position: of the batch in its session; once for each kind.
            kind: of the body.
            url: callback URL.
            body: a batch or verdict; as `sign_body` takes it, if it is to be signed.
            nonces: those in it.
            is_signed: sign it; a batch that is not signed may go out with its neighbours in one body.
        """
        if not is_signed:
            merges = kind == "generated"
            return NewMessage(position, kind, url, body, nonces, merges=merges, is_signed=False)
        with self.metrics.signing.time():
            signed = sign_body(body, self.key)
        self.metrics.signed.inc()
        return NewMessage(position, kind, url, signed, nonces)

    def notify(self) -> None:
        """Look into the outbox now: there is a new message. To be called in the event loop."""
        self._wake.set()

    def start(self) -> None:
        """Begin to deliver, in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="dispatcher")

    @override
    async def close(self) -> None:
        """Start no more deliveries; what is under way gets a moment to end."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        async with CallbackClient(
            request_timeout_s=self.request_timeout_s, connector=self.connector
        ) as client:
            while not self._closing:
                # Cleared before the outbox is read: a message that comes after that wakes.
                self._wake.clear()
                try:
                    pause_s = await self._start_due(client)
                except Exception:
                    # Our own bug must not end the deliveries for good.
                    logger.exception("The outbox could not be looked into.")
                    pause_s = self.disk_pause_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause_s)
            await self._finish()

    async def _start_due(self, client: CallbackClient) -> float:
        """Start each delivery that is due, one for a URL and kind; return the seconds to the next look."""
        try:
            if time.monotonic() >= self._forget_at:
                await asyncio.to_thread(self.outbox.forget)
                self._forget_at = time.monotonic() + self.forget_s
            await asyncio.to_thread(self.outbox.again, MAX_REFUSALS)
            heads = await asyncio.to_thread(self.outbox.heads)
        except OutboxError as exc:
            logger.error("%s", exc)
            return self.disk_pause_s
        now_s = time.time()
        pauses = [self.look_s]
        for message in heads:
            line = message.url, message.kind
            if line in self._busy:
                continue
            pause = pause_left(message.next_s, now_s)
            if pause > 0:
                pauses.append(pause)
                continue
            self._busy[line] = asyncio.create_task(
                self._deliver(client, message), name=f"message-{message.id}"
            )
        return min(pauses)

    async def _deliver(self, client: CallbackClient, message: Message) -> None:
        """Make one attempt, with what may go out together with a message, and note what came of it."""
        url = message.url
        try:
            messages, body = await asyncio.to_thread(self._post_of, message)
            below = SIGNED_BELOW if message.is_signed else UNSIGNED_BELOW
            result = await client.post(url, message.kind, body, below)
            # Until it is on disk its line is busy: what was taken must not be sent again for a full disk.
            if result.outcome is PostOutcome.DELIVERED:
                await self.write(self.outbox.delivered, [one.id for one in messages])
                if message.attempts:
                    logger.info("%s: taken at try %d", _named(message), message.attempts + 1)
                else:
                    logger.debug("%s: taken, of %d", _named(message), len(messages))
                if (most := 2 * self._most.pop(url, MAX_TOGETHER)) < MAX_TOGETHER:
                    self._most[url] = most
                self.metrics.delivered.inc(len(messages))
                now_s = time.time()
                for one in messages:
                    self.metrics.delivery.observe(max(0.0, now_s - one.created_s))
            elif result.outcome is PostOutcome.RETRY:
                pause_s = max(self.backoff.pause_s(message.attempts), result.retry_after_s)
                next_s = time.time() + pause_s
                await self.write(self.outbox.failed, message.id, result.reason, next_s)
                logger.log(
                    # One warning for each outage.
                    logging.WARNING if message.attempts == 0 else logging.INFO,
                    "%s: %s; try %d follows in %.1f s",
                    *(_named(message), result.reason, message.attempts + 2, pause_s),
                )
            elif len(messages) > 1:
                # The body may be too large, or one message in it is what the receiver refuses.
                self._most[url] = len(messages) // 2
                logger.info("%s: %s; tried in parts", _named(message), result.reason)
            else:
                await self._put_aside(message, result)
        except OutboxError as exc:
            logger.error("%s", exc)
            await asyncio.sleep(self.disk_pause_s)
        finally:
            del self._busy[url, message.kind]
            self._wake.set()

    async def _put_aside(self, message: Message, result: PostResult) -> None:
        """Let others go before a message that was refused, and what is signed, or was tried often, for good."""
        next_s = time.time() + self.refusal_backoff.pause_s(message.refusals)
        await self.write(self.outbox.refused, message.id, result.reason, next_s)
        if message.is_signed or message.refusals + 1 >= MAX_REFUSALS:
            refused = "%s was refused and will not be tried again: %s"
            logger.error(refused, _named(message), result.reason)
        elif message.refusals == 0:
            logger.warning("%s was refused and is tried again: %s", _named(message), result.reason)

    def _post_of(self, head: Message) -> tuple[list[Message], str]:
        """Return what goes out now of a head and the messages that wait behind it, and as which body.

        Raises:
            OutboxError: the disk is in trouble.
        """
        most = self._most.get(head.url, MAX_TOGETHER)
        found = self.outbox.together(head, self.max_post_bytes, most)
        body, num = merged([message.body for message in found])
        return found[:num], body

    async def write(self, method: Callable[..., object], *args: object) -> None:
        """Call a method of the outbox in a thread, again and again while its disk is in trouble."""
        while True:
            try:
                await asyncio.to_thread(method, *args)
            except OutboxError as exc:
                logger.error("%s", exc)
                await asyncio.sleep(self.disk_pause_s)
            else:
                return

    async def _finish(self) -> None:
        """Let what is under way end, and cut off what takes too long; the next run sends that again."""
        if tasks := list(self._busy.values()):
            try:
                await asyncio.wait(tasks, timeout=self.stop_timeout_s)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def pause_left(next_s: float, now_s: float) -> float:
    """Return the seconds until a message may be tried; 0.0 if it may be now.

    A pause that is longer than any that is ever made began before the clock was set back, and is over.

    Args:
        next_s: Unix time before which the message is not tried.
        now_s: Unix time.
    """
    left = next_s - now_s
    return left if 0.0 < left <= MAX_RETRY_AFTER_S else 0.0


def _named(message: Message) -> str:
    where = receiver_of(message.url)
    return f"Message {message.id} ({message.kind}) of session {message.session_id} to {where}"
