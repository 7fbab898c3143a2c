"""Callbacks of one round, without making anyone wait: a bounded queue and one task that empties it.

`callback.py` says which answers are final.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any

from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.poc.callback import (
    Backoff,
    CallbackClient,
    Kind,
    PostOutcome,
    encode_body,
    without_secrets,
)
from pocqueue.poc.distance.data import ProofBatch, ValidatedBatch, validated_body

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class CallbackQueue(AsyncClosing):
    """Delivers bodies to a callback URL, in order, from the event loop it is first used in.

    Raises:
        InvalidRound: `callback_url` is no http or https URL with a host.
    """

    callback_url: str  #: http or https; ``/generated`` and ``/validated`` are appended to it
    _: KW_ONLY
    queue_size: int = 1000  #: batches that wait at most; one that finds the queue full is dropped
    attempts: int = 8  #: tries per batch, the first included; >= 1
    give_up_after_s: float = 120.0  #: seconds after which a batch is not tried again
    backoff_s: float = (
        0.5  #: pause before the second try; doubles with each one (`callback.Backoff`)
    )
    max_backoff_s: float = 15.0  #: longest pause between two tries
    request_timeout_s: float = 10.0  #: seconds for one attempt, all of it
    flush_timeout_s: float = 10.0  #: seconds that `close` gives the queue to empty

    sent: int = field(default=0, init=False)  #: batches delivered
    failed: int = field(default=0, init=False)  #: batches given up after retries
    #: Batches refused by the receiver, that found the queue full, that were left when the sender closed or
    #: that JSON cannot hold. Every batch counts in one of the three, or waits.
    dropped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        assert self.attempts >= 1
        self._name = without_secrets(self.callback_url)
        self._backoff = Backoff(self.backoff_s, self.max_backoff_s)
        self._client = CallbackClient(request_timeout_s=self.request_timeout_s)
        self._queue: asyncio.Queue[tuple[Kind, str]] = asyncio.Queue(self.queue_size)
        self._was_full = False
        self._delivery: asyncio.Task[None] | None = None
        self._closing = False

    async def flush(self, timeout_s: float) -> bool:
        """Wait until every queued batch is sent, failed or dropped.

        Args:
            timeout_s: seconds to wait at most.

        Returns:
            Whether nothing waits any more.
        """
        try:
            await asyncio.wait_for(self._queue.join(), timeout_s)
        except TimeoutError:
            return False
        return True

    @override
    async def close(self) -> None:
        """Take no more batches, flush for `flush_timeout_s`, drop what is left, close the connections.

        May be called again, also before the first batch.
        """
        self._closing = True
        try:
            await self.flush(self.flush_timeout_s)
        finally:
            if self._delivery is not None:
                self._delivery.cancel()
                await asyncio.wait([self._delivery])
            while not self._queue.empty():
                kind, _ = self._queue.get_nowait()
                self._queue.task_done()
                self._drop(kind, "the sender was closed first")
            await self._client.close()

    def send(self, kind: Kind, body: Mapping[str, Any]) -> None:
        """Queue a body for POST ``{callback_url}/{kind}``; from the event loop."""
        try:
            item = (kind, encode_body(body))
        except ValueError as exc:
            self._drop(kind, f"JSON cannot hold it ({exc})")
            return
        if self._closing:
            self._drop(kind, "the sender is closed")
            return
        was_full, self._was_full = self._was_full, self._queue.full()
        if self._was_full:
            self.dropped += 1
            if not was_full:  # once per outage, not once per batch
                logger.warning(
                    "Callbacks to %s: %d wait already; dropping new ones until it catches up",
                    self._name,
                    self.queue_size,
                )
            return
        self._queue.put_nowait(item)
        if self._delivery is None:
            self._delivery = asyncio.create_task(self._deliver_all(), name="poc-callbacks")

    async def _deliver_all(self) -> None:
        """Deliver what the queue holds, one at a time and in order, until cancelled."""
        while True:
            kind, body = await self._queue.get()
            try:
                await self._deliver(kind, body)
            except asyncio.CancelledError:
                self._drop(kind, "the sender was closed first")
                raise
            finally:
                self._queue.task_done()

    async def _deliver(self, kind: Kind, body: str) -> None:
        """Try one body until it is delivered, refused or given up, and count it."""
        give_up_at = time.monotonic() + self.give_up_after_s
        for attempt in range(self.attempts):
            result = await self._client.post(self.callback_url, kind, body)
            if result.outcome is PostOutcome.DELIVERED:
                self.sent += 1
                return
            if result.outcome is not PostOutcome.RETRY:
                self._drop(kind, f"refused, {result.reason}")
                return
            logger.info("Callback %s/%s: %s", self._name, kind, result.reason)
            pause = self._backoff.pause_s(attempt)
            if attempt + 1 == self.attempts or time.monotonic() + pause > give_up_at:
                break
            await asyncio.sleep(pause)
        self.failed += 1
        logger.warning("Callback %s/%s: given up after %d tries", self._name, kind, attempt + 1)

    def _drop(self, kind: Kind, reason: str) -> None:
        self.dropped += 1
        logger.warning("Callback %s/%s: dropped, %s", self._name, kind, reason)


@dataclass(eq=False, repr=False)
class PoCCallbackSender(CallbackQueue):
    """A callback queue for the batches of one round, with the reference implementation's interface."""

    r_target: float  #: only nonces with a distance below this are sent
    fraud_threshold: float  #: not used; verdicts carry their own

    async def send_generated(self, batch: ProofBatch) -> None:
        """Queue the valid nonces of a batch for POST ``{callback_url}/generated``; none, no call."""
        valid = batch.sub_batch(self.r_target)
        if len(valid) > 0:
            self.send("generated", asdict(valid) | {"r_target": self.r_target})

    async def send_validated(self, batch: ValidatedBatch) -> None:
        """Queue a verdict for POST ``{callback_url}/validated``."""
        self.send("validated", validated_body(batch))
