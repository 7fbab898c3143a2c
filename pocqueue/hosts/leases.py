"""What becomes of a job and its attempts: a table of states, and functions from values to values.

There are two machines. A **job** is `queued`, `leased` to a node, `running` there (the node says so; one
without a key says nothing, and its message is taken for it), and ends as `completed`, `failed` or `cancelled`; an attempt that ends without a result, or with a failure that only a
stranger has seen, makes it `queued` again. An **attempt** is open until it has an `Outcome`, which it gets once. They are coupled in one way: the newest attempt
of a job that is leased or running is open, every other one has ended.

A lease runs for `LEASE_MS` and is renewed by heartbeats that name the job, yet never beyond the job's time-out
and a grace. Agents of protocol 1 fall silent while they work: their lease is all of that at once. Machines that poll name
no jobs: all that theirs were sent is renewed for `POLL_LEASE_MS` whenever they ask for something.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

LEASE_MS: Final = 60_000
#: Of machines that poll: they ask once a minute or so, and some not at all while a short job runs.
POLL_LEASE_MS: Final = 300_000
#: From a job's time-out to the end of its last lease: a result is on its way.
GRACE_MS: Final = 30_000


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"  #: waits for a node
    LEASED = "leased"  #: has a node, and is on its way to it or waits there
    RUNNING = "running"  #: the node has begun
    COMPLETED = "completed"  #: a node has done it
    FAILED = "failed"  #: a node has tried and could not, or all attempts were lost
    CANCELLED = "cancelled"  #: by whoever submitted it, or an admin

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self in {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"  #: the node's result, exit code 0
    FAILED = "failed"  #: the node's result: another exit code, or its time was up
    CANCELLED = "cancelled"  #: the job was cancelled meanwhile
    REFUSED = "refused"  #: the node did not want it
    NODE_LOST = "node_lost"  #: the node did not renew its lease
    RELAY_LOST = "relay_lost"  #: it was never sent to the node
    TIMEOUT = "timeout"  #: no result within time-out and grace


#: Outcomes without a result: another node, or the same one, tries.
LOST: Final = frozenset({Outcome.REFUSED, Outcome.NODE_LOST, Outcome.RELAY_LOST, Outcome.TIMEOUT})
#: Outcomes that are the node's doing; three in an hour and it pauses.
HELD_AGAINST: Final = frozenset({Outcome.REFUSED, Outcome.NODE_LOST, Outcome.TIMEOUT})


class Verdict(StrEnum):
    """What a result that comes in is worth."""

    COUNTS = "counts"  #: it ends the job
    LATE = "late"  #: the attempt has ended otherwise, or its node is revoked or banned: kept, acknowledged, not paid
    REPEATED = "repeated"  #: it was there already


def outcome_of(status: str) -> Outcome:
    """Return how an attempt ended of which a node says so.

    A job that reached its time-out has failed: it would do so on the next node, too (`job_after` says whose word
    is enough for that). A node that ends a job by
    itself has refused it.

    Args:
        status: of a result, as in `wire.JobResult`.
    """
    return {
        "completed": Outcome.COMPLETED,
        "failed": Outcome.FAILED,
        "timeout": Outcome.FAILED,
        "cancelled": Outcome.REFUSED,
    }[status]


def hard_until(sent_ms: int, timeout_s: int) -> int:
    """Return the time beyond which no lease goes.

    Args:
        sent_ms: when the job began, or was sent.
    """
    return sent_ms + 1000 * timeout_s + GRACE_MS


def judge(
    *,
    job_state: JobState,
    newest: int,
    n: int,
    outcome: Outcome | None,
    reported: bool,
) -> Verdict:
    """Say what a result is worth.

    A result counts after its lease, too, as long as nobody else was given the job: what was done while the
    server or the node's connection was away is not done again.

    Args:
        job_state, newest: of the job; `newest` is the number of its newest attempt.
        n, outcome: of the attempt whose result it is; `outcome` is None while it is open.
        reported: a result of this attempt was there before.
    """
    if outcome is None:
        return Verdict.COUNTS
    if reported:
        return Verdict.REPEATED
    given_up = outcome in LOST and outcome is not Outcome.REFUSED
    return (
        Verdict.COUNTS
        if given_up and n == newest and job_state is JobState.QUEUED
        else Verdict.LATE
    )


def job_after(
    outcome: Outcome, *, num_tried: int, max_attempts: int, is_believed: bool = True
) -> JobState:
    """Return the state of a job whose newest attempt has ended.

    Args:
        num_tried: attempts of the job that have ended, without those that were refused or never sent.
        max_attempts: after which it has failed.
        is_believed: of a failure that it is the job's: a stranger's word alone is one try, as it could end every
            job that waits.
    """
    if outcome in LOST or (outcome is Outcome.FAILED and not is_believed):
        return JobState.QUEUED if num_tried < max_attempts else JobState.FAILED
    return {
        Outcome.COMPLETED: JobState.COMPLETED,
        Outcome.FAILED: JobState.FAILED,
        Outcome.CANCELLED: JobState.CANCELLED,
    }[outcome]


def lost_how(*, sent_ms: int | None, hard_until_ms: int | None, now_ms: int) -> Outcome:
    """Say how an attempt was lost whose lease has run out."""
    if sent_ms is None or hard_until_ms is None:
        return Outcome.RELAY_LOST
    return Outcome.TIMEOUT if now_ms >= hard_until_ms else Outcome.NODE_LOST
