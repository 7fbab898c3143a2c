"""A result that a node has brought, however: kept once, counted, and told to whoever waits for it."""

from __future__ import annotations

from pocqueue.hosts.gateway.hub import Hub
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
    kind, turn = done.job.kind, done.attempt
    hub.metrics.count("job_attempts", kind, str(turn.outcome))
    hub.metrics.count("earned_micro", kind, by=turn.micro)
    if turn.sent_ms is not None and turn.ended_ms is not None:
        hub.metrics.job_seconds.labels(kind).observe((turn.ended_ms - turn.sent_ms) / 1000)
    if done.job.state is JobState.QUEUED:
        hub.metrics.count("jobs_requeued", str(turn.outcome))
    hub.messenger.look()


def signed_32(code: int | None) -> int | None:
    """Return an exit code as a signed number of 32 bits, as the store has them."""
    if code is None or code < 1 << 31:
        return code
    return code - (1 << 32)
