"""How long until a reader has a committed batch, and until a new round has its first valid nonce."""

from __future__ import annotations

import threading
import time

from benchmarks.effort import FULL, Effort
from benchmarks.services import wait_until
from benchmarks.stats import Figure, Sample
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import Assignment, BatchCommit, RoundStatus
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.start import decided, deployed_model, draft_spec
from pocqueue.rounds.store import START

NUM_COMMITS = 300
NUM_STARTS = 9


def commit_to_reader(backend: Backend, effort: Effort = FULL) -> Figure:
    """Time from just before a commit to its entry in the hands of a blocked reader.

    Against: a bare PING of the same server, the least that any exchange with it costs.
    """
    num_commits = effort.runs(NUM_COMMITS)
    status, range_id = _round_without_gpus(backend, num_commits)
    arrived: list[float] = []
    ready = threading.Event()

    def read() -> None:
        cursor = START
        while len(arrived) < num_commits:
            ready.set()
            for entry in backend.store.read_proofs(status, cursor, block_ms=2000):
                arrived.append(time.perf_counter())
                cursor = entry.cursor

    reader = threading.Thread(target=read)
    reader.start()
    ready.wait()
    sent, pings = [], []
    for i in range(num_commits):
        began = time.perf_counter()
        backend.client.ping()
        pings.append(1000 * (time.perf_counter() - began))
        sent.append(time.perf_counter())
        backend.store.commit_batch(
            BatchCommit(
                status.round_id,
                range_id,
                32 * i,
                32 * (i + 1),
                Proofs([32 * i, 32 * i + 1, 32 * i + 2], [1.3] * 3),
            )
        )
        deadline = time.monotonic() + 10
        while len(arrived) <= i and time.monotonic() < deadline:
            # Lets the reader block again before the next commit.
            time.sleep(0.0005)
    reader.join()
    backend.store.close(status.round_id, RoundState.STOPPED, "benchmark")
    measured = Sample([1000 * (b - a) for a, b in zip(sent, arrived, strict=True)], "ms")
    return Figure(
        "commit to reader",
        measured,
        Sample(pings, "ms"),
        "PING of the same Redis",
        measured.median,
        "median under 10 ms",
        measured.median < 10,
    )


def start_to_first_valid(
    backend: Backend, r_target: float, batch_s: float, effort: Effort = FULL
) -> Figure:
    """Time from the call that makes a round to its first valid nonce at a reader, warm worker.

    Against: one batch of the bare engine, which no queue can beat.
    """
    times = []
    for i in range(effort.runs(NUM_STARTS)):
        draft = draft_spec(
            block_hash=f"first-{i}", public_key="bench", r_target=r_target, window_s=600.0
        )
        info = deployed_model(backend, draft, None)
        began = time.perf_counter()
        round_id = backend.store.create(decided(draft, info))
        status = backend.store.status(round_id)
        while not backend.store.read_proofs(status, START, block_ms=2000):
            pass
        times.append(time.perf_counter() - began)
        backend.store.close(round_id, RoundState.STOPPED, "benchmark")
        wait_idle(backend)
    measured = Sample(times, "s")
    return Figure(
        "round start to first valid nonce",
        measured,
        Sample([batch_s], "s"),
        "one batch of the bare engine",
        measured.median,
        "under 0.5 s",
        measured.median < 0.5,
    )


def _round_without_gpus(backend: Backend, num_commits: int) -> tuple[RoundStatus, int]:
    """Make a round of a model that no GPU has, so that only this benchmark commits to it."""
    from pocqueue.rounds.spec import RoundSpec

    spec = RoundSpec.build(
        block_hash="latency",
        public_key="bench",
        r_target=2.0,
        window_s=120.0,
        model="none",
        model_fingerprint="0" * 64,
    )
    round_id = backend.store.create(spec)
    # A live worker's name, so that the scheduler does not take the range for lost.
    gpu = backend.pool.live()[0]
    wanted = Assignment(round_id, gpu.queue, gpu.worker, 32 * num_commits)
    [assigned] = backend.store.assign_ranges([wanted])
    assert assigned is not None
    return backend.store.status(round_id), assigned.range_id


def committed(backend: Backend, round_id: str) -> dict[int, float]:
    """Return Redis's time of each nonce's commit, in Unix seconds."""
    entries = backend.store.iter_proofs(backend.store.status(round_id))
    return {
        nonce: int(entry.cursor.partition("-")[0]) / 1000
        for entry in entries
        for nonce in entry.proofs.nonces
    }


def wait_idle(backend: Backend) -> None:
    """Wait until no worker holds a range."""
    wait_until(lambda: not any(gpu.held for gpu in backend.pool.live()), 120, "idle workers")
