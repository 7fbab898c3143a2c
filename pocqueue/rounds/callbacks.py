"""Callbacks of rounds: which rounds have proofs that their callback URL did not take yet.

The scheduler asks what is due and hands it to an io worker under a lease; the worker notes every
success and failure here. The cursor moves only after the receiver said 200, so whatever dies in
between, the next task begins with the first proof that nobody confirmed.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from pocqueue.rounds.connection import OnRedis
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.store import KEEP_ENDED_MS, START, Keys, RoundStore

#: How long after its round has ended a callback is still tried.
CALLBACK_GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class CallbackTimings:
    """How long leases last, and how long it is waited between tries."""

    #: How long an io worker may be silent about a delivery before another one takes it over. Longer than one
    #: attempt, whose HTTP timeout is 10 s.
    lease_ms: int = 30_000
    first_ms: int = 500  #: wait after the first failure; doubles with each one
    longest_ms: int = 15_000  #: the most that it doubles to

    def pause_ms(self, attempts: int) -> int:
        """Return the milliseconds to wait after one more failure than these."""
        return int(min(self.first_ms * 2.0 ** min(attempts, 30), self.longest_ms))


class CallbackProgress(BaseModel):
    """How far the callbacks of a round are; `lua/advance_callback.lua` explains the fields."""

    model_config = ConfigDict(frozen=True)

    cursor: str = START
    delivered: int = 0
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

        Rounds whose proofs are all delivered, or whose time for it is over, are not looked at again.
        """
        found = self.progress_of_all()
        if not found:
            return []
        claimed, kept = [], set()
        for status in self.store.statuses(list(found)):
            round_id, progress, now_ms = status.round_id, found[status.round_id], status.now_ms
            is_behind = status.valid > progress.delivered
            if status.state.is_active or (is_behind and now_ms <= status.ended_ms + grace_s * 1000):
                kept.add(round_id)
                if is_behind and now_ms >= max(progress.next_ms, progress.lease_ms):
                    claimed.append((round_id, self._lease(status)))
        if over := found.keys() - kept:
            with self._errors():
                self.client.srem(Keys.CALLBACKS, *over)
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

    def delivered(self, round_id: str, token: str, cursor: str, num_nonces: int) -> bool:
        """Note that the receiver took everything up to a cursor; False if the lease is lost."""
        return self._advance(round_id, token, cursor, num_nonces, self.timings.lease_ms)

    def failed(self, round_id: str, token: str, attempts: int, error: str) -> bool:
        """Note a failure after so many others, and give the lease up until the backoff is over."""
        wait_ms = self.timings.pause_ms(attempts)
        return self._advance(round_id, token, wait_ms=wait_ms, error=error)

    def give_up(self, round_id: str, token: str, error: str) -> bool:
        """Note that no further try would help, and take the round out; False if the lease is lost."""
        if not self._advance(round_id, token, error=error):
            return False
        with self._errors():
            if self.client.srem(Keys.CALLBACKS, round_id):
                self.client.hincrby(Keys.METRICS, "callbacks_given_up", 1)
        return True

    def finish(self, round_id: str, token: str) -> bool:
        """Give the lease up: everything there was is delivered."""
        return self._advance(round_id, token)

    def _progress(self, round_ids: Sequence[str]) -> list[CallbackProgress]:
        found = self._each("HGETALL", [Keys.of_round(i, "callback") for i in round_ids])
        return [CallbackProgress.model_validate(fields) for fields in found]

    def _lease(self, status: RoundStatus) -> str:
        """Return the token of a new lease of a round's delivery."""
        key, token = Keys.of_round(status.round_id, "callback"), uuid.uuid4().hex
        until_ms = status.now_ms + self.timings.lease_ms
        with self._errors(), self.client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping={"lease": token, "lease_ms": until_ms})
            pipe.pexpireat(key, status.deadline_ms + 2 * KEEP_ENDED_MS)
            pipe.execute()
        return token

    def _advance(
        self, round_id: str, token: str, *taken: str | int, wait_ms: int = 0, error: str = ""
    ) -> bool:
        """Run the script; `taken` is cursor, number of nonces and milliseconds of the next lease."""
        reply = self._run(
            "advance_callback",
            [Keys.of_round(round_id, "callback")],
            [token, *(taken or ("", 0, 0)), wait_ms, error],
        )
        return bool(reply)
