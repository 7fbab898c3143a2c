"""A job as its node is told."""

from __future__ import annotations

from pocqueue.hosts import wire
from pocqueue.hosts.records import Attempt, Job, NewJob, Node


def job_message(job: Job, attempt: Attempt, node: Node) -> wire.Job:
    """Return the message for an attempt; agents of protocol 1 get a command alone."""
    command = str(job.spec.get("text") or "")
    if node.protocol == 1:
        return wire.Job(id=job.id, command=command)
    given = job.spec.get("limits") or {}
    limits = {name: given[name] for name in wire.Limits.model_fields if name in given}
    return wire.Job(
        id=job.id,
        command=command,
        kind=job.kind,
        argv=tuple(job.spec.get("argv") or ()),
        image=job.spec.get("image"),
        limits=wire.Limits(**limits | {"seconds": job.timeout_s}),
        gpus=attempt.gpu_uuids,
        attempt=attempt.n,
    )


def sleep_job(node_id: str, seconds: int) -> NewJob:
    """Return the job that shows that a new node works: it sleeps."""
    spec = {"argv": ["sleep", str(seconds)], "text": f"sleep {seconds}", "paid_s": seconds}
    return NewJob("test", spec, "server", timeout_s=seconds + 60, only_node=node_id)
