"""Jobs that outlive the connection: whatever takes longer than half a minute on a server.

A job is a script in a folder there, with its output and its exit code beside it, so that any later connection finds out how
it stands and reads on where the last one ended. Whether it runs is told by a lock that it holds, which no reboot and no reused
process number can fake.
"""

from __future__ import annotations

import asyncio
import codecs
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pocqueue.deploy.connection import Connection
from pocqueue.deploy.errors import OutcomeUnknown, StepFailed
from pocqueue.deploy.words import Command, script, whole

#: Of everything that runs write on a server, apart from what they provision.
STATE_DIR = "/var/lib/pocqueue-deploy"
#: Of a job that was never started.
NO_MARK = "-"
_EXIT_ENDED = 67
#: Of output, read at once.
_PART_BYTES = 256 * 1024
#: Between two looks, from the first on.
_EVERY_S = (0.1, 0.2, 0.5, 1.0, 2.0)


class EndedMeanwhile(Exception):
    """A start of the same job has ended that was not known here: what was seen before may not be so any more."""


class JobState(Enum):
    """How a job stands."""

    #: It was never started.
    NONE = "none"
    #: It runs.
    RUNNING = "running"
    #: It has an exit code.
    ENDED = "ended"
    #: It is gone without one: the server was started anew, or it was killed.
    DIED = "died"


@dataclass(frozen=True, slots=True)
class Job:
    """A script of ours that runs there by itself.

    Attributes:
        name: of its folder, such as ``1-format``.
        command: a script with its words; no standard input, since no secret is to lie in a file.
        stall_s: seconds without output after which it is given up; None: none.
        total_bytes: of a download, as many as there are at its end; it prints lines ``N bytes`` meanwhile. 0: it is none.
    """

    name: str
    command: Command
    stall_s: float | None = None
    total_bytes: int = 0

    def __post_init__(self) -> None:
        assert self.command.script
        assert not self.command.stdin

    def shown(self) -> str:
        """Return the line for people: that it outlives the connection is not of their concern."""
        return self.command.shown()

    def start(self, mark: str, state_dir: str = STATE_DIR, *, known: str = NO_MARK) -> Command:
        """Return the command that starts it.

        Args:
            mark: of this start; no other has it.
            state_dir: folder there.
            known: mark of the last start whose end is known here.
        """
        words = (f"{state_dir}/jobs", self.name, mark, known, *self.command.words)
        text = script(self.command.script)
        return Command(words, whole(text), script="job_start", sudo=self.command.sudo)

    def look(self, offset: int, state_dir: str = STATE_DIR) -> Command:
        """Return the command that reads on."""
        words = (f"{state_dir}/jobs", self.name, str(offset), str(_PART_BYTES))
        return Command(words, script="job_look", sudo=self.command.sudo)


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended.

    Attributes:
        exit_code: of its script.
        tail: its last lines.
    """

    exit_code: int
    tail: tuple[str, ...]


async def run_job(
    connection: Connection,
    job: Job,
    output: Callable[[str], None],
    *,
    state_dir: str = STATE_DIR,
    known: dict[str, str] | None = None,
) -> JobEnd:
    """Start a job, or find it running, and follow it to its end.

    Args:
        connection: may break meanwhile.
        job: what to run.
        output: called with lines as they come.
        state_dir: folder there.
        known: by names of jobs the marks of their last starts whose end was known at the last look; is brought up to date.

    Raises:
        EndedMeanwhile: another one has ended since; nothing was begun.
        StepFailed: it does not start, takes longer than its command's time-out, stalls, or died without an exit code.
        Unreachable: the server is gone; the job goes on.
    """
    begun = time.monotonic()
    known = {} if known is None else known
    await _start(connection, job, state_dir, known)
    offset, changed, looks = 0, time.monotonic(), 0
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    pending, tail = "", list[str]()
    while True:
        found = await connection.look(job.look(offset, state_dir))
        head, _, text = found.stdout.partition("\n")
        state, size, code, mark = _read_head(job, found.exit_code, head)
        # Counted in the server's bytes, not in characters that a cut one may become.
        part = min(size - offset, _PART_BYTES)
        if part > 0:
            offset, changed = offset + part, time.monotonic()
            pending += decode(text.encode())
            *lines, pending = pending.split("\n")
            if lines:
                output("\n".join(lines))
                tail = [*tail, *(line for line in lines if line.strip())][-20:]
            continue
        if state is not JobState.RUNNING:
            known[job.name] = mark
        if state is JobState.ENDED:
            if pending:
                output(pending)
                tail = [*tail, pending][-20:]
            return JobEnd(code, tuple(tail))
        if state is not JobState.RUNNING:
            raise StepFailed(
                job.name,
                "it ended without an exit code: the server was started anew, or it was killed. Run again.",
                tail=tail,
            )
        now = time.monotonic()
        if now - begun > job.command.timeout_s:
            reason = f"took more than {job.command.timeout_s:.0f} s"
        elif job.stall_s is not None and now - changed > job.stall_s:
            reason = f"printed nothing for {job.stall_s:.0f} s"
        else:
            await asyncio.sleep(_EVERY_S[min(looks, len(_EVERY_S) - 1)])
            looks += 1
            continue
        raise StepFailed(job.name, f"{reason}; it goes on there, the next run finds it.", tail=tail)


async def _start(connection: Connection, job: Job, state_dir: str, known: dict[str, str]) -> None:
    """Have it run, or find it running.

    Raises:
        EndedMeanwhile: another one has ended; nothing was begun.
        OutcomeUnknown: the connection broke, and it was not begun.
        StepFailed: it does not start.
    """
    mark = secrets.token_hex(8)
    try:
        last = known.get(job.name, NO_MARK)
        started = await connection.run(job.start(mark, state_dir, known=last))
    except OutcomeUnknown:
        # It runs, or has ended, or never began: each is seen. A job is never started a second time by itself, and the end
        # of an earlier start is not that of this one.
        found = await connection.look(job.look(0, state_dir))
        head = found.stdout.partition("\n")[0]
        state, _, _, last_mark = _read_head(job, found.exit_code, head)
        if state is JobState.RUNNING or last_mark == mark:
            return
        raise
    if started.exit_code == _EXIT_ENDED:
        known[job.name] = started.stdout.strip()
        raise EndedMeanwhile(job.name)
    if started.exit_code != 0:
        raise StepFailed(
            job.name, "it does not start.", exit_code_there=started.exit_code, tail=started.tail
        )


def _read_head(job: Job, exit_code: int, head: str) -> tuple[JobState, int, int, str]:
    """Return state, bytes of output, exit code and the mark of its last start."""
    try:
        state, code, size, mark = head.split(" ")
        return JobState(state), int(size), -1 if code == "-" else int(code), mark
    except ValueError:
        raise StepFailed(
            job.name, f"its state cannot be read: {head[:200]!r}", exit_code_there=exit_code
        ) from None
