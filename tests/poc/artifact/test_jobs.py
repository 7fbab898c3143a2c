"""Jobs of artifacts: their order, their bounds, how each ends, and who hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pocqueue.errors import EngineError
from pocqueue.poc.artifact.bodies import GenerateBody
from pocqueue.poc.artifact.data import encode
from pocqueue.poc.artifact.jobs import Job, JobQueue, JobState
from pocqueue.poc.artifact.refusals import NoncesDiffer, QueueFull, RequestFailed, UnknownRequest
from pocqueue.poc.scheme import ProofSearch
from tests.support.waiting import Clock, until


def artifact_of(nonce: int) -> str:
    """Return the artifact of a nonce, far from those of the next eleven."""
    return encode([[float(i == nonce % 12) for i in range(12)]])[0]


def body_of(nonces: Sequence[int], **fields: Any) -> GenerateBody:
    search = {"block_hash": "9F2C", "block_height": 7, "public_key": "02ab"}
    node = {"node_id": 0, "node_count": 1, "params": {"model": "m", "seq_len": 16}}
    return GenerateBody.model_validate(search | node | {"nonces": list(nonces)} | fields)


def job_of(nonces: Sequence[int], **fields: Any) -> Job:
    return Job.of(body_of(nonces, **fields), 4)


def claims_of(vectors: dict[int, str]) -> dict[str, Any]:
    return {"artifacts": [{"nonce": n, "vector_b64": text} for n, text in vectors.items()]}


class Computer:
    """Computes artifacts by a formula.

    Attributes:
        pieces: of which keys, in order, and the nonces of each.
        gate: pieces wait here while it is cleared.
        missing: nonces that have no artifact.
        failure: raised in place of an answer.
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[str, list[int]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.missing: set[int] = set()
        self.failure: Exception | None = None

    async def __call__(self, search: ProofSearch, nonces: Sequence[int]) -> list[str | None]:
        self.pieces.append((search.public_key, list(nonces)))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [None if nonce in self.missing else artifact_of(nonce) for nonce in nonces]


@pytest.fixture
def computer() -> Computer:
    return Computer()


@asynccontextmanager
async def queue_of(computer: Computer, **bounds: Any) -> AsyncIterator[JobQueue]:
    async with JobQueue(computer, **bounds) as queue:
        yield queue


async def test_artifacts_of_the_nonces_that_are_asked_for(computer: Computer) -> None:
    """In their order, in passes of the asked size, or of the door's; those without one are left out."""
    computer.missing = {5}
    async with queue_of(computer) as queue:
        job = job_of([9, 5, 7, 1, 3])
        queue.submit(job)
        assert await queue.result(job) == {
            "status": "completed",
            "request_id": job.request_id,
            "artifacts": [
                {"nonce": nonce, "vector_b64": artifact_of(nonce)} for nonce in (9, 7, 1, 3)
            ],
            "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
        }
        small = job_of([1, 2, 3], batch_size=2)
        queue.submit(small)
        await queue.result(small)
    assert [piece for _, piece in computer.pieces] == [[9, 5, 7, 1], [3], [1, 2], [3]]


async def test_several_passes_are_a_piece_where_there_are_several_gpus(computer: Computer) -> None:
    async with queue_of(computer, passes=3) as queue:
        job = job_of(range(14))
        queue.submit(job)
        await queue.result(job)
    assert [len(piece) for _, piece in computer.pieces] == [12, 2]


async def test_claims_are_judged(computer: Computer) -> None:
    """By the bounds of the request; a nonce that we could not compute does not count."""
    computer.missing = {5}
    claims = claims_of(
        {1: artifact_of(1), 2: artifact_of(3), 3: "", 4: artifact_of(4), 5: artifact_of(5)}
    )
    bounds = {"dist_threshold": 0.4, "p_mismatch": 0.1, "p_value_threshold": 0.06}
    async with queue_of(computer) as queue:
        job = job_of(range(1, 6), validation=claims, stat_test=bounds, url="http://receiver/x")
        queue.submit(job)
        answer = await queue.result(job)
    assert answer.pop("p_value") == pytest.approx(0.0523)
    assert answer == {
        "status": "completed",
        "request_id": job.request_id,
        "n_total": 4,
        "n_mismatch": 2,
        "mismatch_nonces": [2, 3],
        "fraud_detected": True,
    }
    kind, body = job.post()
    assert (kind, body["n_mismatch"], body["public_key"]) == ("validated", 2, "02ab")


async def test_no_claims_are_legal(computer: Computer) -> None:
    """Nothing is computed, and nobody is a cheat."""
    async with queue_of(computer) as queue:
        job = job_of([], validation={"artifacts": []})
        queue.submit(job)
        answer = await queue.result(job)
    assert (answer["n_total"], answer["p_value"], answer["fraud_detected"]) == (0, 1.0, False)
    assert computer.pieces == []


async def test_claims_that_nobody_can_check_are_no_verdict(computer: Computer) -> None:
    """A receiver takes n_total 0 for a vote against their maker."""
    computer.missing = {1, 2}
    done: list[Job] = []
    async with queue_of(computer, on_completed=done.append) as queue:
        job = job_of([1, 2], validation=claims_of({1: artifact_of(1), 2: artifact_of(2)}))
        queue.submit(job)
        with pytest.raises(RequestFailed, match="None of 2 nonces has an artifact"):
            await queue.result(job)
    assert done == []


@pytest.mark.parametrize("nonces", [[1], [1, 2, 3], []])
def test_other_claims_than_nonces_are_refused(nonces: list[int]) -> None:
    """By their sets; how often one is there does not matter."""
    claims = claims_of({1: artifact_of(1), 2: artifact_of(2)})
    with pytest.raises(NoncesDiffer, match=r"validation\.artifacts nonces must match nonces field"):
        job_of(nonces, validation=claims)
    assert job_of([2, 1, 2], validation=claims).claims is not None


async def test_first_come_first_served(computer: Computer) -> None:
    """One at a time, and each says how it stands."""
    computer.gate.clear()
    async with queue_of(computer) as queue:
        jobs = [job_of([number], public_key=f"key-{number}") for number in range(3)]
        for job in jobs:
            queue.submit(job)
        await until(lambda: computer.pieces)
        assert [job.answer() for job in jobs] == [
            {"status": status, "request_id": job.request_id}
            for job, status in zip(jobs, ("running", "queued", "queued"), strict=True)
        ]
        assert queue.num_waiting == 2
        computer.gate.set()
        await until(lambda: jobs[-1].over)
    assert [key for key, _ in computer.pieces] == ["key-0", "key-1", "key-2"]


async def test_several_at_a_time(computer: Computer) -> None:
    """Begun in their order; one that ends, or is cancelled, makes room for the next one."""
    computer.gate.clear()
    async with queue_of(computer, at_once=2) as queue:
        jobs = [job_of([number], public_key=f"key-{number}") for number in range(5)]
        for job in jobs:
            queue.submit(job)
        await until(lambda: len(computer.pieces) == 2)
        assert (queue.num_open, queue.num_waiting) == (5, 3)
        queue.cancel(jobs[0], "no longer wanted")
        await until(lambda: len(computer.pieces) == 3)
        assert [job.state for job in jobs[1:]] == [JobState.RUNNING] * 2 + [JobState.QUEUED] * 2
        computer.gate.set()
        await until(lambda: not queue.num_open)
    assert [key for key, _ in computer.pieces] == [f"key-{number}" for number in range(5)]
    assert [job.over for job in jobs] == [True] * 5


async def test_what_was_taken_before_is_not_refused(computer: Computer) -> None:
    """By an earlier run of the program, which had some running beside those that waited."""
    async with queue_of(computer, max_nonces=2) as queue:
        job = job_of(range(3))
        with pytest.raises(QueueFull):
            queue.submit(job)
        queue.submit(job, is_known=True)
        assert len((await queue.result(job))["artifacts"]) == 3


async def test_jobs_stand_still_until_it_is_their_time(computer: Computer) -> None:
    """Before each piece; waiting for it costs none of a piece's time, and it can be cancelled."""
    generating = asyncio.Event()

    async with queue_of(computer, ready=generating.wait, piece_timeout_s=1e-9) as queue:
        job, other = job_of([1]), job_of([2])
        queue.submit(job)
        queue.submit(other)
        await until(lambda: job.state is JobState.RUNNING)
        for _ in range(20):
            await asyncio.sleep(0)
        assert computer.pieces == []
        queue.cancel(job, "no longer wanted")
        queue.piece_timeout_s = 60
        generating.set()
        await until(lambda: other.over)
    assert [piece for _, piece in computer.pieces] == [[2]]
    assert job.answer()["error"] == "no longer wanted"


async def test_what_waits_is_bounded(computer: Computer) -> None:
    """In the network's words; a job without nonces takes room, too."""
    computer.gate.clear()
    async with queue_of(computer, max_nonces=10) as queue:
        queue.submit(job_of([0]))
        await until(lambda: computer.pieces)
        queue.submit(job_of(range(8)))
        queue.submit(job_of([]))
        with pytest.raises(QueueFull) as caught:
            queue.submit(job_of(range(2)))
        assert str(caught.value) == "Queue full: 9 nonces queued, limit is 10"
        assert caught.value.http_status == 429
        queue.submit(job_of([1]))
        computer.gate.set()
        await until(lambda: not queue.num_waiting)


async def test_a_request_that_is_larger_than_all_is_refused(computer: Computer) -> None:
    async with queue_of(computer) as queue:
        with pytest.raises(QueueFull, match="Queue full: 0 nonces queued, limit is 100000"):
            queue.submit(job_of(range(100_001)))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (EngineError("The engine failed: out of memory"), "The engine failed: out of memory"),
        (RuntimeError("odd\nmore"), "The engine failed: RuntimeError: odd"),
    ],
)
async def test_a_piece_that_fails_is_the_end_of_its_job(
    computer: Computer, failure: Exception, words: str
) -> None:
    """And not of the next one."""
    done: list[Job] = []
    async with queue_of(computer, on_completed=done.append) as queue:
        computer.failure = failure
        job = job_of(range(8))
        queue.submit(job)
        with pytest.raises(RequestFailed, match=words) as caught:
            await queue.result(job)
        assert caught.value.http_status == 503
        assert len(computer.pieces) == 1
        fields = {"status": "failed", "request_id": job.request_id, "error": words}
        assert queue.find(job.request_id).answer() == fields
        computer.failure = None
        again = job_of([1])
        queue.submit(again)
        await queue.result(again)
    assert done == [again]


