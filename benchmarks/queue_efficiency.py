"""What Celery, scheduler and store cost a GPU: the whole way against the bare engine in a loop."""

from __future__ import annotations

import time

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample
from pocqueue.engine.base import Engine
from pocqueue.poc.batch import Batch
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.start import decided, deployed_model, draft_spec

#: Short turns, many of them, in the order A B B A: a noisy machine's moods fall on both sides.
NUM_TURNS = 8
TURN_S = 4.0


def queue_efficiency(backend: Backend, engine: Engine, effort: Effort = FULL) -> Figure:
    """Nonces per second of one worker over those of the bare engine, as the median over turns.

    Both use the same model, shape and number of threads, in processes of their own, and one idles
    while the other works. A turn of the worker is measured between its first and its last commit,
    by Redis's clock; the time before the first commit is a benchmark of its own.
    """
    queued, bare = [], []
    for turn in range(effort.runs(NUM_TURNS)):
        sides = [
            lambda turn=turn: bare.append(_bare(engine, turn, effort.seconds(TURN_S))),
            lambda turn=turn: queued.append(_queued(backend, turn, effort)),
        ]
        for side in sides if turn % 2 == 0 else reversed(sides):
            side()
    measured, against = Sample(queued, "nonces/s"), Sample(bare, "nonces/s")
    ratios = Sample([q / b for q, b in zip(queued, bare, strict=True)], "")
    return Figure(
        "queue efficiency",
        measured,
        against,
        "bare engine in a loop",
        ratios.median,
        "ratio at least 0.97",
        ratios.median >= 0.97,
    )


def batch_seconds(engine: Engine, effort: Effort = FULL) -> float:
    """Return the seconds that one batch takes the bare engine."""
    return 32 / _bare(engine, 99, 3.0 * effort.share)


def _bare(engine: Engine, turn: int, seconds: float) -> float:
    spec = draft_spec(block_hash=f"bare-{turn}", public_key="bench")
    config, num = spec, 0
    engine.values(Batch.of(config, range(32)))
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        engine.values(Batch.of(config, range(num, num + spec.batch_size)))
        num += spec.batch_size
    return num / (time.perf_counter() - began)


def _queued(backend: Backend, turn: int, effort: Effort) -> float:
    # A smoke run ends with its fourth batch, however long a busy machine takes for it.
    window_s = TURN_S if effort.is_full else 600.0
    draft = draft_spec(block_hash=f"queued-{turn}", public_key="bench", window_s=window_s)
    info = deployed_model(backend, draft, None)
    round_id = backend.store.create(decided(draft, info, r_target=2.0))
    status = backend.store.status(round_id)
    while status.state.is_active:
        time.sleep(0.25)
        if not effort.is_full and status.checked >= 4 * 32:
            backend.store.close(round_id, RoundState.STOPPED, "smoke run")
        status = backend.store.status(round_id)
    entries = list(backend.store.iter_proofs(status))
    if len(entries) < 3:
        raise RuntimeError(
            f"The worker did {len(entries)} batches in {window_s:.0f} s: this machine is too busy to "
            "measure anything on."
        )
    stamps = [int(entry.cursor.partition("-")[0]) for entry in entries]
    # The first commit closes the time that is not measured, so its nonces do not count.
    return (status.checked - len(entries[0].proofs)) / ((stamps[-1] - stamps[0]) / 1000)
