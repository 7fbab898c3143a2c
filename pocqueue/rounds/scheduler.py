"""The scheduler: reads the store, lets the planner decide, carries it out.

Several may run. One leads by a lease in Redis that it renews with every step; when it dies another
one takes the lead within four seconds. Two leaders for a moment would do no harm: every step is
atomic in the store. A scheduler keeps nothing between two steps that it does not check against Redis again.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pocqueue.errors import StoreError, StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.callbacks import CALLBACK_GRACE_S
from pocqueue.rounds.planner import DELIVERY_S, RANGE_S, find_lost, plan
from pocqueue.rounds.pool import HEARTBEAT_TTL_S, Gpu
from pocqueue.rounds.records import AssignedRange, RoundStatus
from pocqueue.rounds.relays import Relays
from pocqueue.rounds.spec import RoundState

logger = logging.getLogger(__name__)

#: Between two steps while rounds are active. A range takes about a second.
BUSY_STEP_S = 0.1
#: With many hundreds of GPUs a step takes long itself; the pause after it is this many times as long.
PAUSE_FACTOR = 8.0
#: Longest pause between two steps while rounds are active. It leaves a GPU that was just given its second
#: range most of a second of work.
MAX_BUSY_STEP_S = 0.25
#: Between two steps while there is nothing to do; a new round ends the wait at once.
IDLE_STEP_S = 0.5
#: Between two tries of a scheduler that does not lead, or has lost Redis.
STANDBY_STEP_S = 0.5
#: Between two looks at jobs of GPU hosts, where there are gateways for them.
SWEEP_S = 5.0
#: A leader that does not renew for this long loses the lead.
LEASE_S = 3.0


class Stop(Protocol):
    """What ends a scheduler: a `threading.Event`, or something like it that signals may set."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> bool: ...


