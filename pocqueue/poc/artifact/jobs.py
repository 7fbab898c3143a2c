"""Requests for the artifacts of given nonces, computed in their order, whoever computes them.

Promises:
- First come, first served, a job at a time or so many as `at_once` says. `ready` holds it up between two pieces; only what computes a
  piece is timed.
- What waits is bounded, by nonces; so is how long somebody waits for a job, and how long a result is kept.
- A job ends once: as completed, or as failed with one sentence that says why. Who waits for one gets that or
  the result; a job that nobody waits for any more, though somebody did, makes room for the next one.
- A validation counts the nonces that we could compute. If that is none of them it fails: nobody can say
  anything about the claims then.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.errors import PocqueueError, first_line
from pocqueue.poc.artifact.bodies import (
    GenerateBody,
    ReceivedArtifact,
    validated_body,
    verdict_on,
)
from pocqueue.poc.artifact.data import artifacts_of, encoding, generated_body
from pocqueue.poc.artifact.refusals import NoncesDiffer, QueueFull, RequestFailed, UnknownRequest
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.callback import Kind
from pocqueue.poc.nonces import split
from pocqueue.poc.proofs import Proofs
from pocqueue.poc.scheme import ProofSearch

logger = logging.getLogger(__name__)

#: Computes the artifacts of nonces of a search, as text, in their order; None for one that has none.
Compute = Callable[[ProofSearch, Sequence[int]], Awaitable[Sequence[str | None]]]


class JobState(Enum):
    """How a job stands; values are the wire's words."""

    QUEUED = "queued"  #: it waits for its turn
    RUNNING = "running"  #: it is being computed, or waits between two pieces
    COMPLETED = "completed"  #: its result can be read
    FAILED = "failed"  #: there will be none; `Job.error` says why


@dataclass(eq=False)
class Job:
    """Nonces to compute, or claims to validate."""

    search: ProofSearch  #: of what the nonces are
    proof: Artifact  #: of the search
    nonces: Sequence[int]
    claims: Sequence[ReceivedArtifact] | None = None  #: to be validated; None: nothing is
    url: str | None = None  #: who is told of the result
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    state: JobState = JobState.QUEUED
    #: What `post` is made of: its artifacts, or the verdict.
    found: Proofs | dict[str, Any] | None = None
    error: str | None = None  #: why it failed
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ended_at: float = 0.0  #: by the queue's clock

    @classmethod
    def of(cls, body: GenerateBody, batch_size: int) -> Job:
        """Return the job that a request asks for.

        Args:
            body: of the request.
            batch_size: nonces of a pass if it does not say.

        Raises:
            NoncesDiffer: it validates other nonces than it names.
            InvalidRound: a field is out of bounds.
        """
        claims = None if body.validation is None else body.validation.artifacts
        if claims is not None and {claim.nonce for claim in claims} != set(body.nonces):
            raise NoncesDiffer
        proof = body.proof(**body.stat_test.model_dump())
        return cls(body.search(proof, batch_size), proof, body.nonces, claims, body.url)

    @property
    def size(self) -> int:
        """Nonces that it counts for, where jobs wait: a job without any is one, too."""
        return max(1, len(self.nonces))

    @property
    def over(self) -> bool:
        return self.state in {JobState.COMPLETED, JobState.FAILED}

    def answer(self) -> dict[str, Any]:
        """Return how it stands, with its result or why there is none, as who asks for it is answered."""
        fields: dict[str, Any] = {"status": self.state.value, "request_id": self.request_id}
        if self.state is JobState.FAILED:
            return fields | {"error": self.error}
        if isinstance(self.found, Proofs):
            found = {
                "artifacts": artifacts_of(self.found),
                "encoding": encoding(self.proof.k_dim),
            }
            return fields | found
        return fields | (self.found or {})

    def post(self) -> tuple[Kind, dict[str, Any]]:
        """Return what its URL is told once it is completed: which kind of callback, and the body."""
        if isinstance(self.found, Proofs):
            body = generated_body(self.search, self.found, self.proof.k_dim, self.request_id)
            return "generated", body
        assert self.found is not None
        return "validated", validated_body(self.search, self.request_id, self.found)

    def take(self, computed: Sequence[str | None]) -> Proofs | dict[str, Any]:
        """Return the result, of our artifact of each nonce; for a thread, as a verdict on many takes its time.

        Raises:
            RequestFailed: there are nonces, and we have an artifact of none.
        """
        pairs = zip(self.nonces, computed, strict=True)
        known = [(nonce, text) for nonce, text in pairs if text is not None]
        if self.nonces and not known:
            raise RequestFailed(
                f"None of {len(self.nonces)} nonces has an artifact: the model's hidden states are not finite."
            )
        if self.claims is None:
            return Proofs.of(known)
        return verdict_on(self.proof, self.claims, dict(known))


