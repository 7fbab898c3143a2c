"""Sends what is in the outbox: POST to ``{url}/generated`` or ``{url}/validated`` until it is taken.

Each URL gets its letters one at a time and in order; different URLs do not wait for each other. Only
HTTP 200 counts as delivered. No reply (or 408, 425, 429, 5xx) is tried again for ever, with growing
pauses; any other reply is final, and the letter is put aside, as the same body would get it again.
Redirects are not followed.

A letter whose 200 is lost, by a crash between the reply and the disk, is sent again: receivers ignore
duplicates. Logs name scheme, host, port and kind only: path and query may be secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp

from pocqueue.errors import InvalidRound, OutboxError
from pocqueue.node.outbox import Letter, Outbox
from pocqueue.poc.sender import Delivery, judge, without_secrets

logger = logging.getLogger(__name__)

#: Longest pause that a receiver can ask for with Retry-After.
MAX_RETRY_AFTER_S = 300.0
#: Between two tries to read or write the outbox while its disk is in trouble.
DISK_PAUSE_S = 1.0

_MAX_REASON = 200
_random = secrets.SystemRandom()

_HINTS = {
    HTTPStatus.MOVED_PERMANENTLY: "redirects are not followed: give the URL that it leads to",
    HTTPStatus.FOUND: "redirects are not followed: give the URL that it leads to",
    HTTPStatus.TEMPORARY_REDIRECT: "redirects are not followed: give the URL that it leads to",
    HTTPStatus.PERMANENT_REDIRECT: "redirects are not followed: give the URL that it leads to",
    HTTPStatus.UNAUTHORIZED: "it wants a login, which this node has none for",
    HTTPStatus.FORBIDDEN: "it does not let this node in: check its address lists",
    HTTPStatus.NOT_FOUND: "nothing is there: check the path of the callback URL",
    HTTPStatus.METHOD_NOT_ALLOWED: "it takes no POST there: check the path of the callback URL",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "its limit for the size of a body is too low",
}
_OTHER_HINT = "it does not take this batch"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one POST."""

    outcome: Delivery
    #: In words, without secrets; empty where it was delivered.
    reason: str = ""
    #: Seconds that the receiver asks to be left alone for.
    retry_after_s: float = 0.0


