"""Jobs as they are submitted, listed and read."""

from __future__ import annotations

import uuid

import pytest

from pocqueue.hosts.errors import UnknownJob
from pocqueue.hosts.leases import JobState, Outcome
from pocqueue.hosts.records import Report
from pocqueue.hosts.store import HostStore
from tests.hosts.parts import joined, running, sleep
from tests.support.waiting import Clock


def test_a_job_is_kept_as_it_was_submitted(store: HostStore) -> None:
    """With the pay of the time when it came in; asking again with its id makes no second one."""
    new = sleep(5, gpus=2, vram_mib=24_000, priority=3)
    job_id = str(uuid.uuid4())
    job = store.jobs.submit(new, job_id=job_id)
    assert (job.state, job.gpus, job.vram_mib, job.priority) == (JobState.QUEUED, 2, 24_000, 3)
    assert (job.rate_micro, job.attempts, job.spec) == (10_000, 0, new.spec)
    assert store.jobs.submit(sleep(9), job_id=job_id) == job
    assert store.jobs.get(job_id) == job
    counts = store.jobs.counts()
    assert (counts["command", "queued"], sum(counts.values()), len(counts)) == (1, 1, 18)
    for unknown in (store.jobs.get, store.jobs.log):
        with pytest.raises(UnknownJob, match=r"^Job not found$"):
            unknown("x")


def test_the_test_job_of_a_node_is_there_once(store: HostStore) -> None:
    """A node that comes back does not get another one, unless the first failed."""
    node = joined(store)
    new = sleep(kind="test", only_node=node.id, submitter="server", max_attempts=1)
    job = store.jobs.submit_test(new)
    assert job is not None
    assert store.jobs.submit_test(new) is None
    running(store, job.id)
    assert store.jobs.submit_test(new) is None
    store.leases.finish(job.id, node.id, Report("failed", exit_code=1))
    again = store.jobs.submit_test(new)
    assert again is not None
    running(store, again.id)
    store.leases.finish(again.id, node.id, Report("completed"))
    assert store.jobs.submit_test(new) is None


def test_pages_of_jobs(store: HostStore, clock: Clock) -> None:
    """Newest first, each once, though many came at the same time."""
    made = []
    for n in range(25):
        clock.now_s += n % 3 == 0
        made.append(store.jobs.submit(sleep()).id)
    cursor, seen, pages = None, [], 0
    while True:
        jobs, cursor = store.jobs.listed(cursor=cursor, limit=10)
        seen += [job.id for job in jobs]
        pages += 1
        if cursor is None:
            break
    assert pages == 3
    assert sorted(seen) == sorted(made)
    assert store.jobs.listed([JobState.FAILED])[0] == []
    assert len(store.jobs.listed([JobState.QUEUED], cursor="no cursor", limit=100)[0]) == 25
    for odd in ("1", "9" * 40, "-1.x", "\0", "1.2.3"):
        store.jobs.listed(cursor=odd)


def test_the_jobs_of_a_wallet_are_those_of_its_nodes(store: HostStore, clock: Clock) -> None:
    """Newest first, with what each attempt was."""
    node, other = joined(store), joined(store)
    ids = []
    for _ in range(3):
        clock.now_s += 10
        store.presence.connected(node.id, "here", f"socket of {node.id}")
        job = store.jobs.submit(sleep(only_node=node.id))
        running(store, job.id)
        store.leases.finish(job.id, node.id, Report("completed"))
        ids.append(job.id)
    turns, cursor = store.jobs.of_wallet(node.wallet, limit=2)
    assert [turn.job.id for turn in turns] == ids[:0:-1]
    assert turns[0].attempt.outcome is Outcome.COMPLETED
    assert turns[0].job.state is JobState.COMPLETED
    rest, end = store.jobs.of_wallet(node.wallet, cursor=cursor, limit=2)
    assert ([turn.job.id for turn in rest], end) == (ids[:1], None)
    assert store.jobs.of_wallet(other.wallet) == ([], None)