@dataclass(eq=False)
class JobQueue(AsyncClosing):
    """Computes jobs. Used from one event loop."""

    compute: Compute
    _: KW_ONLY
    ready: Callable[[], Awaitable[object]] | None = (
        None  #: waited for before each piece; without limit
    )
    on_completed: Callable[[Job], None] = lambda _: (
        None
    )  #: called in the event loop; must not raise
    at_once: int = 1  #: jobs that are computed at a time
    passes: int = 1  #: passes of a search's shape that are computed together, as one piece
    max_nonces: int = 100_000  #: that wait, at most
    piece_timeout_s: float = 60.0  #: for one piece; a job that takes longer for one has failed
    keep_s: float = 300.0  #: how long a job can be asked for after its end
    wait_s: float = 300.0  #: longest time that somebody waits for a job
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._jobs: dict[str, Job] = {}  #: all that can be asked for
        self._queue: deque[Job] = deque()
        self._ended: deque[Job] = deque()  #: in the order of their ends
        self._running: dict[Job, asyncio.Task[None]] = {}

    @property
    def num_waiting(self) -> int:
        """Nonces of the jobs that wait for their turn."""
        return sum(job.size for job in self._queue)

    @property
    def num_open(self) -> int:
        """Jobs that run or wait."""
        return len(self._running) + len(self._queue)

    def submit(self, job: Job, *, is_known: bool = False) -> None:
        """Have a job computed behind those that wait.

        Args:
            is_known: it was taken before, by an earlier run of this program, and is not refused.

        Raises:
            QueueFull: too many nonces would wait.
        """
        self._forget()
        if not is_known and self.num_waiting + job.size > self.max_nonces:
            raise QueueFull(self.num_waiting, self.max_nonces)
        self._jobs[job.request_id] = job
        self._queue.append(job)
        self._begin()

    def find(self, request_id: str) -> Job:
        """Return a job.

        Raises:
            UnknownRequest: there is none of that id, or it ended too long ago.
        """
        self._forget()
        if request_id not in self._jobs:
            raise UnknownRequest(request_id)
        return self._jobs[request_id]

    async def result(self, job: Job) -> dict[str, Any]:
        """Wait for a submitted job; it is cancelled with its caller, and when the time is up.

        Returns:
            Its `answer`, completed.

        Raises:
            RequestFailed: it failed; says why.
        """
        try:
            async with asyncio.timeout(self.wait_s):
                await job.ended.wait()
        except TimeoutError:
            self.cancel(
                job,
                f"Not computed within {self.wait_s:g} s: a round generates, or other requests come first. Ask "
                "again, or with wait false.",
            )
        finally:
            self.cancel(job, "Nobody waits for it any more.")
        if job.state is JobState.FAILED:
            raise RequestFailed(job.error)
        return job.answer()

    def cancel(self, job: Job, reason: str) -> None:
        """End a job as failed, unless it is over."""
        if job.over:
            return
        if job in self._running:
            self._running[job].cancel()
        else:
            self._queue.remove(job)
        self._end(job, JobState.FAILED, error=reason)

    def cancel_all(self, reason: str) -> None:
        """End as failed what runs and what waits; results can be read as before."""
        for job in [*self._queue, *self._running]:
            self.cancel(job, reason)

    @override
    async def close(self) -> None:
        """End what is not done."""
        self.cancel_all("The server ends.")
        if self._running:
            await asyncio.wait(self._running.values())

    def _begin(self) -> None:
        """Begin with as many jobs as may run."""
        while self._queue and len(self._running) < self.at_once:
            job = self._queue.popleft()
            job.state = JobState.RUNNING
            task = asyncio.create_task(self._run(job), name="artifact-job")
            self._running[job] = task
            task.add_done_callback(partial(self._ran, job))

    def _ran(self, job: Job, _: asyncio.Task[None]) -> None:
        """Make room for the next one; also where the job was cancelled before its task had begun."""
        del self._running[job]
        self._begin()

    async def _run(self, job: Job) -> None:
        """Compute a job; whatever goes wrong is its end, and not the queue's."""
        try:
            computed: list[str | None] = []
            for piece in split(job.nonces, job.search.pass_size * self.passes):
                if self.ready is not None:
                    await self.ready()
                computed += await self._piece(job, piece)
            found = await asyncio.to_thread(job.take, computed)
        except PocqueueError as exc:
            self._end(job, JobState.FAILED, error=str(exc))
        except Exception as exc:
            logger.exception("A request for artifacts failed")
            self._end(job, JobState.FAILED, error=f"The engine failed: {first_line(exc)}")
        else:
            self._end(job, JobState.COMPLETED, found=found)
            self.on_completed(job)

    async def _piece(self, job: Job, nonces: Sequence[int]) -> Sequence[str | None]:
        try:
            async with asyncio.timeout(self.piece_timeout_s):
                return await self.compute(job.search, nonces)
        except TimeoutError:
            raise RequestFailed(
                f"{len(nonces)} nonces were not computed within {self.piece_timeout_s:g} s."
            ) from None

    def _end(
        self,
        job: Job,
        state: JobState,
        found: Proofs | dict[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        job.state, job.found, job.error = state, found, error
        job.ended_at = self.clock()
        job.ended.set()
        self._ended.append(job)

    def _forget(self) -> None:
        """Forget jobs that ended too long ago."""
        while self._ended and self.clock() - self._ended[0].ended_at > self.keep_s:
            del self._jobs[self._ended.popleft().request_id]