class Postman:
    """Delivers the letters of an outbox.

    Args:
        outbox: where they wait. Nobody else delivers from it.
        session: to send with, closed by its owner; None: one of its own while it runs.
        on_delivered: called with each letter that was taken and the seconds since it was written.
        on_refused: called with each letter that will never be taken.
        backoff_s: pause after the first failure; doubles with each one.
        max_backoff_s: longest pause. Each one is shortened at random by up to half, so that many nodes
            do not return to a receiver in step.
        request_timeout_s: seconds for one attempt, all of it.
        stop_timeout_s: seconds that attempts under way get to end when it is stopped.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        session: aiohttp.ClientSession | None = None,
        on_delivered: Callable[[Letter, float], None] | None = None,
        on_refused: Callable[[Letter], None] | None = None,
        backoff_s: float = 0.25,
        max_backoff_s: float = 30.0,
        request_timeout_s: float = 10.0,
        stop_timeout_s: float = 3.0,
    ) -> None:
        self._outbox = outbox
        self._session = session
        self._on_delivered = on_delivered
        self._on_refused = on_refused
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s)
        self._stop_timeout_s = stop_timeout_s
        self._wake = asyncio.Event()
        self._busy: dict[str, asyncio.Task[None]] = {}

    def notify(self) -> None:
        """Look into the outbox now: there is a new letter. To be called in the event loop."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set. What is under way then gets a moment to end."""
        waiting_for_stop = asyncio.create_task(stop.wait(), name="postman-stop")
        waiting_for_stop.add_done_callback(lambda _: self._wake.set())
        try:
            async with self._open_session() as session:
                try:
                    while not stop.is_set():
                        # Cleared before the outbox is read: a letter that comes after that wakes.
                        self._wake.clear()
                        await self._wait(await self._start_due(session))
                finally:
                    await self._finish()
        finally:
            waiting_for_stop.cancel()

    async def _start_due(self, session: aiohttp.ClientSession) -> float | None:
        """Start a delivery for each URL that is due and idle; return the seconds to the next pause's end."""
        try:
            heads = await asyncio.to_thread(self._outbox.heads)
        except OutboxError as exc:
            logger.error("%s", exc)
            return DISK_PAUSE_S
        now_s = time.time()
        pauses = []
        for letter in heads:
            if letter.url in self._busy:
                continue
            pause = pause_left(letter.next_s, now_s)
            if pause > 0:
                pauses.append(pause)
                continue
            self._busy[letter.url] = asyncio.create_task(
                self._deliver(session, letter), name=f"letter-{letter.id}"
            )
        return min(pauses, default=None)

    async def _wait(self, timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout_s)

    async def _deliver(self, session: aiohttp.ClientSession, letter: Letter) -> None:
        """Make one attempt and note what came of it."""
        try:
            attempt = await self._attempt(session, letter)
            if attempt.outcome is Delivery.DELIVERED:
                await self._note(self._outbox.delivered, letter.id)
                self._log_delivered(letter)
                if self._on_delivered is not None:
                    self._on_delivered(letter, max(0.0, time.time() - letter.created_s))
            elif attempt.outcome is Delivery.REFUSED:
                await self._note(self._outbox.refused, letter.id, attempt.reason)
                logger.error(
                    "%s was refused and will not be tried again: %s",
                    _named(letter),
                    attempt.reason,
                )
                if self._on_refused is not None:
                    self._on_refused(letter)
            else:
                pause = max(self._backoff(letter.attempts), attempt.retry_after_s)
                await self._note(
                    self._outbox.failed, letter.id, attempt.reason, time.time() + pause
                )
                # Once for each outage is enough to be warned.
                level = logging.WARNING if letter.attempts == 0 else logging.INFO
                logger.log(
                    level,
                    "%s: %s; try %d follows in %.1f s",
                    _named(letter),
                    attempt.reason,
                    letter.attempts + 2,
                    pause,
                )
        finally:
            del self._busy[letter.url]
            self._wake.set()

    async def _note(self, method: Callable[..., None], *args: object) -> None:
        """Write what came of an attempt, however long the disk is in trouble.

        Until then the URL is busy: a letter that was taken must not be sent again for a full disk.
        """
        while True:
            try:
                await asyncio.to_thread(method, *args)
            except OutboxError as exc:
                logger.error("%s", exc)
                await asyncio.sleep(DISK_PAUSE_S)
            else:
                return

    async def _attempt(self, session: aiohttp.ClientSession, letter: Letter) -> Attempt:
        """POST a letter once. Network errors are an outcome here, not an exception."""
        try:
            async with session.post(
                f"{letter.url}/{letter.kind}",
                data=letter.body.encode(),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
                timeout=self._timeout,
            ) as response:
                outcome = judge(response.status)
                if outcome is Delivery.DELIVERED:
                    return Attempt(outcome)
                reason = await _reason(response, letter.url)
                if outcome is Delivery.REFUSED:
                    return Attempt(outcome, reason)
                asked_s = retry_after_s(response.headers.get("Retry-After"), time.time())
                return Attempt(outcome, reason, asked_s)
        except ValueError:
            # aiohttp.InvalidURL, and UnicodeError where a host name cannot be written for DNS.
            return Attempt(Delivery.REFUSED, "the callback URL is none")
        except TimeoutError:
            return Attempt(Delivery.RETRY, f"no answer within {self._timeout.total:g} s")
        except (aiohttp.ClientError, OSError) as exc:
            # The type only: some of these repeat the whole URL in their text.
            return Attempt(Delivery.RETRY, f"no answer ({type(exc).__name__})")

    def _backoff(self, attempts: int) -> float:
        # The exponent is bounded: after a day of failures the power would not fit into a float.
        pause = min(self._backoff_s * 2.0 ** min(attempts, 30), self._max_backoff_s)
        return pause * (0.5 + 0.5 * _random.random())

    def _log_delivered(self, letter: Letter) -> None:
        if letter.attempts:
            logger.info("%s: taken at try %d", _named(letter), letter.attempts + 1)
        else:
            logger.debug("%s: taken", _named(letter))

    @contextlib.asynccontextmanager
    async def _open_session(self) -> AsyncIterator[aiohttp.ClientSession]:
        if self._session is not None:
            yield self._session
            return
        # One connection for each URL is used at a time, and there are few URLs. No proxy of the
        # environment: the chain is next to the node.
        async with aiohttp.ClientSession(trust_env=False) as session:
            yield session

    async def _finish(self) -> None:
        """Let what is under way end, and cut off what takes too long; the next run sends that again."""
        tasks = list(self._busy.values())
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=self._stop_timeout_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def pause_left(next_s: float, now_s: float) -> float:
    """Return the seconds until a letter may be tried; 0.0 where it may be now.

    A pause that is longer than any that is ever made began before the clock was set back, and is over.

    Args:
        next_s: Unix time before which the letter is not tried.
        now_s: Unix time.
    """
    left = next_s - now_s
    return left if 0.0 < left <= MAX_RETRY_AFTER_S else 0.0


def retry_after_s(header: str | None, now_s: float) -> float:
    """Return the seconds that a Retry-After header asks for: 0.0 … MAX_RETRY_AFTER_S.

    Args:
        header: seconds or an HTTP date (RFC 9110, section 10.2.3); None or nonsense count as 0.
        now_s: Unix time.
    """
    if header is None:
        return 0.0
    header = header.strip()
    if header.isascii() and header.isdigit():
        asked_s = float(header[:10])
    else:
        try:
            asked_s = parsedate_to_datetime(header).timestamp() - now_s
        except (ValueError, OverflowError):
            return 0.0
    return min(max(asked_s, 0.0), MAX_RETRY_AFTER_S)


async def _reason(response: aiohttp.ClientResponse, url: str) -> str:
    """Return status, hint and the receiver's own words, where they repeat nothing of the URL."""
    hint = _HINTS.get(HTTPStatus(response.status)) if response.status in _HINTS else None
    text = f"HTTP {response.status}"
    if judge(response.status) is Delivery.REFUSED:
        text += f", {hint or _OTHER_HINT}"
    try:
        words = (await response.content.read(4 * _MAX_REASON)).decode("utf-8", "replace").strip()
    except (aiohttp.ClientError, TimeoutError, OSError):
        return text  # the status is all there is to know
    parts = urlsplit(url)
    secret = any(part in words for part in (parts.path.rstrip("/"), parts.query) if len(part) > 1)
    return text if secret or not words else f"{text}: {words[:_MAX_REASON]!r}"


def _named(letter: Letter) -> str:
    try:
        where = without_secrets(letter.url)
    except InvalidRound:
        where = "a callback URL that is none"
    return f"Letter {letter.id} ({letter.kind}) of session {letter.session_id} to {where}"
