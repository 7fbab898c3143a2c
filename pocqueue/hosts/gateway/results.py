"""The end of an attempt, however it came: counted once, and told to whoever waits for it."""

from __future__ import annotations

from pocqueue.hosts.gateway.hub import Hub
from pocqueue.hosts.gateway.metrics import Metrics
from pocqueue.hosts.leases import JobState, Verdict
from pocqueue.hosts.store.leases import Finished


def count_result(hub: Hub, wallet: str, done: Finished) -> None:
    """Count what became of a result, and have somebody look who gets the next job.

    Args:
        wallet: that of the node.
    """
    hub.changes.tell(wallet)
    if done.verdict is not Verdict.COUNTS:
        return
    turn = done.attempt
    count_end(hub.metrics, done)
    if turn.sent_ms is not None and turn.ended_ms is not None:
        seconds = (turn.ended_ms - turn.sent_ms) / 1000
        hub.metrics.job_seconds.labels(done.job.kind).observe(seconds)
    hub.messenger.look()


def count_end(metrics: Metrics, done: Finished) -> None:
    """Count an attempt that has ended now; one that had ended before was counted then."""
    if done.verdict is not Verdict.COUNTS:
        return
    kind, outcome = done.job.kind, str(done.attempt.outcome)
    metrics.count("job_attempts", kind, outcome)
    metrics.count("earned_micro", kind, by=done.attempt.micro)
    if done.job.state is JobState.QUEUED:
        metrics.count("jobs_requeued", outcome)


def signed_32(code: int | None) -> int | None:
    """Return an exit code as a signed number of 32 bits, as the store has them."""
    if code is None or code < 1 << 31:
        return code
    return code - (1 << 32)
