"""The jobs of an agent: taken or refused, run in a sandbox, ended, their results kept on disk.

Nothing here knows a socket. A session looks at what there is to tell whenever `news` is set: what runs, what was
refused, which results wait. So it does not matter when a connection breaks, or how often.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from pocqueue.hosts.agent.errors import SandboxUnavailable, SpoolError
from pocqueue.hosts.agent.messages import Job, JobRef, JobResult
from pocqueue.hosts.agent.sandbox.base import Command, Outcome, Sandbox
from pocqueue.hosts.agent.spool import Attempt, Spool
from pocqueue.hosts.agent.terms import Terms

_log = logging.getLogger(__name__)

#: Seconds between two attempts to write a result to a disk that is full.
RETRY_S = 5.0


@dataclass(eq=False)
class _Running:
    task: asyncio.Task[None]
    stop: asyncio.Event


@dataclass(eq=False)
class Jobs:
    """The jobs of one agent."""

    spool: Spool
    sandbox: Sandbox
    terms: Terms
    retry_s: float = RETRY_S
    #: Set when there is something to tell; whoever tells it clears it.
    news: asyncio.Event = field(default_factory=asyncio.Event)
    #: Why attempts were refused; whoever has told it removes it.
    refused: dict[Attempt, str] = field(default_factory=dict)
    #: Takes no new jobs.
    is_draining: bool = False
    _running: dict[Attempt, _Running] = field(default_factory=dict)

    @property
    def running(self) -> tuple[Attempt, ...]:
        """The attempts that run."""
        return tuple(self._running)

    def refs(self) -> tuple[JobRef, ...]:
        """Return every attempt that is ours: it runs, or its result is not acknowledged yet."""
        mine = dict.fromkeys([*self._running, *self.spool.waiting()])
        return tuple(JobRef(id=job, attempt=attempt) for job, attempt in mine)

    def offer(self, job: Job) -> None:
        """Take a job or refuse it; one that is here already, or was, changes nothing."""
        key = Attempt(job.id, job.attempt)
        if key in self._running:
            return
        try:
            if self.spool.knows(key):
                return
        except SpoolError as exc:
            # Run without a place for its result, or run a second time: neither.
            self._refuse(key, str(exc))
            return
        command = self._judged(job)
        if isinstance(command, str):
            self._refuse(key, command)
            return
        stop = asyncio.Event()
        task = asyncio.create_task(self._run(key, command, stop))
        self._running[key] = _Running(task, stop)
        self.news.set()

    def cancel(self, key: Attempt) -> None:
        """End an attempt, if it runs; its result says so."""
        if key in self._running:
            self._running[key].stop.set()

    async def acknowledge(self, key: Attempt) -> None:
        """Note that the server has a result."""
        try:
            await asyncio.to_thread(self.spool.acknowledge, key)
        except SpoolError as exc:
            # It is sent once more after the next reconnect, and acknowledged again.
            _log.error("%s", exc)
        else:
            _log.info("Job %s: the server has its result.", key.job)

    async def finish(self, within_s: float) -> None:
        """Take nothing new, and wait until nothing runs or the time is up."""
        self.is_draining = True
        tasks = [running.task for running in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)

    async def abandon(self) -> None:
        """End what still runs without a result: the server gives it to others."""
        running = list(self._running.values())
        for one in running:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in running), return_exceptions=True)

    def _judged(self, job: Job) -> Command | str:
        if self.is_draining:
            return "This machine is about to stop."
        if len(self._running) >= self.terms.slots:
            return f"This machine has {len(self._running)} jobs already."
        return self.terms.command(job, self.sandbox)

    def _refuse(self, key: Attempt, reason: str) -> None:
        _log.warning("Job %s is refused: %s", key.job, reason)
        self.refused[key] = reason
        self.news.set()

    async def _run(self, key: Attempt, command: Command, stop: asyncio.Event) -> None:
        _log.info("Job %s, attempt %d, runs: %s", *key, " ".join(command.argv)[:200])
        try:
            outcome = await self.sandbox.run(command, stop)
            await self._keep(key, outcome, command)
        except SandboxUnavailable as exc:
            self._refuse(key, str(exc))
        finally:
            self._running.pop(key, None)
            self.news.set()

    async def _keep(self, key: Attempt, outcome: Outcome, command: Command) -> None:
        """Write a result to disk, however long that takes: a full disk passes."""
        body = _result(key, outcome, command).to_json()
        while True:
            try:
                await asyncio.to_thread(self.spool.add, key, body)
            except SpoolError as exc:
                _log.error("%s Tried again in %g s.", exc, self.retry_s)
                await asyncio.sleep(self.retry_s)
            else:
                break
        _log.info(
            "Job %s ended after %.1f s: %sexit code %d.",
            *(key.job, outcome.seconds),
            "" if outcome.ended_by == "itself" else f"{outcome.ended_by}, ",
            outcome.exit_code,
        )


def _result(key: Attempt, outcome: Outcome, command: Command) -> JobResult:
    limits = command.limits
    end = {
        "itself": "",
        "wall time": f"it ran for more than {limits.wall_s:g} s",
        "cpu time": f"it used more than {limits.cpu_s:g} s of CPU",
        "memory": f"it used more than {limits.memory_mib} MiB of memory",
        "processes": f"it had more than {limits.processes} processes",
        "output": f"it wrote more than {limits.output_mib} MiB",
        "cancelled": "it was cancelled",
    }[outcome.ended_by]
    status = {"wall time": "timeout", "cpu time": "timeout", "cancelled": "cancelled"}.get(
        outcome.ended_by, "completed" if outcome.is_good else "failed"
    )
    return JobResult(
        id=key.job,
        attempt=key.attempt,
        status=status,
        logs=outcome.output + (f"\n[The job was ended: {end}.]\n" if end else ""),
        exit_code=outcome.exit_code,
        seconds=round(outcome.seconds, 3),
        truncated=outcome.left_out > 0,
    )
