"""Callbacks of rounds: which rounds have proofs that their callback URL did not take yet.

The scheduler asks what is due and hands it to an io worker under a lease; the worker notes every
success and failure here. The cursor moves only after the receiver said 200, so whatever dies in
between, the next task begins with the first proof that nobody confirmed. It moves beyond a batch that the receiver
refuses as well, once that is put aside: it is tried again after pauses of its own, so that it holds nobody back.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from pocqueue.poc.backoff import MAX_REFUSALS, REFUSAL_PAUSES, Backoff
from pocqueue.rounds.connection import OnRedis
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.store import KEEP_ENDED_MS, START, Keys, RoundStore
from pocqueue.words import counted

logger = logging.getLogger(__name__)

#: How long after its round has ended a callback is still tried.
CALLBACK_GRACE_S = 60.0
#: So long before that time is over, what is put aside is tried once more, whatever its pause. Longer than a pause
#: after a failure, and than a try.
LAST_TRY_MS = 16_000


@dataclass(frozen=True, slots=True)
class CallbackTimings:
    """How long leases last, and how long it is waited between tries."""

    #: How long an io worker may be silent about a delivery before another one takes it over. Longer than one
    #: attempt, whose HTTP timeout is 10 s.
    lease_ms: int = 30_000
    first_ms: int = 500  #: wait after the first failure; doubles with each one
    longest_ms: int = 15_000  #: the most that it doubles to
    #: Between two tries of a batch that the receiver refuses.
    refusals: Backoff = REFUSAL_PAUSES

    def pause_ms(self, attempts: int) -> int:
        """Return the milliseconds to wait after one more failure than these."""
        return int(min(self.first_ms * 2.0 ** min(attempts, 30), self.longest_ms))


class Refused(NamedTuple):
    """A batch that is put aside."""

    entry: str  #: its cursor
    refusals: int  #: so far
    num_nonces: int

    @classmethod
    def parse(cls, member: str) -> Refused:
        """Read a member of the sorted set."""
        entry, refusals, num_nonces = member.split(" ")
        return cls(entry, int(refusals), int(num_nonces))

    @property
    def member(self) -> str:
        """As which it is kept."""
        return f"{self.entry} {self.refusals} {self.num_nonces}"


class CallbackProgress(BaseModel):
    """How far the callbacks of a round are; `lua/advance_callback.lua` explains the fields."""

    model_config = ConfigDict(frozen=True)

    cursor: str = START
    delivered: int = 0
    aside: int = 0
    aside_ms: int = 0
    last_try: bool = False
    lease: str = ""
    lease_ms: int = 0
    next_ms: int = 0
    attempts: int = 0
    error: str = ""


@dataclass(eq=False, repr=False)
class Callbacks(OnRedis):
    """The callbacks of all rounds, in Redis."""

    store: RoundStore
    timings: CallbackTimings = CallbackTimings()

    def claim_due(self, grace_s: float) -> list[tuple[str, str]]:
        """Lease every delivery that is due; return (round id, lease token) of each.

        Rounds whose proofs are all delivered, or whose time for it is over, are not looked at again. What is lost
        by that is said, and counted.

        Args:
            grace_s: seconds after a round's end while it is tried; a task at work then may end what it does.
        """
        found = self.progress_of_all()
        if not found:
            return []
        claimed, kept, lost = [], set(), dict[str, int]()
        for status in self.store.statuses(list(found)):
            round_id, progress, now_ms = status.round_id, found[status.round_id], status.now_ms
            is_active, lacking = status.state.is_active, status.valid - progress.delivered
            until_ms = math.inf if is_active else status.ended_ms + grace_s * 1000
            if is_active or (lacking > 0 and now_ms <= max(until_ms, progress.lease_ms)):
                kept.add(round_id)
                is_last = not progress.last_try and now_ms >= until_ms - LAST_TRY_MS
                is_again = progress.aside > 0 and (is_last or now_ms >= progress.aside_ms)
                is_due = is_again or lacking > progress.aside
                if is_due and max(progress.next_ms, progress.lease_ms) <= now_ms <= until_ms:
                    claimed.append((round_id, self._lease(status, is_last=is_last)))
            elif lacking > 0:
                lost[round_id] = lacking
        for round_id in found.keys() - kept:
            self._end(round_id, found[round_id], lost.get(round_id, 0))
        return claimed

    def progress(self, round_id: str) -> CallbackProgress:
        """Return how far the callbacks of a round are."""
        return self._progress([round_id])[0]

    def progress_of_all(self) -> dict[str, CallbackProgress]:
        """Return how far the callbacks of every round with proofs to send are, by round id."""
        with self._errors():
            members: Any = self.client.smembers(Keys.CALLBACKS)
        ids = sorted(members)
        return dict(zip(ids, self._progress(ids), strict=True))

    def take(self, round_id: str, token: str, own: str) -> bool:
        """Begin a delivery; False if another run of the task has, or the lease is lost. May be asked again.

        Args:
            token: of the lease, as it came with the task; of no use to a copy of that afterwards.
            own: token of this run, under which everything else is noted.
        """
        key = Keys.of_round(round_id, "callback")
        return bool(self._run("take_callback", [key], [token, own, self.timings.lease_ms]))

    def delivered(self, round_id: str, token: str, cursor: str, num_nonces: int) -> bool:
        """Note that the receiver took everything up to a cursor; False if the lease is lost."""
        lease_ms = self.timings.lease_ms
        return self._advance(round_id, token, cursor, taken=num_nonces, lease_ms=lease_ms)

    def put_aside(self, round_id: str, token: str, entry: str, num_nonces: int) -> bool:
        """Note that the receiver refuses the batch behind the cursor, which moves; False if the lease is lost."""
        new = Refused(entry, 1, num_nonces)
        return self._advance(
            *(round_id, token, entry),
            aside=num_nonces,
            put_in=new,
            lease_ms=self.timings.lease_ms,
        )

    def due_again(self, round_id: str, most: int) -> list[Refused]:
        """Return the batches that were put aside and are to be tried now, at most so many."""
        key = Keys.of_round(round_id, "refused")
        with self._errors():
            found: Any = self.client.zrangebyscore(key, "-inf", self._now_ms(), start=0, num=most)
        return [Refused.parse(member) for member in found]

    def taken_again(self, round_id: str, token: str, batches: Sequence[Refused]) -> bool:
        """Note that the receiver took batches that were put aside; False if the lease is lost."""
        return all([self._settle(round_id, token, batch) for batch in batches])

    def refused_again(self, round_id: str, token: str, batch: Refused) -> bool:
        """Note another refusal, which is final if it is the tenth; False if the lease is lost."""
        if batch.refusals + 1 >= MAX_REFUSALS:
            return self._settle(round_id, token, batch)
        more = batch._replace(refusals=batch.refusals + 1)
        return self._advance(
            *(round_id, token), take_out=batch, put_in=more, lease_ms=self.timings.lease_ms
        )

    def keep(self, round_id: str, token: str) -> bool:
        """Keep the lease, although there was nothing to note; False if it is lost."""
        return self._advance(round_id, token, lease_ms=self.timings.lease_ms)

    def failed(self, round_id: str, token: str, attempts: int, error: str) -> bool:
        """Note a failure after so many others, and give the lease up until the backoff is over."""
        wait_ms = self.timings.pause_ms(attempts)
        return self._advance(round_id, token, wait_ms=wait_ms, error=error)

    def give_up(self, round_id: str, token: str, error: str) -> bool:
        """Note that no further try would help, and take the round out; False if the lease is lost."""
        if not self._advance(round_id, token, error=error):
            return False
        self._take_out(round_id, is_given_up=True)
        return True

    def finish(self, round_id: str, token: str) -> bool:
        """Give the lease up: everything there was is delivered."""
        return self._advance(round_id, token)

    def _progress(self, round_ids: Sequence[str]) -> list[CallbackProgress]:
        found = self._each("HGETALL", [Keys.of_round(i, "callback") for i in round_ids])
        return [CallbackProgress.model_validate(fields) for fields in found]

    def _end(self, round_id: str, progress: CallbackProgress, num_lost: int) -> None:
        """Take a round out whose time is over, or of which everything was taken."""
        if self._take_out(round_id, is_given_up=num_lost > 0) and num_lost:
            logger.error(
                "Round %s: %s not taken by the callback receiver in time, and not sent any more%s",
                *(round_id, counted(num_lost, "nonce"), progress.error and f": {progress.error}"),
            )

    def _take_out(self, round_id: str, *, is_given_up: bool) -> bool:
        """Take a round out, which counts once if it is given up; False if another scheduler has."""
        with self._errors():
            is_out = bool(self.client.srem(Keys.CALLBACKS, round_id))
            if is_out and is_given_up:
                self.client.hincrby(Keys.METRICS, "callbacks_given_up", 1)
        return is_out

    def _lease(self, status: RoundStatus, *, is_last: bool) -> str:
        """Return the token of a new lease of a round's delivery.

        Args:
            is_last: let what is put aside be tried now.
        """
        key, refused = (Keys.of_round(status.round_id, name) for name in ("callback", "refused"))
        token, now_ms = uuid.uuid4().hex, status.now_ms
        fields: Any = {"lease": token, "lease_ms": now_ms + self.timings.lease_ms}
        aside: Any = []
        if is_last:
            fields |= {"last_try": 1, "aside_ms": now_ms}
            with self._errors():
                aside = self.client.zrange(refused, 0, -1)
        with self._errors(), self.client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=fields)
            if aside:
                pipe.zadd(refused, dict.fromkeys(aside, now_ms), xx=True)
            pipe.pexpireat(key, status.deadline_ms + 2 * KEEP_ENDED_MS)
            pipe.execute()
        return token

    def _settle(self, round_id: str, token: str, batch: Refused) -> bool:
        """Note that a batch is not put aside any more, whatever came of it."""
        num = batch.num_nonces
        return self._advance(
            *(round_id, token),
            taken=num,
            aside=-num,
            take_out=batch,
            lease_ms=self.timings.lease_ms,
        )

    def _advance(
        self,
        round_id: str,
        token: str,
        cursor: str = "",
        *,
        taken: int = 0,
        aside: int = 0,
        take_out: Refused | None = None,
        put_in: Refused | None = None,
        lease_ms: int = 0,
        wait_ms: int = 0,
        error: str = "",
    ) -> bool:
        """Run the script, which has the meaning of each."""
        pause_s = self.timings.refusals.pause_s(put_in.refusals - 1) if put_in else 0.0
        reply = self._run(
            "advance_callback",
            Keys.parts(round_id, "callback", "refused"),
            [
                *(token, cursor, lease_ms, wait_ms, error, taken, aside),
                take_out.member if take_out else "",
                put_in.member if put_in else "",
                round(1000 * pause_s),
            ],
        )
        return bool(reply)
