"""From an artifact's commit on a worker to its round's receiver, and what the public wire makes of the same."""

from __future__ import annotations

import time

from benchmarks.delegation import committed
from benchmarks.effort import FULL, Effort
from benchmarks.latency import wait_idle
from benchmarks.services import Receiver, wait_until
from benchmarks.stats import Figure, Sample
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.start import decided, deployed_model, draft_spec

#: Length of the measured round.
ROUND_S = 10.0
#: How often servers of the public network send what they have.
PUBLIC_INTERVAL_S = 5.0


def artifact_to_receiver(backend: Backend, effort: Effort = FULL) -> Figure:
    """Time from an artifact's commit, by Redis's clock, until a receiver on this machine has the post whole.

    The round has a callback URL, so the scheduler hands its artifacts to the io worker. Against: the least that the
    same commits would take if they were sent every five seconds; computed, not measured.
    """
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
        arrived = receiver.nonces(block)
    measured = Sample([1000 * (arrived[nonce] - then) for nonce, then in at.items()], "ms")
    began = min(at.values())
    public = [
        1000 * (PUBLIC_INTERVAL_S - (then - began) % PUBLIC_INTERVAL_S) for then in at.values()
    ]
    return Figure(
        "artifact: commit on a worker to the round's receiver",
        measured,
        Sample(public, "ms"),
        f"the same commits sent every {PUBLIC_INTERVAL_S:.0f} s, computed",
        measured.median,
        "median under 100 ms",
        measured.median < 100,
    )
