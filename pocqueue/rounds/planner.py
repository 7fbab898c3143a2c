"""The scheduler's decisions: values in, values out. No Redis, no Celery, no clock.

Promises:
- Each GPU queue holds at most two ranges, one running and one waiting, each about a second of that
  GPU's work, so that a GPU never waits for the scheduler and a stopped round wastes little.
- GPU time is shared among active rounds by their share (start-time fair queueing: the round with
  the least GPU seconds per share goes next; one that joins begins where the others are).
- Nothing is sent whose first batch could not be done before its round's deadline.
- The ranges of a dead, restarted or hanging worker, and those whose message never arrived, go to
  others.

The ideas, in the order in which to learn them. How much a GPU gets:
 1. *rate*: nonces per second of a GPU at a shape (seq_len x batch_size), as its heartbeat tells (`Gpu.rate`).
 2. *range*: the nonces of one message; as many whole batches as this GPU does in RANGE_S (`range_size`).
 3. *outstanding*: given to a GPU and not finished; `left` of its nonces are still to be done.
 4. *depth*: ranges outstanding on one queue, at most DEPTH: the second one is prefetched.
 5. *backlog*: seconds of work outstanding on a queue, the queueing delay of whatever is sent now.
 6. *in time*: backlog and one batch at the GPU's best rate end before the round's deadline.
 7. *probe*: a shape that a GPU never ran has an estimated rate, and gets a small range to measure it.
Which round gets it, by start-time fair queueing (Goyal, Vin, Cheng 1996) with GPU seconds as service:
 8. *unassigned*: what a round of `max_nonces` has left to give; 0 leaves it out.
 9. *share*: the weight of a round.
10. *virtual time*: GPU seconds that a round was given, by its share. The least one goes next, and is charged
    for the whole range when it is sent, not when it is done.
11. *undone*: the part of it that was charged and is still to be done; outstanding work in virtual time.
12. *start*: a new round begins where the furthest of the others is with what was done for it.
13. *lag*: how far a round may stay behind the foremost (MAX_LAG_S); what it missed beyond that is forgiven.
What has to be given again (`find_lost`):
14. *lost*: ranges of workers that left, were restarted, hang or fell silent, and messages that did not arrive.
    After an outage of Redis silence proves nothing (`trust_silence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.records import Assignment, OutstandingRange, RoundStatus

#: Ranges on one GPU queue: one running, one waiting.
DEPTH = 2
#: After this long a live worker must have taken its range from the queue, or the message is lost.
DELIVERY_S = 3.0
#: How long a GPU should take for one range.
RANGE_S = 1.0
#: Part of a range that a GPU gets of a shape which it never ran. Its rate is an estimate then, by which the
#: round is charged too. With whole ranges, a round that began a moment before another would keep for good
#: what it was charged too little for.
PROBE = 0.2
#: GPU seconds by which a round may lag behind the foremost one, for every GPU. A round that could
#: not use any GPU for a while does not get all of them for as long afterwards.
MAX_LAG_S = 2.0 * DEPTH


@dataclass(frozen=True, slots=True)
class LostRange:
    """A range that its GPU will not finish."""

    range: OutstandingRange
    failed: bool  #: the worker died on it; else its message never arrived
    why: str


def find_lost(
    outstanding: Sequence[OutstandingRange],
    gpus: Sequence[Gpu],
    now_ms: int,
    *,
    trust_silence: bool = True,
    delivery_s: float = DELIVERY_S,
) -> list[LostRange]:
    """Return the ranges that must be given to others.

    Args:
        outstanding: ranges out on GPUs, of any rounds.
        gpus: the pool as the last heartbeats had it, dead workers too.
        now_ms: the clock that heartbeats and assignments are stamped with.
        trust_silence: False if heartbeats could not be told for a while (Redis was away), so
            that a worker's silence says nothing about it.
        delivery_s: how long a message may take to its worker.
    """
    delivery_ms = 1000 * delivery_s
    by_queue = {gpu.queue: gpu for gpu in gpus}
    lost = []
    for out in outstanding:
        gpu = by_queue.get(out.queue)
        if gpu is None:
            lost.append(LostRange(out, True, "its worker left the pool"))
        elif gpu.worker != out.worker:
            lost.append(LostRange(out, True, "its worker was restarted"))
        elif not gpu.is_live:
            if not trust_silence:
                continue
            lost.append(LostRange(out, True, f"its worker was silent for {gpu.silent_s:.1f} s"))
        elif gpu.hangs:
            lost.append(LostRange(out, True, f"its GPU hangs since {gpu.pass_s:.0f} s"))
        elif (
            out.key not in gpu.held
            and len(gpu.held) < DEPTH
            and now_ms - out.assigned_ms > delivery_ms
            # What the worker holds must have been said well after the range was sent.
            and gpu.seen_ms - out.assigned_ms > delivery_ms / 2
        ):
            lost.append(LostRange(out, False, "its message did not arrive"))
    return lost


def plan(
    rounds: Sequence[RoundStatus],
    gpus: Sequence[Gpu],
    outstanding: Sequence[OutstandingRange],
    now_ms: int,
    range_s: float = RANGE_S,
) -> list[Assignment]:
    """Decide what to send where, now.

    Args:
        rounds: active rounds.
        gpus: the pool; dead and draining workers get nothing.
        outstanding: ranges out on GPUs, lost ones left out.
        now_ms: the clock of deadlines.
        range_s: seconds that one range should take.

    Returns:
        Assignments in the order to make them: idle GPUs first.
    """
    lines = {
        gpu.queue: _Line(gpu) for gpu in gpus if gpu.is_live and not gpu.draining and not gpu.hangs
    }
    standings = {status.round_id: _Standing.of(status) for status in rounds}
    for out in outstanding:  # one pass: there are two ranges a GPU, ten times a second
        line, standing = lines.get(out.queue), standings.get(out.round_id)
        if standing is not None:
            standing.give(out.left)
        if line is None:
            continue
        spec = standing.status.spec if standing is not None else None
        rate = line.gpu.rate(spec.seq_len, spec.batch_size) if spec is not None else 0.0
        cost_s = line.add(out.left, rate, range_s)
        if standing is not None:
            standing.undone += cost_s / standing.status.spec.share
    _set_virtual_times(list(standings.values()), len(lines))
    assignments = []
    for slot in range(DEPTH):
        for line in lines.values():
            if line.depth > slot:
                continue
            chosen = _next_round(line, standings.values(), now_ms)
            if chosen is None:
                continue
            spec, gpu = chosen.status.spec, line.gpu
            rate = gpu.rate(spec.seq_len, spec.batch_size)
            until_deadline_s = (chosen.status.deadline_ms - now_ms) / 1000 - line.backlog_s
            span_s = range_s if gpu.has_run(spec.seq_len, spec.batch_size) else range_s * PROBE
            num_nonces = range_size(rate, spec.batch_size, min(span_s, until_deadline_s))
            if chosen.unassigned is not None:
                num_nonces = min(num_nonces, chosen.unassigned)
            chosen.give(num_nonces)
            cost = line.add(num_nonces, rate, range_s) / spec.share
            assignments.append(
                Assignment(
                    round_id=chosen.status.round_id,
                    queue=gpu.queue,
                    worker=gpu.worker,
                    num_nonces=num_nonces,
                    vtime_floor=chosen.vtime,
                    vtime_per_nonce=cost / num_nonces,
                )
            )
            chosen.vtime += cost
    return assignments


def range_size(rate: float, batch_size: int, seconds: float) -> int:
    """Return how many nonces take about so many seconds: whole batches, at least one.

    Args:
        rate: nonces per second of the GPU at the round's shape; 0: not known yet.
    """
    return max(1, int(rate * seconds / batch_size + 1e-9)) * batch_size


@dataclass(slots=True)
class _Line:
    """A GPU that takes work, and what is outstanding on its queue."""

    gpu: Gpu
    depth: int = 0  #: ranges
    backlog_s: float = 0.0  #: seconds of work

    def add(self, num_nonces: int, rate: float, range_s: float) -> float:
        """Put one more range on the queue; return its seconds, `range_s` if the rate is not known."""
        seconds = num_nonces / rate if rate > 0 else range_s
        self.depth += 1
        self.backlog_s += seconds
        return seconds


@dataclass(slots=True)
class _Standing:
    """A round and how much it has been given."""

    status: RoundStatus
    unassigned: int | None  #: nonces left to give; None: no end
    undone: float = 0.0  #: virtual time charged for what is outstanding on these GPUs
    vtime: float = 0.0

    @classmethod
    def of(cls, status: RoundStatus) -> _Standing:
        limit = status.spec.max_nonces
        settled = status.checked + status.abandoned
        return cls(status, None if limit is None else max(0, limit - settled))

    def give(self, num_nonces: int) -> None:
        """Take nonces off what is left to give."""
        if self.unassigned is not None:
            self.unassigned = max(0, self.unassigned - num_nonces)


def _next_round(line: _Line, standings: Iterable[_Standing], now_ms: int) -> _Standing | None:
    """Return the round with the least virtual time among those that this GPU could begin in time."""
    gpu = line.gpu
    fits = [
        one
        for one in standings
        if (spec := one.status.spec).is_served_by(gpu.info)
        and spec.is_held_by(gpu.info)
        and one.status.deadline_ms
        > now_ms + 1000 * (line.backlog_s + gpu.least_batch_s(spec.seq_len, spec.batch_size))
        and one.unassigned != 0
    ]
    # A new round starts level with the furthest of the others and has to win that tie; otherwise that one
    # would be served and the new one start from where it is then, again and again.
    return min(
        fits,
        key=lambda one: (
            one.vtime,
            one.status.vtime is not None,
            one.status.created_ms,
            one.status.round_id,
        ),
        default=None,
    )


def _set_virtual_times(standings: Sequence[_Standing], num_gpus: int) -> None:
    """Set each round's virtual time, with a start for new rounds and the lag of others bounded.

    A round starts at the least virtual time of the others, counting only what was done for them.
    Counting what they were charged for and wait for, too, would put a round that begins a moment after
    another behind it for good.
    """
    known = [(one.status.vtime, one.undone) for one in standings if one.status.vtime is not None]
    start = min((max(0.0, vtime - undone) for vtime, undone in known), default=0.0)
    floor = max((vtime for vtime, _ in known), default=0.0) - MAX_LAG_S * max(1, num_gpus)
    for one in standings:
        one.vtime = start if one.status.vtime is None else max(one.status.vtime, floor)
