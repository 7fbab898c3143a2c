"""Callbacks: tell a URL of valid nonces and of verdicts, in order, without making anyone wait.

``send_generated`` and ``send_validated`` put a batch into a bounded queue and return at once; one
background task delivers, retrying with growing pauses. Only HTTP 200 counts as delivered. No reply
(or 408, 425, 429, 5xx) is tried again; any other reply is final, as the same body would get it again.
Redirects are not followed: the URL was checked where it entered the system, its redirects were not.

Logs name scheme, host, port and endpoint only: user, password, path and query may be secrets.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.errors import CallbackForbidden, InvalidRound
from pocqueue.poc.data import ProofBatch, ValidatedBatch, is_valid

logger = logging.getLogger(__name__)

_random = secrets.SystemRandom()


class Delivery(Enum):
    """What became of one attempt."""

    DELIVERED = "delivered"  #: the receiver said 200
    RETRY = "retry"  #: no reply, or one that says to try again
    REFUSED = "refused"  #: the same body would be refused again


class PoCCallbackSender(AsyncClosing):
    """Delivers batches to a callback URL from the event loop it is first used in.

    Args:
        callback_url: http or https; ``/generated`` and ``/validated`` are appended to it.
        r_target: only nonces with a distance below this are sent.
        fraud_threshold: of the round; kept for the reader's use.
        queue_size: batches that wait at most; a batch that finds the queue full is dropped.
        attempts: tries per batch, the first included; >= 1.
        give_up_after_s: seconds after which a batch is not tried again.
        backoff_s: pause before the second try; doubles with each try.
        max_backoff_s: longest pause. Each pause is shortened at random by up to half, so that many
            senders do not return to a receiver in step.
        request_timeout_s: seconds for one attempt, all of it.
        flush_timeout_s: seconds that `close` gives the queue to empty.
        connector: makes what connections are made through, in the event loop of the sender, which
            closes it; None: aiohttp's own, which goes wherever the URL leads.

    Attributes:
        sent: batches delivered.
        failed: batches given up after retries.
        dropped: batches refused by the receiver, that found the queue full, that were left when the
            sender closed or that JSON cannot hold. Every batch counts in one of the three, or waits.
        forbidden: why the connector would not connect to where the URL leads; None where it did.

    Raises:
        InvalidRound: `callback_url` is no http or https URL with a host.
    """

    def __init__(
        self,
        callback_url: str,
        r_target: float,
        fraud_threshold: float,
        *,
        queue_size: int = 1000,
        attempts: int = 8,
        give_up_after_s: float = 120.0,
        backoff_s: float = 0.5,
        max_backoff_s: float = 15.0,
        request_timeout_s: float = 10.0,
        flush_timeout_s: float = 10.0,
        connector: Callable[[], aiohttp.BaseConnector] | None = None,
    ) -> None:
        assert attempts >= 1
        self.callback_url = callback_url.rstrip("/")
        self.r_target = r_target
        self.fraud_threshold = fraud_threshold
        self.sent = 0
        self.failed = 0
        self.dropped = 0
        self.forbidden: CallbackForbidden | None = None
        self._connector = connector
        self._where = without_secrets(self.callback_url)
        self._attempts = attempts
        self._give_up_after_s = give_up_after_s
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._flush_timeout_s = flush_timeout_s
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s)
        self._queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(queue_size)
        self._queue_was_full = False
        self._session: aiohttp.ClientSession | None = None
        self._delivery: asyncio.Task[None] | None = None
        self._closing = False
        #: The loop that queue, session and task live in; None until the first batch or attempt.
        self.loop: asyncio.AbstractEventLoop | None = None

    async def send_generated(self, batch: ProofBatch) -> None:
        """Queue the valid nonces of a batch for POST ``{callback_url}/generated``; none, no call."""
        valid = batch.sub_batch(self.r_target)
        if len(valid) > 0:
            self._enqueue("/generated", asdict(valid) | {"r_target": self.r_target})

    async def send_validated(self, batch: ValidatedBatch) -> None:
        """Queue a verdict for POST ``{callback_url}/validated``."""
        self._enqueue("/validated", validated_body(batch))

    async def post(self, endpoint: str, body: Mapping[str, Any]) -> Delivery:
        """Make one attempt now, past queue, retries and counters, and say what came of it.

        Args:
            endpoint: appended to the callback URL, such as ``/generated``.
            body: what to send as JSON.

        Raises:
            ValueError: the body holds NaN or an infinity, which JSON has no words for.
        """
        return await self._attempt(endpoint, _encode(body))

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
        """Take no more batches, flush for `flush_timeout_s`, drop what is left, close the session.

        May be called again, also before the first batch.
        """
        self._closing = True
        try:
            if self._delivery is not None:
                await self.flush(self._flush_timeout_s)
        finally:
            await self._abandon()

    def _enqueue(self, endpoint: str, body: Mapping[str, Any]) -> None:
        try:
            item = (endpoint, _encode(body))
        except ValueError as exc:
            self._drop(endpoint, f"JSON cannot hold it ({exc})")
            return
        if self._closing:
            self._drop(endpoint, "the sender is closed")
            return
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            self.dropped += 1
            if not self._queue_was_full:  # once per outage, not once per batch
                logger.warning(
                    "Callbacks to %s: %d wait already; dropping new ones until it catches up",
                    self._where,
                    self._queue.maxsize,
                )
            self._queue_was_full = True
            return
        self._queue_was_full = False
        if self._delivery is None:
            self.loop = asyncio.get_running_loop()
            self._delivery = self.loop.create_task(self._deliver_all(), name="poc-callbacks")

    async def _deliver_all(self) -> None:
        """Deliver what the queue holds, one at a time and in order, until cancelled."""
        while True:
            endpoint, payload = await self._queue.get()
            try:
                await self._deliver(endpoint, payload)
            except asyncio.CancelledError:
                self._drop(endpoint, "the sender was closed first")
                raise
            finally:
                self._queue.task_done()

    async def _deliver(self, endpoint: str, payload: bytes) -> None:
        """Try one payload until it is delivered, refused or given up, and count it."""
        now = asyncio.get_running_loop().time
        give_up_at = now() + self._give_up_after_s
        pause = self._backoff_s
        for attempt in range(1, self._attempts + 1):
            outcome = await self._attempt(endpoint, payload)
            if outcome is Delivery.DELIVERED:
                self.sent += 1
                return
            if outcome is Delivery.REFUSED:
                self.dropped += 1  # logged with its status where it was refused
                return
            wait = min(pause, self._max_backoff_s) * (0.5 + 0.5 * _random.random())
            if attempt == self._attempts or now() + wait > give_up_at:
                break
            await asyncio.sleep(wait)
            pause *= 2
        self.failed += 1
        logger.warning("Callback %s%s: given up after %d tries", self._where, endpoint, attempt)

    async def _attempt(self, endpoint: str, payload: bytes) -> Delivery:
        """POST a payload once. Network errors are an outcome here, not an exception."""
        session = self._open_session()
        try:
            async with session.post(
                self.callback_url + endpoint,
                data=payload,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
                timeout=self._timeout,
            ) as response:
                outcome = judge(response.status)
                reason = f"HTTP {response.status}"
        except aiohttp.InvalidURL:
            outcome, reason = Delivery.REFUSED, "no valid URL"
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            if isinstance(exc.__cause__, CallbackForbidden):
                self.forbidden = exc.__cause__
                outcome, reason = Delivery.REFUSED, str(self.forbidden)
            else:
                # The type only: some of these repeat the whole URL in their text.
                outcome, reason = Delivery.RETRY, type(exc).__name__
        if outcome is Delivery.REFUSED:
            logger.warning("Callback %s%s: refused, %s", self._where, endpoint, reason)
        elif outcome is Delivery.RETRY:
            logger.info("Callback %s%s: %s", self._where, endpoint, reason)
        return outcome

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self.loop = asyncio.get_running_loop()
            # `trust_env` stays off: a proxy of the environment would be connected to unchecked, and
            # would look names up once more.
            self._session = aiohttp.ClientSession(
                connector=None if self._connector is None else self._connector(), trust_env=False
            )
        return self._session

    async def _abandon(self) -> None:
        """Stop the delivery task, count what it leaves, close the session."""
        if self._delivery is not None:
            self._delivery.cancel()
            await asyncio.wait([self._delivery])
        while not self._queue.empty():
            endpoint, _ = self._queue.get_nowait()
            self._queue.task_done()
            self._drop(endpoint, "the sender was closed first")
        if self._session is not None:
            await self._session.close()

    def _drop(self, endpoint: str, reason: str) -> None:
        self.dropped += 1
        logger.warning("Callback %s%s: dropped, %s", self._where, endpoint, reason)


def validated_body(batch: ValidatedBatch) -> dict[str, Any]:
    """Return a verdict as it goes over the wire: in the words of both kinds of receivers.

    The fields of `ValidatedBatch`, and beside them those that vLLM's callbacks have:
    ``computed_distances``, ``received_distances`` and ``valid``, one item a nonce. Distances that
    are not finite are null.
    """
    computed, received = _finite(batch.dist), _finite(batch.received_dist)
    return asdict(batch) | {
        "dist": computed,
        "received_dist": received,
        "computed_distances": computed,
        "received_distances": received,
        "valid": [is_valid(distance, batch.r_target) for distance in batch.dist],
    }


def _finite(distances: list[float]) -> list[float | None]:
    return [distance if math.isfinite(distance) else None for distance in distances]


def judge(status: int) -> Delivery:
    """Say what an HTTP status means for a callback: only 200 is delivered; docs/protocol.md."""
    if status == 200:
        return Delivery.DELIVERED
    if status >= 500 or status in (408, 425, 429):
        return Delivery.RETRY
    return Delivery.REFUSED


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()


def without_secrets(url: str) -> str:
    """Return scheme, host and port of a URL.

    Raises:
        InvalidRound: it is no http or https URL with a host.
    """
    allowed = "a URL such as http://host:port/path (http or https)"
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        raise InvalidRound("callback_url", "no URL", allowed) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # The value is not repeated in full: it may carry a password.
        raise InvalidRound("callback_url", f"{parts.scheme}://{parts.hostname or ''}", allowed)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}"
