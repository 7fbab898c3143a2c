"""Whole rounds through real processes, while those processes die."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.spec import RoundState
from tests.support.stack import Stack

#: Enough to outlast a worker's death and the time until it is noticed.
NUM_NONCES = 2000


def _queues_at_work(stack: Stack, round_id: str) -> set[str]:
    """Return the queues that have ranges of a round."""
    return {out.queue for out in stack.backend.store.outstanding([round_id])}


def test_a_killed_worker_loses_and_repeats_nothing(stack: Stack) -> None:
    """kill -9 on one of two workers: its ranges go to the other one."""
    round_id = stack.start(max_nonces=NUM_NONCES)
    stack.wait_checked(round_id, 400)
    # Suspended first: what it has then it still has when it dies.
    stack.processes["gpu1"].send_signal(signal.SIGSTOP)
    stack.wait(lambda: "gpu1" in _queues_at_work(stack, round_id), "a range of gpu1")
    stack.kill("gpu1")
    assert stack.wait_over(round_id).state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, NUM_NONCES)
    assert stack.status(round_id).ranges_returned > 0


@pytest.mark.long
def test_a_worker_that_leaves_hands_its_work_back_and_one_that_joins_gets_some(
    stack: Stack,
) -> None:
    """SIGTERM: it leaves the pool with code 0, the other one does the rest; one that starts in a round takes part."""
    round_id = stack.start(max_nonces=NUM_NONCES)
    stack.wait_checked(round_id, 400)
    assert stack.terminate("gpu1") == 0
    assert {gpu.queue for gpu in stack.backend.pool.all()} == {"gpu0"}
    # The scheduler may hand it one more in that very moment.
    stack.wait(lambda: "gpu1" not in _queues_at_work(stack, round_id), "its ranges to be back")
    assert stack.wait_over(round_id).state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, NUM_NONCES)

    round_id = stack.start()
    stack.wait_checked(round_id, 50)
    stack.worker("gpu1")
    stack.wait_live("gpu0", "gpu1")
    stack.wait(
        lambda: any(
            entry.queue == "gpu1"
            for entry in stack.backend.store.iter_proofs(stack.status(round_id))
        ),
        "a batch of gpu1",
    )


@pytest.mark.long
def test_another_scheduler_takes_over(stack: Stack) -> None:
    """kill -9 on the leading scheduler: the one that stood by goes on with all rounds."""
    stack.scheduler("standby")
    # A start takes seconds on a busy machine: without this the round could end before it.
    stack.wait(lambda: "stands by" in stack.log("standby").read_text(), "the second scheduler")
    # More than the GPUs hold when the leader dies, a second of work each, on a fast machine too.
    num_nonces = 4 * NUM_NONCES
    round_id = stack.start(max_nonces=num_nonces)
    stack.wait_checked(round_id, 200)
    stack.kill("scheduler")
    assert stack.wait_over(round_id).state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, num_nonces)
    assert "This scheduler leads" in stack.log("standby").read_text()
    stack.processes["scheduler"] = stack.processes.pop("standby")


def test_redis_restarted_mid_round(stack: Stack) -> None:
    """kill -9 on Redis: everyone waits, carries on when it is back, and nothing counts twice."""
    round_id = stack.start(max_nonces=NUM_NONCES)
    stack.wait_checked(round_id, 400)
    before = stack.status(round_id).checked
    stack.kill_redis()
    stack.server.ensure()
    stack.wait(lambda: stack.status(round_id).checked >= before, "the data to be back")
    assert stack.wait_over(round_id).state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, NUM_NONCES)
    stack.check_alive()


def test_a_worker_waits_for_redis_at_its_start(stack: Stack, tmp_path: Path) -> None:
    """A worker that starts before its Redis, as after a power cut, joins the pool when that is up."""
    server = RedisServer(tmp_path / "late")
    log = tmp_path / "waiting.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "pocqueue", "worker", "-Q", "gpu0"],
            env=stack.env | {"POCQUEUE_REDIS_URL": server.url},
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        stack.wait(lambda: "Waiting: Redis" in log.read_text(), "the worker to wait")
        server.ensure()
        stack.wait(lambda: "gpu0 is in the pool" in log.read_text(), "the worker in the pool")
    finally:
        worker.terminate()
        assert worker.wait(timeout=300) == 0
        server.stop()