async def test_a_piece_that_takes_too_long_fails(computer: Computer) -> None:
    computer.gate.clear()
    async with queue_of(computer, piece_timeout_s=0.01) as queue:
        job = job_of(range(4))
        queue.submit(job)
        await until(lambda: job.over)
        assert job.error == "4 nonces were not computed within 0.01 s."


async def test_nobody_waits_for_ever(computer: Computer) -> None:
    """Who waited too long is told so, and the job makes room."""
    computer.gate.clear()
    async with queue_of(computer, wait_s=0.01) as queue:
        running, waiting = job_of([1]), job_of([2])
        queue.submit(running)
        queue.submit(waiting)
        with pytest.raises(RequestFailed, match=r"Not computed within 0\.01 s: a round generates"):
            await queue.result(waiting)
        assert queue.num_waiting == 0
        assert not running.over


@pytest.mark.parametrize("runs", [True, False])
async def test_a_client_that_goes_away_takes_its_job_along(
    computer: Computer, *, runs: bool
) -> None:
    """Whether it runs or waits; the next one is not held up."""
    computer.gate.clear()
    async with queue_of(computer) as queue:
        others = [] if runs else [job_of([0])]
        job, after = job_of([1]), job_of([2], public_key="after")
        for one in [*others, job, after]:
            queue.submit(one)
        client = asyncio.create_task(queue.result(job))
        await until(lambda: computer.pieces)
        client.cancel()
        await asyncio.wait([client])
        assert job.state is JobState.FAILED
        computer.gate.set()
        await until(lambda: after.over)
        assert after.state is JobState.COMPLETED
    assert [1] not in [piece for _, piece in computer.pieces][len(others) + runs :]


