"""A delivery: posts the proofs of a round that its receiver has not confirmed, under a lease.

Promises:
- What is new goes out in order, a bounded number of batches in a post, and the cursor moves with what was taken.
- Where the receiver does not answer, or says to try again, the delivery ends: when it goes on stands in the store.
- Nothing is posted before the lease is renewed: where that is lost, or Redis takes no writes, nothing is sent.
- What the receiver refuses is found by halving, put aside batch by batch, and tried again after growing pauses: it
  may not be ready yet. It keeps nothing back meanwhile. The tenth refusal is final, and said.
- One that stays waits for what is found next for as long as its round is searched, and posts it at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

from pocqueue.errors import UnknownRound
from pocqueue.poc.backoff import MAX_REFUSALS
from pocqueue.poc.callback import CallbackClient, PostOutcome, encode_body
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.callbacks import CallbackProgress
from pocqueue.rounds.records import ProofEntry, RoundStatus
from pocqueue.words import counted

logger = logging.getLogger(__name__)

#: Seconds after which one that does not stay goes to the end of the queue.
TASK_S = 20.0
#: Milliseconds of one wait for what is found next, after which the lease is renewed.
WAIT_MS = 1000
#: After so many failures in a row posts get no smaller.
MAX_HALVINGS = 8


class Over(Exception):
    """The delivery is over; says in a line what came of it."""


@dataclass(slots=True)
class PostSize:
    """How many batches the next post has: fewer where it was refused or not answered, as there may be a limit."""

    most: int
    now: int
    #: Until more than one was refused: that may have been for the size.
    grows: bool = True
    #: Which of those that were refused is at fault is not found yet.
    is_halving: bool = False

    def taken(self, was_quick: bool) -> None:
        """Take note that a post was taken, and whether one of twice the size would be in time as well."""
        self.is_halving = False
        if self.grows and was_quick:
            self.now = min(2 * self.now, self.most)

    def is_one_refused(self, num: int) -> bool:
        """Take note that a post of so many was refused; say whether that is said of a batch, and not of several."""
        self.now, self.grows, self.is_halving = max(1, num // 2), num == 1, num > 1
        return num == 1


@dataclass(eq=False)
class Delivery:
    """Used in an event loop of its own: calls to Redis hold it up."""

    backend: Backend
    status: RoundStatus  #: of the round, with a callback URL
    token: str  #: of the lease
    progress: CallbackProgress  #: where it begins
    client: CallbackClient
    _: KW_ONLY
    entries_per_post: int  #: batches merged into one post, at most
    #: Whether to wait for what is found next; asked again and again.
    stays: Callable[[], bool]
    #: Nonces that were taken, and those that were put aside.
    posted: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._callbacks, self._lease = self.backend.callbacks, (self.status.round_id, self.token)
        self._cursor, self._attempts = self.progress.cursor, self.progress.attempts
        self._has_aside = self.progress.aside > 0
        # Half as many after each failure: a large post may have taken the receiver too long.
        most, halvings = self.entries_per_post, min(self._attempts, MAX_HALVINGS)
        self._size, self._again_size = PostSize(most, max(1, most >> halvings)), PostSize(most, 1)

    async def run(self) -> str:
        """Deliver; return one line about it."""
        give_back_at = math.inf if self.stays() else time.monotonic() + TASK_S
        try:
            while True:
                found = [await self._post_new(), await self._post_again()]
                if not any(found):
                    if await self._more_comes():
                        continue
                    self._callbacks.finish(*self._lease)
                    return self._line
                if give_back_at == math.inf and not self.stays():
                    give_back_at = time.monotonic()
                # The next task would begin to halve once more.
                if time.monotonic() >= give_back_at and not self._size.is_halving:
                    # A slow receiver must not keep the others waiting; the scheduler comes back to this round
                    # for as long as it has proofs to deliver.
                    self._callbacks.finish(*self._lease)
                    return f"{self._line}; more to come"
        except Over as exc:
            return str(exc)

    @property
    def _line(self) -> str:
        return f"{counted(self.posted, 'nonce')} delivered, {self.refused:,} refused"

    async def _post_new(self) -> bool:
        """Post the next batches that nobody has confirmed; say whether there were any.

        Raises:
            Over: as `_is_taken` does.
        """
        entries = self.backend.store.read_proofs(self.status, self._cursor, count=self._size.now)
        if not entries:
            return False
        num, last = _num_nonces(entries), entries[-1].cursor
        if await self._is_taken(entries):
            self._hold(self._callbacks.delivered(*self._lease, last, num))
            self._size.taken(self._was_quick)
            self.posted += num
        elif self._size.is_one_refused(len(entries)):
            self._hold(self._callbacks.put_aside(*self._lease, last, num))
            self._has_aside = True
            self.refused += num
            self._say_refused(entries[0], logging.WARNING, "it is tried again")
        else:
            return True
        # Failures before this no longer count.
        self._cursor, self._attempts = last, 0
        return True

    async def _post_again(self) -> bool:
        """Post what was put aside and is to be tried again by now; say whether there was anything.

        Raises:
            Over: as `_is_taken` does.
        """
        if not self._has_aside:
            return False
        due = self._callbacks.due_again(self.status.round_id, self._again_size.now)
        if not due:
            return False
        entries = self.backend.store.proofs_at(self.status, [batch.entry for batch in due])
        if len(entries) < len(due):
            raise Over("the round is forgotten")
        if await self._is_taken(entries):
            self._hold(self._callbacks.taken_again(*self._lease, due))
            self._again_size.taken(self._was_quick)
            self.posted += _num_nonces(entries)
        elif self._again_size.is_one_refused(len(due)):
            self._hold(self._callbacks.refused_again(*self._lease, due[0]))
            if due[0].refusals + 1 >= MAX_REFUSALS:
                self._say_refused(entries[0], logging.ERROR, "it is not sent again")
        return True

    async def _is_taken(self, entries: Sequence[ProofEntry]) -> bool:
        """Post batches as one; return False if the receiver refuses them.

        Raises:
            Over: it is to be tried again later, nothing may be sent there, or the lease is lost.
        """
        spec, batch = self.status.spec, Proofs.joined(entry.proofs for entry in entries)
        assert spec.callback_url is not None
        body = encode_body(spec.proof.callback_body(spec, batch))
        self._hold(self._callbacks.keep(*self._lease))
        begun = time.monotonic()
        result = await self.client.post(spec.callback_url, "generated", body)
        self._was_quick = time.monotonic() - begun < self.client.request_timeout_s / 4
        self._reason = result.reason
        if result.outcome is PostOutcome.RETRY:
            error = f"{counted(len(batch), 'nonce')} not taken: {result.reason}"
            self._callbacks.failed(*self._lease, self._attempts, error)
            pause_s = self._callbacks.timings.pause_ms(self._attempts) / 1000
            name = self.status.round_id
            logger.warning("Round %s: %s; next try in %.1f s.", name, error, pause_s)
            raise Over(error)
        if result.outcome is PostOutcome.FORBIDDEN:
            # Nothing was sent, so nothing is put aside, and the next try would end here too.
            raise Over(give_up(self.backend, *self._lease, result.reason))
        return result.outcome is PostOutcome.DELIVERED

    async def _more_comes(self) -> bool:
        """Wait a while for what is found next; False: there is nothing to wait for.

        Raises:
            Over: the lease or the round is gone.
        """
        if not self.stays():
            return False
        self._hold(self._callbacks.keep(*self._lease))
        try:
            status = self.backend.store.status(self.status.round_id)
        except UnknownRound:
            raise Over("the round is forgotten") from None
        if not status.state.is_active:
            # What was found last may have come since this looked, before the end.
            return bool(self.backend.store.read_proofs(status, self._cursor, count=1))
        # In a thread: the receiver may end a connection meanwhile, and the loop has to hear of it.
        await asyncio.to_thread(
            self.backend.store.read_proofs, status, self._cursor, count=1, block_ms=WAIT_MS
        )
        return True

    def _hold(self, has_lease: bool) -> None:
        if not has_lease:
            raise Over("another task took over")

    def _say_refused(self, entry: ProofEntry, level: int, what: str) -> None:
        logger.log(
            level,
            "Round %s: the callback receiver refuses %s, from %d on: %s; %s",
            self.status.round_id,
            counted(len(entry.proofs), "nonce"),
            entry.proofs.nonces[0],
            self._reason,
            what,
        )


def give_up(backend: Backend, round_id: str, token: str, error: str) -> str:
    """End the callbacks of a round, as no further try would help; return why."""
    backend.callbacks.give_up(round_id, token, error)
    logger.error("Round %s: no callbacks are sent. %s", round_id, error)
    return error


def _num_nonces(entries: Sequence[ProofEntry]) -> int:
    return sum(len(entry.proofs) for entry in entries)
