"""From an artifact's commit on a worker to its receiver, and what the public wire makes of the same."""

from __future__ import annotations

import time
from collections.abc import Mapping

from benchmarks.effort import FULL, Effort
from benchmarks.latency import committed, wait_idle
from benchmarks.services import Receiver, wait_until
from benchmarks.stats import Figure, Sample
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.start import decided, deployed_model, draft_spec

#: Length of the measured round.
ROUND_S = 10.0
#: How often servers of the public network send what they have.
PUBLIC_INTERVAL_S = 5.0


def artifact_figure(way: str, at: Mapping[int, float], arrived: Mapping[int, float]) -> Figure:
    """Say how long artifacts took from commit to receiver.

    Against: the least that the same commits would take if they were sent every five seconds; computed, not measured.

    Args:
        way: by whom they came.
        at: Unix time of each nonce's commit.
        arrived: Unix time at which its post was there whole.
    """
    measured = Sample([1000 * (arrived[nonce] - then) for nonce, then in at.items()], "ms")
    began, interval_s = min(at.values()), PUBLIC_INTERVAL_S
    public = [1000 * (interval_s - (then - began) % interval_s) for then in at.values()]
    return Figure(
        f"artifact: commit on a worker to the receiver, {way}",
        measured,
        Sample(public, "ms"),
        f"the same commits sent every {interval_s:.0f} s, computed",
        measured.median,
        "median under 100 ms",
        measured.median < 100,
    )


def artifact_callback(backend: Backend, effort: Effort = FULL) -> Figure:
    """Measure a round with a callback URL, whose artifacts the scheduler hands to the io worker."""
    with Receiver() as receiver:
        block = f"artifacts-{time.time_ns()}"
        draft = draft_spec(
            scheme="artifact",
            block_hash=block,
            public_key="bench",
            seq_len=256,
            window_s=600.0,
            callback_url=receiver.url,
        )
        round_id = backend.store.create(decided(draft, deployed_model(backend, draft, None)))
        wait_until(lambda: receiver.nonces(block), 120, "the first artifacts")
        time.sleep(effort.seconds(ROUND_S))
        backend.store.close(round_id, RoundState.STOPPED, "benchmark")
        wait_idle(backend)
        at = committed(backend, round_id)
        wait_until(lambda: len(receiver.nonces(block)) >= len(at), 120, "the last artifacts")
        return artifact_figure("by the io worker", at, receiver.nonces(block))