class Sender(Protocol):
    """What brings tasks to workers; raises `StoreUnavailable` if it cannot."""

    def send_ranges(self, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
        """Put a task for each (queue, round, range) on its queue."""

    def send_callback(self, round_id: str, token: str) -> None:
        """Put a task that delivers a round's proofs, with the token of its lease, on the io queue."""

    def send_sweep(self) -> None:
        """Put a task that looks after jobs of GPU hosts on the gateways' queue."""


@dataclass(frozen=True, slots=True)
class SchedulerTimings:
    """Seconds."""

    range_s: float = RANGE_S  #: that one range should take on its GPU
    #: After an outage of Redis, or after taking the lead, a worker's silence is not taken for its death for
    #: this long; one time to live of a heartbeat.
    settle_s: float = HEARTBEAT_TTL_S
    grace_s: float = CALLBACK_GRACE_S  #: after a deadline, while callbacks are still tried
    delivery_s: float = DELIVERY_S  #: a worker that does not have its range by then will not get it
    idle_s: float = IDLE_STEP_S  #: between two steps while there is nothing to do
    lease_s: float = LEASE_S  #: after which a leader that does not renew loses the lead
    sweep_s: float = SWEEP_S  #: between two looks at jobs of GPU hosts


@dataclass(eq=False, repr=False)
class Scheduler:
    """One scheduler."""

    backend: Backend  #: rounds, ranges, GPU queues, and proofs that callback URLs did not take yet
    sender: Sender
    timings: SchedulerTimings = SchedulerTimings()
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._store, self._pool = self.backend.store, self.backend.pool
        self._relays = Relays(self.backend.client, self.backend.url)
        self._next_sweep = -math.inf
        self._id = uuid.uuid4().hex
        #: Since when it leads without an outage.
        self._undisturbed_since = -math.inf
        self._leads = self._stands_by = self._worked = self._store_lost = False

    def run(self, stop: Stop) -> None:
        """Schedule until `stop` is set, waiting for Redis whenever it is away or refuses for now.

        Raises:
            StoreError: Redis refuses for good, before anything worked.
        """
        while not stop.is_set():
            try:
                if self._lead():
                    began = self.clock()
                    busy = self.step()
                    pause_s = busy_pause_s(self.clock() - began) if busy else self.timings.idle_s
                    # A new round ends this wait early.
                    self._store.wait_for_work(pause_s)
                else:
                    if not self._stands_by:
                        self._stands_by = True
                        logger.info("Another scheduler leads; this one stands by.")
                    stop.wait(STANDBY_STEP_S)
                self._worked = True
                if self._store_lost:
                    self._store_lost = False
                    logger.info("Redis is back; scheduling goes on.")
            except StoreError as exc:
                if not (self._worked or isinstance(exc, StoreUnavailable)):
                    raise
                if not self._store_lost:
                    self._store_lost = True
                    logger.warning("Scheduling waits: %s", exc)
                self._undisturbed_since = self.clock()
                stop.wait(STANDBY_STEP_S)
        if self._leads:
            try:
                # One millisecond left is as good as none: the next one need not wait for it to run out.
                self._store.lead(self._id, 0.001)
            except StoreError as exc:
                logger.warning("The lead could not be given up and ends by itself: %s", exc)

    def step(self) -> bool:
        """Do all there is to do now; return whether any round is active."""
        active = self._store.active_ids()
        rounds = [status for status in self._store.statuses(active) if status.state.is_active]
        for round_id in set(active) - {status.round_id for status in rounds}:
            self._store.expire(round_id)
        if rounds:
            self._schedule(rounds)
        # What could not be delivered during an outage has its time after it.
        is_late = self.clock() >= self._undisturbed_since + self.timings.grace_s
        grace_s = self.timings.grace_s if is_late else math.inf
        for round_id, token in self.backend.callbacks.claim_due(grace_s):
            self.sender.send_callback(round_id, token)
        if (now := self.clock()) >= self._next_sweep:
            self._next_sweep = now + self.timings.sweep_s
            if self._relays.live():
                self.sender.send_sweep()
        return bool(rounds)

    def _schedule(self, rounds: list[RoundStatus]) -> None:
        by_id = {status.round_id: status for status in rounds}
        gpus = self._pool.all()
        for round_id in [one.round_id for one in rounds if is_beyond_all(one, gpus)]:
            reason = (
                "no GPU of its model can hold one of its batches; `pocqueue gpus` says what failed"
            )
            self._store.close(round_id, RoundState.FAILED, reason)
            rounds.remove(by_id.pop(round_id))
        if not rounds:
            return
        outstanding = self._store.outstanding(list(by_id))
        now_ms = rounds[0].now_ms
        # Heartbeats got through no more than we did. It takes workers a moment to be heard again.
        trust = self.clock() >= self._undisturbed_since + self.timings.settle_s
        lost = find_lost(
            outstanding, gpus, now_ms, trust_silence=trust, delivery_s=self.timings.delivery_s
        )
        for item in lost:
            out = item.range
            num = self._store.release_range(out.round_id, out.range_id, failed=item.failed)
            logger.warning(
                "Round %s: nonce indices %d to %d come back from %s (%s), %d to give to others.",
                out.round_id,
                out.done,
                out.stop - 1,
                out.queue,
                item.why,
                num,
            )
        gone = {item.range.key for item in lost}
        held = [out for out in outstanding if out.key not in gone]
        wanted = plan(rounds, gpus, held, now_ms, self.timings.range_s)
        # A few round trips for all GPUs, not two for each: with hundreds of them a step would take longer
        # than the pause between two.
        sent = [
            (a.queue, by_id[a.round_id], assigned)
            for a, assigned in zip(wanted, self._store.assign_ranges(wanted), strict=True)
            # None: its round has ended meanwhile, or has nothing left.
            if assigned is not None
        ]
        if sent:
            self.sender.send_ranges(sent)

    def _lead(self) -> bool:
        leads = self._store.lead(self._id, self.timings.lease_s)
        if leads and not self._leads:
            logger.info("This scheduler leads.")
            # The one that led before may have lost Redis as well.
            self._undisturbed_since = self.clock()
        elif self._leads and not leads:
            logger.warning("Another scheduler took the lead.")
        self._leads = leads
        return leads


def is_beyond_all(status: RoundStatus, gpus: Sequence[Gpu]) -> bool:
    """Say whether a round never had a batch and none of its model's live GPUs can run one, as they found out."""
    if status.batches > 0:
        return False
    serving = [gpu.info for gpu in gpus if gpu.is_live and status.spec.is_served_by(gpu.info)]
    return bool(serving) and not any(map(status.spec.is_held_by, serving))


def busy_pause_s(step_s: float) -> float:
    """Return how long to wait for the next step, in seconds, after one that took `step_s`."""
    return min(max(BUSY_STEP_S, PAUSE_FACTOR * step_s), MAX_BUSY_STEP_S)
