"""Requests of the chain for given nonces, kept on disk until they are computed and their URL is told.

Each is a session of the outbox, as a search is: what was answered "queued" is there after a restart, is computed
then, and what came of it waits in the outbox for its receiver. One that somebody waits for has no need of that.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

from pydantic import ValidationError
from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.errors import NodeStateError, OutboxError, PocqueueError
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.messages import Origin, Session
from pocqueue.node.mlnode.compute import Computer, JobSearch
from pocqueue.node.searches import NO_SEARCH
from pocqueue.poc.artifact.bodies import GenerateBody
from pocqueue.poc.artifact.jobs import Job, JobQueue, JobState
from pocqueue.poc.search import ANY_BATCH_SIZE

logger = logging.getLogger(__name__)

#: Before the id of a request in that of its session.
PREFIX: Final = "request-"


@dataclass(eq=False)
class Jobs(AsyncClosing):
    """The requests at hand, for coroutines of one event loop."""

    outgoing: Dispatcher  #: where results and verdicts go
    computer: Computer
    _: KW_ONLY
    #: For one request: longer than the network's stage of validation, after which nobody wants a verdict.
    timeout_s: float = 1800.0
    wait_s: float = (
        60.0  #: that somebody may wait for an answer; the public proxy gives up then, too
    )
    stop_s: float = 2.0  #: that the end of all requests waits for the disk
    queue: JobQueue = field(init=False)
    _kept: dict[Job, asyncio.Task[None]] = field(default_factory=dict, init=False)
    _closing: bool = field(default=False, init=False)
    _num_stops: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.queue = JobQueue(
            self.computer,
            # All nonces at once: they are shared out among GPUs, or an engine's turns, further down.
            passes=1 << 20,
            at_once=self.computer.at_once,
            piece_timeout_s=self.timeout_s,
            wait_s=self.wait_s,
        )

    async def take(self, body: GenerateBody) -> Job:
        """Begin with a request; one that nobody waits for is on disk when this returns.

        Raises:
            NoncesDiffer, InvalidRound, QueueFull: it cannot be taken.
            NodeStateError: a stop came meanwhile.
            PocqueueError: it cannot be computed here; see `Computer.check`.
            OutboxError: it cannot be kept.
        """
        job = _job_of(body)
        num_stops = self._num_stops
        await self.computer.check(_search_of(job))
        if self._num_stops > num_stops or self._closing:
            raise NodeStateError("The request was stopped before it was begun")
        self.queue.submit(job)
        if not body.wait:
            # As a session, which the outbox has for searches of whatever this node works with.
            origin: Origin = "queue" if self.computer.searches.engine is None else "engine"
            session = PREFIX + job.request_id, origin, body.model_dump_json()
            try:
                await asyncio.to_thread(self.outgoing.outbox.open_session, *session)
            except OutboxError:
                self.queue.cancel(job, "It could not be kept.")
                raise
            self._keep(job)
        return job

    async def resume(self, session: Session) -> bool:
        """Go on with a request of an earlier run of this program; False: the session is none.

        Raises:
            OutboxError: the disk is in trouble.
        """
        if not session.session_id.startswith(PREFIX):
            return False
        request_id = session.session_id.removeprefix(PREFIX)
        try:
            # One whose result is in the outbox has a cursor.
            body = None if session.cursor else GenerateBody.model_validate_json(session.request)
            job = None if body is None else _job_of(body, request_id)
        except (ValidationError, PocqueueError) as exc:
            logger.error("Request %s cannot go on and is closed: %s", request_id, exc)
            job = None
        if job is None:
            await asyncio.to_thread(self._close_session, session.session_id)
            return True
        self.queue.submit(job, is_known=True)
        self._keep(job)
        logger.info("Request %s goes on after a restart.", request_id)
        return True

    async def stop(self) -> bool:
        """End all requests, for good; say whether there were any."""
        self._num_stops += 1
        found = self.queue.num_open > 0
        self.queue.cancel_all("Cancelled by /stop.")
        if kept := list(self._kept.values()):
            await asyncio.wait(kept, timeout=self.stop_s)
        return found

    @override
    async def close(self) -> None:
        """End this process's part; what is on disk goes on with the next run."""
        self._closing = True
        self.computer.close()
        await self.queue.close()
        if kept := list(self._kept.values()):
            await asyncio.wait(kept, timeout=self.stop_s)
            for task in kept:
                task.cancel()

    def _keep(self, job: Job) -> None:
        task = asyncio.create_task(self._finish(job), name=f"request {job.request_id}")
        self._kept[job] = task
        task.add_done_callback(lambda _: self._kept.pop(job))

    async def _finish(self, job: Job) -> None:
        """Wait for a request's end, and write it to disk."""
        await job.ended.wait()
        if job.state is JobState.FAILED and self._closing:
            return
        if job.state is JobState.FAILED:
            logger.error("Request %s failed: %s", job.request_id, job.error)
        await self.outgoing.write(self._end, job)
        self.outgoing.notify()

    def _end(self, job: Job) -> None:
        """Put what is to be told into the outbox, and close the session."""
        outbox, session_id = self.outgoing.outbox, PREFIX + job.request_id
        if job.state is JobState.COMPLETED and job.url is not None:
            kind, body = job.post()
            message = self.outgoing.message(
                *(job.request_id, kind, job.url, body, job.nonces), is_signed=False
            )
            outbox.accept(session_id, "", "done", [message])
        self._close_session(session_id)

    def _close_session(self, session_id: str) -> None:
        self.outgoing.outbox.close_session(session_id)
        # What it asked for may be long, and is not needed any more.
        self.outgoing.outbox.set_request(session_id, NO_SEARCH)


def _job_of(body: GenerateBody, request_id: str | None = None) -> Job:
    """Return the job of a request.

    Args:
        request_id: of an earlier run; None: a new one.

    Raises:
        NoncesDiffer, InvalidRound: see `Job.of`.
    """
    job = Job.of(body, ANY_BATCH_SIZE)
    job.request_id = request_id or job.request_id
    names = {"request_id": job.request_id, "model": body.params.model}
    job.search = JobSearch(**job.search.model_dump(), **names)
    return job


def _search_of(job: Job) -> JobSearch:
    assert isinstance(job.search, JobSearch)
    return job.search
