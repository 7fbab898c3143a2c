"""Callbacks of one round, without making anyone wait: what is found meanwhile goes out together.

Promises:
- Sending returns at once. One task delivers, in order, a post at a time.
- Valid nonces that wait are merged: a post holds as many as `max_post_bytes` takes. After a failure half
  as many are tried, as the receiver may be slow or have a lower limit; after a success twice as many.
- Once the queue closes, no pause is longer than a tenth of the time that is left.
- A post is begun `interval_s` after the one before, or after there was something to send again; at once when the
  queue closes, and where one post cannot hold all that waits.
- Nothing is given up while the queue is open, nor while `close` still waits, but for what the receiver
  refuses for good (`callback.py` says which answers those are), `max_refusals` times in a row, and what is above
  `max_waiting`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any

from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.poc.backoff import PAUSES, REFUSAL_PAUSES, Backoff
from pocqueue.poc.callback import (
    MAX_RETRY_AFTER_S,
    CallbackClient,
    Kind,
    PostOutcome,
    encode_body,
    without_secrets,
)
from pocqueue.poc.distance.data import ProofBatch, ValidatedBatch, validated_body
from pocqueue.words import counted

logger = logging.getLogger(__name__)

#: Once the queue closes, the least that a pause is cut to.
_LEAST_PAUSE_S = 0.1
#: Nonces of a post that is not made smaller when it is refused: those of a batch or two.
_FEW = 64
#: The list of a body that has an object for each nonce.
_ROWS = "artifacts"


@dataclass(eq=False, slots=True)
class _Waiting:
    """A body that waits; valid nonces of later batches are added to it."""

    kind: Kind
    fields: dict[str, Any]  #: what is the same for all its nonces
    lists: dict[str, Any]  #: by name, arrays where it can be, of one item a nonce
    rows: (
        str | None
    )  #: the name under which the body has them as a list of objects; None: each has its own
    is_whole: bool  #: it is neither cut nor merged
    num: int  #: nonces in it; one without any counts as one

    @classmethod
    def of(cls, kind: Kind, body: Mapping[str, Any], *, is_whole: bool) -> _Waiting:
        lists: dict[str, Sequence[Any]] = {}
        rows = None
        if found := body.get(_ROWS):
            rows = _ROWS
            lists = {name: [row[name] for row in found] for name in found[0]}
        elif "nonces" in body:
            lists = {name: items for name, items in body.items() if isinstance(items, list)}
        fields = {name: value for name, value in body.items() if name not in {*lists, rows}}
        num = len(next(iter(lists.values()), ())) or 1
        compact = {name: _compact(items) for name, items in lists.items()}
        return cls(kind, fields, compact, rows, is_whole or kind != "generated", num)

    def add(self, more: _Waiting) -> bool:
        """Add the nonces of another one, if both can be one body; say whether they can."""
        if self.is_whole or more.is_whole or self.fields != more.fields:
            return False
        for name, items in self.lists.items():
            items.extend(more.lists[name])
        self.num += more.num
        return True

    def first(self, num: int) -> dict[str, Any]:
        """Return the body of the first so many nonces."""
        lists = {name: list(items[:num]) for name, items in self.lists.items()}
        if self.rows is None:
            return self.fields | lists
        rows = zip(*lists.values(), strict=True)
        return self.fields | {self.rows: [dict(zip(lists, row, strict=True)) for row in rows]}

    def forget(self, num: int) -> None:
        """Take the first so many nonces out."""
        for items in self.lists.values():
            del items[:num]
        self.num -= num


def _compact(items: Sequence[Any]) -> Any:
    types = set(map(type, items))
    return array("q" if types == {int} else "d", items) if types in ({int}, {float}) else items


@dataclass(eq=False, repr=False)
class CallbackQueue(AsyncClosing):
    """Delivers bodies to a callback URL, from the event loop it is first used in.

    Raises:
        InvalidRound: `callback_url` is no http or https URL with a host.
    """

    callback_url: str  #: http or https; ``/generated`` and ``/validated`` are appended to it
    _: KW_ONLY
    #: Nonces that wait at most, 16 bytes each; what comes beyond is dropped.
    max_waiting: int = 8_000_000
    #: Bytes of a body, below the mebibyte that many servers take if nobody tells them otherwise. A verdict, or a
    #: single nonce, may have more.
    max_post_bytes: int = 1_000_000
    backoff: Backoff = PAUSES
    refusal_backoff: Backoff = REFUSAL_PAUSES  #: where `max_refusals` is more than one
    max_retry_after_s: float = MAX_RETRY_AFTER_S  #: longest pause that a receiver can ask for
    request_timeout_s: float = 10.0  #: seconds for one attempt, all of it
    interval_s: float = (
        0.0  #: seconds that are waited for more before each post; 0: a post goes out at once
    )
    delivered_below: int = 201  #: statuses from 200 to below this mean that a post was delivered
    max_refusals: int = 1  #: that many in a row are final for what is in the post
    #: Held for each post, where several queues share how many may be under way.
    slots: AbstractAsyncContextManager[Any] = field(default_factory=nullcontext)

    #: Nonces that were delivered, and those that were refused, did not fit or were left when the queue closed.
    #: Every nonce counts in one of the two, or in `waiting`.
    delivered: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)
    waiting: int = field(default=0, init=False)
    error: str | None = field(
        default=None, init=False
    )  #: why the last try failed; None: it did not
    closing: bool = field(default=False, init=False)  #: whether it takes nothing more

    def __post_init__(self) -> None:
        self._name = without_secrets(self.callback_url)
        self._client = CallbackClient(
            request_timeout_s=self.request_timeout_s, delivered_below=self.delivered_below
        )
        self._hurry = asyncio.Event()  #: ends the pause at hand
        self._end = math.inf  #: monotonic seconds by which all must be delivered
        self._queue: deque[_Waiting] = deque()
        self._most = max(1, self.max_post_bytes // 40)  #: nonces of a post; what one takes, about
        self._delivery: asyncio.Task[None] | None = None
        self._told: str | None = None  #: the last reason that was logged for dropping nonces

    @property
    def num_bodies(self) -> int:
        """Bodies that wait, merged ones as one."""
        return len(self._queue)

    def send(self, kind: Kind, body: Mapping[str, Any], *, is_whole: bool = False) -> None:
        """Have a body delivered by POST ``{callback_url}/{kind}``; from the event loop.

        Args:
            kind: bodies of valid nonces ("generated") may be merged, and cut.
            body: `nonces`, and any other fields, of which lists have one item a nonce; or `artifacts`, an object a
                nonce, and any other fields.
            is_whole: send it as one post, whatever its kind.
        """
        new = _Waiting.of(kind, body, is_whole=is_whole)
        if self.closing:
            self._drop(new.num, "the queue is closed")
        elif self.waiting + new.num > self.max_waiting:
            self._drop(new.num, f"as {self.max_waiting} wait at most")
        else:
            self.waiting += new.num
            if not self._queue or not self._queue[-1].add(new):
                self._queue.append(new)
            if self._delivery is None or self._delivery.done():
                self._delivery = asyncio.create_task(self._deliver_all(), name="poc-callbacks")

    @override
    async def close(self, timeout_s: float = 10.0) -> None:
        """Take nothing more, deliver what waits, drop what is left then, close the connections.

        May be called again, while the first call waits too, and before anything was sent.

        Args:
            timeout_s: seconds that what waits is given.
        """
        self.closing = True
        self._end = min(self._end, time.monotonic() + timeout_s)
        self._hurry.set()
        if self._delivery is not None:
            await asyncio.wait([self._delivery], timeout=timeout_s)
            self._delivery.cancel()
            await asyncio.wait([self._delivery])
        if self.waiting:
            self._drop(self.waiting, f"not taken in time; {self.error or 'the receiver was slow'}")
            self._queue.clear()
            self.waiting = 0
        await self._client.close()

    async def _deliver_all(self) -> None:
        """Deliver until nothing waits."""
        failures = refusals = 0
        await self._gather()
        while self._queue:
            waiting = self._queue[0]
            try:
                num, body = self._next_body(waiting)
            except ValueError as exc:
                self._settle(waiting, waiting.num, f"JSON cannot hold it ({exc})")
                continue
            left = self.waiting - num
            async with self.slots:
                result = await self._client.post(self.callback_url, waiting.kind, body)
            if result.outcome is PostOutcome.DELIVERED:
                self._settle(waiting, num, None)
                self._most = min(2 * self._most, self.max_post_bytes // (len(body) // num + 1))
                failures = refusals = 0
                if not left:
                    await self._gather()
                continue
            self._most = max(num // 2, _FEW)
            refusals += result.outcome is not PostOutcome.RETRY
            if result.outcome is PostOutcome.RETRY or refusals < self.max_refusals:
                self.error = result.reason
                if result.outcome is PostOutcome.RETRY:
                    asked_s = min(result.retry_after_s, self.max_retry_after_s)
                    pause_s = max(self.backoff.pause_s(failures), asked_s)
                else:
                    pause_s = self.refusal_backoff.pause_s(refusals - 1)
                # One warning for each outage.
                level = logging.INFO if failures else logging.WARNING
                logger.log(
                    level,
                    "Callbacks to %s: %s; %s waiting",
                    self._name,
                    self.error,
                    counted(self.waiting, "nonce"),
                )
                failures += 1
                await self._pause(pause_s)
            elif num <= _FEW or waiting.is_whole:
                # A final answer: the same body would get it again, and the rest would never arrive.
                self._settle(waiting, num, f"refused, {result.reason}")
                refusals = 0

    async def _gather(self) -> None:
        """Wait for more to send, unless the queue closes."""
        if self._queue and self.interval_s and not self.closing:
            await self._pause(self.interval_s)

    async def _pause(self, pause_s: float) -> None:
        """Wait until the queue closes at most; if it does already, for a tenth of the time that is left."""
        left_s = self._end - time.monotonic()
        self._hurry.clear()
        with suppress(TimeoutError):
            most_s = max(left_s / 10, _LEAST_PAUSE_S)
            await asyncio.wait_for(self._hurry.wait(), min(pause_s, most_s))

    def _next_body(self, waiting: _Waiting) -> tuple[int, str]:
        """Return how many nonces go into the next post, and its body.

        Raises:
            ValueError: JSON cannot hold it.
        """
        num = waiting.num if waiting.is_whole else min(self._most, waiting.num)
        while True:
            body = encode_body(waiting.first(num))
            if len(body) <= self.max_post_bytes or num == 1 or waiting.is_whole:
                return num, body
            num = max(1, num * self.max_post_bytes // len(body) - 1)

    def _settle(self, waiting: _Waiting, num: int, failure: str | None) -> None:
        """Take nonces out, delivered if there is no failure."""
        self.error = failure
        if failure is None:
            self.delivered += num
            self._told = None
        else:
            self._drop(num, failure)
        self.waiting -= num
        waiting.forget(num)
        if not waiting.num:
            self._queue.popleft()

    def _drop(self, num: int, reason: str) -> None:
        self.dropped += num
        # A warning for each reason, until something is taken again.
        level = logging.DEBUG if reason == self._told else logging.WARNING
        lost = counted(num, "nonce")
        logger.log(level, "Callbacks to %s: %s dropped, %s", self._name, lost, reason)
        self._told = reason


@dataclass(eq=False, repr=False)
class PoCCallbackSender(CallbackQueue):
    """A callback queue for the batches of one round, with the reference implementation's interface."""

    r_target: float  #: only nonces with a distance below this are sent
    fraud_threshold: float  #: not used; verdicts carry their own

    async def send_generated(self, batch: ProofBatch) -> None:
        """Have the valid nonces of a batch posted to ``{callback_url}/generated``; none, no call."""
        valid = batch.sub_batch(self.r_target)
        if len(valid) > 0:
            self.send("generated", asdict(valid) | {"r_target": self.r_target})

    async def send_validated(self, batch: ValidatedBatch) -> None:
        """Have a verdict posted to ``{callback_url}/validated``."""
        self.send("validated", validated_body(batch))
