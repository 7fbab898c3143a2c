"""The scheduler's decisions: values in, values out. No Redis, no Celery, no clock.

Promises:
- Each GPU queue holds at most two ranges, one running and one waiting, each about a second of that
  GPU's work, so that a GPU never waits for the scheduler and a stopped round wastes little.
- GPU time is shared among active rounds by their share (start-time fair queueing: the round with
  the least GPU seconds per share goes next; one that joins begins where the others are).
- Nothing is sent whose first batch could not be done before its round's deadline.
- The ranges of a dead, restarted or hanging worker, and those whose message never arrived, go to
  others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.records import Assignment, OutstandingRange, RoundStatus

#: Ranges on one GPU queue: one running, one waiting.
DEPTH = 2
#: After this long a live worker must have taken its range from the queue, or the message is lost.
DELIVERY_MS = 3000
#: How long a GPU should take for one range.
RANGE_S = 1.0
#: Part of a range that a GPU gets of a shape which it never ran. Its rate is a guess then, by which the
#: round is charged too: with whole ranges a round that began a moment before another kept, for good,
#: what it had been charged too little for.
PROBE = 0.2
#: GPU seconds by which a round may lag behind the foremost one, for every GPU. A round that could
#: not use any GPU for a while does not get all of them for as long afterwards.
MAX_LAG_S = 2.0 * DEPTH


@dataclass(frozen=True, slots=True)
class LostRange:
    """A range that its GPU will not finish."""

    range: OutstandingRange
    #: The worker died on it; else its message never arrived.
    failed: bool
    why: str


def find_lost(
    outstanding: Sequence[OutstandingRange],
    gpus: Sequence[Gpu],
    now_ms: int,
    *,
    trust_silence: bool = True,
) -> list[LostRange]:
    """Return the ranges that must be given to others.

    Args:
        outstanding: ranges out on GPUs, of any rounds.
        gpus: the pool as the last heartbeats had it, dead workers too.
        now_ms: the clock that heartbeats and assignments are stamped with.
        trust_silence: False where heartbeats could not be told for a while (Redis was away), so
            that a worker's silence says nothing about it.
    """
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
            and now_ms - out.assigned_ms > DELIVERY_MS
            # What the worker holds must have been said well after the range was sent.
            and gpu.seen_ms - out.assigned_ms > DELIVERY_MS / 2
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
    by_id = {status.round_id: status for status in rounds}
    ready = [gpu for gpu in gpus if gpu.is_live and not gpu.draining and not gpu.hangs]
    backlog_s, counts = _backlogs(outstanding, ready, by_id, range_s)
    unassigned = _unassigned(rounds, outstanding)
    vtimes = _virtual_times(rounds, _ahead(outstanding, ready, by_id, range_s), len(ready))
    assignments = []
    for slot in range(DEPTH):
        for gpu in ready:
            if counts[gpu.queue] > slot:
                continue
            ahead_s = backlog_s[gpu.queue]
            status = _next_round(gpu, rounds, vtimes, unassigned, now_ms, ahead_s)
            if status is None:
                continue
            spec = status.spec
            rate = gpu.rate(spec.seq_len, spec.batch_size)
            until_deadline_s = (status.deadline_ms - now_ms) / 1000 - ahead_s
            span_s = range_s if gpu.has_run(spec.seq_len, spec.batch_size) else range_s * PROBE
            num_nonces = range_size(rate, spec.batch_size, min(span_s, until_deadline_s))
            left = unassigned[status.round_id]
            if left is not None:
                num_nonces = min(num_nonces, left)
                unassigned[status.round_id] = left - num_nonces
            cost_s = num_nonces / rate if rate > 0 else range_s
            vtime = vtimes[status.round_id]
            vtimes[status.round_id] += cost_s / spec.share
            counts[gpu.queue] += 1
            backlog_s[gpu.queue] += cost_s
            assignments.append(
                Assignment(
                    round_id=status.round_id,
                    queue=gpu.queue,
                    worker=gpu.worker,
                    num_nonces=num_nonces,
                    vtime_floor=vtime,
                    vtime_per_nonce=cost_s / spec.share / num_nonces,
                )
            )
    return assignments


def range_size(rate: float, batch_size: int, seconds: float) -> int:
    """Return how many nonces take about so many seconds: whole batches, at least one.

    Args:
        rate: nonces per second of the GPU at the round's shape; 0 where it is not known yet.
    """
    return max(1, int(rate * seconds / batch_size + 1e-9)) * batch_size


def _next_round(
    gpu: Gpu,
    rounds: Sequence[RoundStatus],
    vtimes: Mapping[str, float],
    unassigned: Mapping[str, int | None],
    now_ms: int,
    ahead_s: float,
) -> RoundStatus | None:
    """Return the round that is furthest behind among those this GPU could begin in time."""
    fits = [
        status
        for status in rounds
        if status.spec.is_served_by(gpu.info)
        and status.spec.seq_len <= gpu.info.max_seq_len
        and status.deadline_ms
        > now_ms + 1000 * (ahead_s + gpu.least_batch_s(status.spec.seq_len, status.spec.batch_size))
        and unassigned[status.round_id] != 0
    ]
    # A newcomer stands level with the one furthest behind; it has to win that tie, or it would stand
    # there for ever while that one moves on.
    return min(
        fits,
        key=lambda s: (vtimes[s.round_id], s.vtime is not None, s.created_ms, s.round_id),
        default=None,
    )


def _backlogs(
    outstanding: Sequence[OutstandingRange],
    gpus: Collection[Gpu],
    rounds: Mapping[str, RoundStatus],
    range_s: float,
) -> tuple[dict[str, float], dict[str, int]]:
    """Return, by queue, the seconds of work ahead and the number of ranges."""
    backlog_s = {gpu.queue: 0.0 for gpu in gpus}
    counts = {gpu.queue: 0 for gpu in gpus}
    by_queue = {gpu.queue: gpu for gpu in gpus}
    for out in outstanding:
        gpu, status = by_queue.get(out.queue), rounds.get(out.round_id)
        if gpu is None:
            continue
        counts[gpu.queue] += 1
        rate = gpu.rate(status.spec.seq_len, status.spec.batch_size) if status else 0.0
        backlog_s[gpu.queue] += out.left / rate if rate > 0 else range_s
    return backlog_s, counts


def _unassigned(
    rounds: Sequence[RoundStatus], outstanding: Sequence[OutstandingRange]
) -> dict[str, int | None]:
    """Return how many nonces each round has left to give; None: no end."""
    out_on_gpus: dict[str, int] = {}
    for out in outstanding:
        out_on_gpus[out.round_id] = out_on_gpus.get(out.round_id, 0) + out.left
    left: dict[str, int | None] = {}
    for status in rounds:
        limit = status.spec.max_nonces
        settled = status.checked + status.abandoned + out_on_gpus.get(status.round_id, 0)
        left[status.round_id] = None if limit is None else max(0, limit - settled)
    return left


def _ahead(
    outstanding: Sequence[OutstandingRange],
    gpus: Collection[Gpu],
    rounds: Mapping[str, RoundStatus],
    range_s: float,
) -> dict[str, float]:
    """Return, by round, the virtual time that it was charged for work which is still to be done."""
    ahead = dict.fromkeys(rounds, 0.0)
    by_queue = {gpu.queue: gpu for gpu in gpus}
    for out in outstanding:
        gpu, status = by_queue.get(out.queue), rounds.get(out.round_id)
        if gpu is not None and status is not None:
            rate = gpu.rate(status.spec.seq_len, status.spec.batch_size)
            ahead[out.round_id] += (out.left / rate if rate > 0 else range_s) / status.spec.share
    return ahead


def _virtual_times(
    rounds: Sequence[RoundStatus], ahead: Mapping[str, float], num_gpus: int
) -> dict[str, float]:
    """Return each round's virtual time: newcomers at the back, stragglers pulled up.

    The back is where the others are with what was done for them. Where they are with what lies on
    the GPUs for them too would make a round that begins a moment after another lag behind it for good.
    """
    known = [
        (status.vtime, ahead[status.round_id]) for status in rounds if status.vtime is not None
    ]
    back = min((max(0.0, vtime - undone) for vtime, undone in known), default=0.0)
    front = max((vtime for vtime, _ in known), default=0.0)
    floor = front - MAX_LAG_S * max(1, num_gpus)
    return {
        status.round_id: back if status.vtime is None else max(status.vtime, floor)
        for status in rounds
    }
