"""The outbox of callbacks: which rounds have proofs that their callback URL did not take yet.

The scheduler asks what is due and hands it to an io worker under a lease; the worker notes every
success and failure here. The cursor moves only after the receiver said 200, so whatever dies in
between, the next task begins with the first proof that nobody confirmed.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from pocqueue.rounds.connection import store_errors
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.scripts import Scripts
from pocqueue.rounds.store import KEEP_ENDED_MS, START, Keys, RoundStore

#: How long an io worker may be silent about a delivery before another one takes it over. Longer
#: than one attempt, whose HTTP timeout is 10 s.
LEASE_MS = 30_000
#: Wait after the first failure; doubled with each one, up to MAX_BACKOFF_MS.
FIRST_BACKOFF_MS = 500
MAX_BACKOFF_MS = 15_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far the callbacks of a round are."""

    cursor: str = START
    delivered: int = 0
    lease: str = ""
    lease_ms: int = 0
    next_ms: int = 0
    attempts: int = 0
    error: str = ""

    @property
    def backoff_ms(self) -> int:
        """Milliseconds to wait after one more failure."""
        return int(min(FIRST_BACKOFF_MS * 2.0**self.attempts, MAX_BACKOFF_MS))


def is_due(status: RoundStatus, delivery: Delivery) -> bool:
    """Say whether a delivery should begin now."""
    return (
        status.valid > delivery.delivered
        and status.now_ms >= delivery.next_ms
        and status.now_ms >= delivery.lease_ms
    )


def is_finished(status: RoundStatus, delivery: Delivery, grace_s: float) -> bool:
    """Say whether nothing more is to be sent: all is delivered, or the grace time is over."""
    if status.state.is_active:
        return False
    return delivery.delivered >= status.valid or status.now_ms > status.ended_ms + grace_s * 1000


class CallbackOutbox:
    """Deliveries in Redis."""

    def __init__(self, client: redis.Redis, url: str, store: RoundStore) -> None:
        self._client = client
        self._url = url
        self._store = store
        self._scripts = Scripts(client, url)

    def claim_due(self, grace_s: float) -> list[tuple[str, str]]:
        """Lease every delivery that is due; return (round id, lease token) of each.

        Rounds whose proofs are all delivered, or whose time for it is over, leave the outbox.
        """
        with store_errors(self._url):
            members: Any = self._client.smembers(Keys.CALLBACKS)
        if not members:
            return []
        statuses = {status.round_id: status for status in self._store.statuses(sorted(members))}
        claimed = []
        for round_id in sorted(members):
            status = statuses.get(round_id)
            delivery = self.delivery(round_id)
            if status is None or is_finished(status, delivery, grace_s):
                with store_errors(self._url):
                    self._client.srem(Keys.CALLBACKS, round_id)
            elif is_due(status, delivery):
                token = uuid.uuid4().hex
                self._lease(status, token)
                claimed.append((round_id, token))
        return claimed

    def delivery(self, round_id: str) -> Delivery:
        """Return how far the callbacks of a round are."""
        with store_errors(self._url):
            fields: Any = self._client.hgetall(Keys.of_round(round_id, "callback"))
        return _parse(fields)

    def deliveries(self) -> dict[str, Delivery]:
        """Return how far the callbacks of every round in the outbox are, by round id."""
        with store_errors(self._url):
            members: Any = self._client.smembers(Keys.CALLBACKS)
            ids = sorted(members)
            with self._client.pipeline(transaction=False) as pipe:
                for round_id in ids:
                    pipe.hgetall(Keys.of_round(round_id, "callback"))
                found = pipe.execute()
        return {i: _parse(fields) for i, fields in zip(ids, found, strict=True)}

    def delivered(self, round_id: str, token: str, cursor: str, num_nonces: int) -> bool:
        """Note that the receiver took everything up to a cursor; False if the lease is lost."""
        return self._advance(round_id, token, cursor, num_nonces, LEASE_MS, 0, "")

    def failed(self, round_id: str, token: str, delivery: Delivery, error: str) -> bool:
        """Note a failure, and give the lease up until the backoff is over."""
        return self._advance(round_id, token, "", 0, 0, delivery.backoff_ms, error)

    def give_up(self, round_id: str, token: str, error: str) -> bool:
        """Note that no further try would help, and take the round out; False if the lease is lost."""
        if not self._advance(round_id, token, "", 0, 0, 0, error):
            return False
        with store_errors(self._url):
            if self._client.srem(Keys.CALLBACKS, round_id):
                self._client.hincrby(Keys.METRICS, "callbacks_given_up", 1)
        return True

    def finish(self, round_id: str, token: str) -> bool:
        """Give the lease up: everything there was is delivered."""
        return self._advance(round_id, token, "", 0, 0, 0, "")

    def _lease(self, status: RoundStatus, token: str) -> None:
        key = Keys.of_round(status.round_id, "callback")
        with store_errors(self._url), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping={"lease": token, "lease_ms": status.now_ms + LEASE_MS})
            pipe.pexpireat(key, status.deadline_ms + 2 * KEEP_ENDED_MS)
            pipe.execute()

    def _advance(
        self,
        round_id: str,
        token: str,
        cursor: str,
        num_nonces: int,
        lease_ms: int,
        wait_ms: int,
        error: str,
    ) -> bool:
        reply = self._scripts.run(
            "advance_callback",
            [Keys.of_round(round_id, "callback")],
            [token, cursor, num_nonces, lease_ms, wait_ms, error],
        )
        return bool(reply)


def _parse(fields: Mapping[str, str]) -> Delivery:
    return Delivery(
        cursor=fields.get("cursor", START),
        delivered=int(fields.get("delivered", 0)),
        lease=fields.get("lease", ""),
        lease_ms=int(fields.get("lease_ms", 0)),
        next_ms=int(fields.get("next_ms", 0)),
        attempts=int(fields.get("attempts", 0)),
        error=fields.get("error", ""),
    )