async def test_a_stop_ends_what_is_not_done(computer: Computer) -> None:
    """Results that are there stay; who waits is told."""
    async with queue_of(computer) as queue:
        done = job_of([1])
        queue.submit(done)
        await queue.result(done)
        computer.gate.clear()
        running, waiting = job_of([2]), job_of([3])
        queue.submit(running)
        queue.submit(waiting)
        client = asyncio.create_task(queue.result(waiting))
        await until(lambda: len(computer.pieces) == 2)
        queue.cancel_all("Cancelled by /stop.")
        with pytest.raises(RequestFailed, match=r"Cancelled by /stop\."):
            await client
        for job in (running, waiting):
            assert queue.find(job.request_id).answer()["error"] == "Cancelled by /stop."
        assert queue.find(done.request_id).answer()["status"] == "completed"
        assert queue.num_waiting == 0
        computer.gate.set()
        after = job_of([4])
        queue.submit(after)
        assert (await queue.result(after))["status"] == "completed"


async def test_results_are_kept_for_a_while(computer: Computer) -> None:
    """From the job's end on; then it is as if there had never been one."""
    clock = Clock()
    async with queue_of(computer, clock=clock, keep_s=300) as queue:
        job = job_of([1])
        queue.submit(job)
        await queue.result(job)
        clock.now_s += 300
        assert queue.find(job.request_id) is job
        clock.now_s += 1
        with pytest.raises(UnknownRequest, match=f"Request {job.request_id} not found"):
            queue.find(job.request_id)
        with pytest.raises(UnknownRequest):
            queue.find("no-such-id")


async def test_who_is_to_hear_of_it_is_told_once(computer: Computer) -> None:
    """Of what is completed, with the request's id in the body."""
    done: list[Job] = []
    async with queue_of(computer, on_completed=done.append) as queue:
        job = job_of([1], url="http://receiver/x")
        queue.submit(job)
        await queue.result(job)
    assert done == [job]
    kind, body = job.post()
    assert (kind, body["request_id"], body["node_id"]) == ("generated", job.request_id, 0)
    assert body["artifacts"] == [{"nonce": 1, "vector_b64": artifact_of(1)}]
