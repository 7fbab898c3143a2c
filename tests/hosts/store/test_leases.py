"""Leases: who has a job, what a result is worth, and what is paid for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
from sqlalchemy import select

from pocqueue.hosts.errors import DatabaseUnavailable, JobOver, LeaseLost, UnknownJob
from pocqueue.hosts.gateway.job_message import sleep_job
from pocqueue.hosts.leases import JobState, Outcome, Verdict
from pocqueue.hosts.records import Attempt, Beat, NodeState, Report
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.leases import MAX_LOG
from tests.hosts.parts import gpus, joined, new_wallet, running, sleep
from tests.support.waiting import Clock

DONE = Report("completed", exit_code=0)


def test_five_seconds_of_work_are_paid_once(store: HostStore, clock: Clock) -> None:
    """From the node's word that it runs to the result, by the server's clock; what is repeated changes nothing."""
    node, job = joined(store), store.jobs.submit(sleep(5))
    clock.now_s += 3
    turn = store.places.place(job.id)
    assert isinstance(turn, Attempt)
    assert (turn.n, turn.node_id, turn.relay) == (1, node.id, "here")
    assert store.jobs.get(job.id).state is JobState.LEASED
    clock.now_s += 2
    sent = store.leases.sent(job.id, 1)
    assert store.leases.sent(job.id, 1) == sent
    assert store.jobs.get(job.id).state is JobState.LEASED
    clock.now_s += 7
    begun = store.leases.started(job.id, 1, node.id)
    assert store.jobs.get(job.id).state is JobState.RUNNING
    clock.now_s += 4
    assert store.leases.started(job.id, 1, node.id) == begun
    clock.now_s += 1.2
    done = store.leases.finish(job.id, node.id, Report("completed", log="out", claimed_ms=5003))
    assert (done.verdict, done.job.state) == (Verdict.COUNTS, JobState.COMPLETED)
    assert (done.attempt.micro, done.attempt.outcome) == (50_000, Outcome.COMPLETED)
    clock.now_s += 100
    again = store.leases.finish(job.id, node.id, Report("completed", log="other"))
    assert (again.verdict, again.attempt) == (Verdict.REPEATED, done.attempt)
    assert store.ledger.balance(node.wallet).earned == 50_000
    assert store.jobs.log(job.id).text == "out"
    assert store.ledger.differences() == []
    assert store.places.place(job.id) is None


def test_who_says_that_a_job_runs(store: HostStore, clock: Clock) -> None:
    """Its node alone, once it was sent, and not when it is over; who says nothing is paid from the message on."""
    node, other, job = joined(store), joined(store, connect=False), store.jobs.submit(sleep(5))
    with pytest.raises(UnknownJob):
        store.leases.started(job.id, 1, node.id)
    assert isinstance(store.places.place(job.id), Attempt)
    with pytest.raises(UnknownJob):
        store.leases.started(job.id, 1, node.id)
    store.leases.sent(job.id, 1)
    with pytest.raises(UnknownJob):
        store.leases.started(job.id, 1, other.id)
    clock.now_s += 5
    assert store.leases.finish(job.id, node.id, DONE).attempt.micro == 50_000
    with pytest.raises(LeaseLost):
        store.leases.started(job.id, 1, node.id)
    silent = joined(store, protocol=1)
    old = store.jobs.submit(sleep(5, only_node=silent.id))
    assert isinstance(store.places.place(old.id), Attempt)
    store.leases.sent(old.id, 1)
    assert store.jobs.get(old.id).state is JobState.RUNNING
    assert store.ledger.differences() == []


def test_the_time_out_begins_with_the_work(store: HostStore, clock: Clock) -> None:
    """Not with the message: an image has to be fetched first. Nobody moves it twice."""
    node, job = joined(store), store.jobs.submit(sleep(5, timeout_s=10))
    assert isinstance(store.places.place(job.id), Attempt)
    _, sent = store.leases.sent(job.id, 1)
    clock.now_s += 30
    begun = store.leases.started(job.id, 1, node.id)
    assert sent.hard_until_ms is not None
    assert begun.hard_until_ms == sent.hard_until_ms + 30_000
    clock.now_s += 5
    assert store.leases.started(job.id, 1, node.id) == begun


@pytest.mark.parametrize(("claimed_ms", "micro"), [(3_600_000, 50_000), (2_999, 20_000), (-9, 0)])
def test_a_node_may_say_less_and_not_more(
    store: HostStore, clock: Clock, claimed_ms: int, micro: int
) -> None:
    """A made-up duration earns nothing."""
    node, job = joined(store), store.jobs.submit(sleep(5))
    running(store, job.id)
    clock.now_s += 5
    report = Report("completed", claimed_ms=claimed_ms)
    assert store.leases.finish(job.id, node.id, report).attempt.micro == micro
    assert store.ledger.differences() == []


def test_a_failed_job_is_over_and_unpaid(store: HostStore, clock: Clock) -> None:
    """What a command that fails has cost is not known to be the node's work."""
    node, job = joined(store), store.jobs.submit(sleep())
    known(store, node.id)
    running(store, job.id)
    clock.now_s += 5
    done = store.leases.finish(job.id, node.id, Report("failed", exit_code=3))
    assert (done.job.state, done.job.reason) == (JobState.FAILED, "failed")
    assert (done.attempt.exit_code, done.attempt.micro) == (3, 0)
    assert store.overview.earnings(node.wallet) == []


def test_a_job_that_takes_too_long_is_nobodys_fault(store: HostStore, clock: Clock) -> None:
    """A known node says so: the job has failed, and is not tried elsewhere."""
    node, job = joined(store), store.jobs.submit(sleep(timeout_s=10))
    known(store, node.id)
    running(store, job.id)
    clock.now_s += 10
    done = store.leases.finish(job.id, node.id, Report("timeout"))
    assert (done.job.state, done.attempt.micro) == (JobState.FAILED, 0)
    assert store.jobs.get(job.id).reason == "timeout"


@pytest.mark.parametrize("status", ["failed", "timeout"])
def test_a_stranger_cannot_end_a_job(
    store: HostStore, status: Literal["failed", "timeout"]
) -> None:
    """Its word is one try, and is held against it: somebody else's node, which is waited for, does the job."""
    bad = new_wallet()
    nodes = [joined(store, wallet=bad, address=f"192.0.2.{n}") for n in range(3)]
    job = store.jobs.submit(sleep())
    turn = running(store, job.id)
    honest = joined(store, address="192.0.2.9")
    busy = store.jobs.submit(sleep(only_node=honest.id))
    running(store, busy.id)
    done = store.leases.finish(job.id, turn.node_id, Report(status, exit_code=1))
    assert (done.verdict, done.job.state) == (Verdict.COUNTS, JobState.QUEUED)
    assert done.attempt.outcome is Outcome.FAILED
    again = store.leases.finish(job.id, turn.node_id, Report(status, exit_code=1))
    assert again.verdict is Verdict.REPEATED
    assert turn.node_id in {node.id for node in nodes}
    assert store.places.place(job.id) == "All nodes that could do it are busy."
    store.leases.finish(busy.id, honest.id, DONE)
    assert running(store, job.id).node_id == honest.id
    assert store.leases.finish(job.id, honest.id, DONE).job.state is JobState.COMPLETED
    # With the reputations that came of it, the next one goes to the better node at once.
    assert running(store, store.jobs.submit(sleep()).id).node_id == honest.id
    assert reputation_of(store, turn.node_id) == (0, 1)
    assert store.ledger.differences() == []


def test_two_owners_who_agree_end_a_job(store: HostStore) -> None:
    """And one who is alone, when the tries are used up."""
    first, job = joined(store), store.jobs.submit(sleep())
    for n in (1, 2):
        running(store, job.id)
        done = store.leases.finish(job.id, first.id, Report("failed", n=n))
        assert done.job.state is JobState.QUEUED
    alone = store.jobs.submit(sleep(max_attempts=1))
    running(store, alone.id)
    assert store.leases.finish(alone.id, first.id, Report("failed")).job.state is JobState.FAILED
    second = joined(store)
    assert running(store, job.id).node_id == second.id
    done = store.leases.finish(job.id, second.id, Report("failed"))
    assert (done.job.state, done.job.reason) == (JobState.FAILED, "failed")
    assert store.nodes.get(first.id).paused_until_ms is None


def test_a_test_job_pays_for_its_sleep_alone(store: HostStore, clock: Clock) -> None:
    """It has a minute to spare, which a node that waits with its result does not earn."""
    node = joined(store)
    job = store.jobs.submit(sleep_job(node.id, 5))
    running(store, job.id)
    clock.now_s += 64
    done = store.leases.finish(job.id, node.id, Report("completed", claimed_ms=64_000))
    assert (done.job.state, done.attempt.micro) == (JobState.COMPLETED, 50_000)
    assert store.ledger.differences() == []


def test_a_job_that_a_node_ends_by_itself_goes_to_another(store: HostStore) -> None:
    """Its owner has stopped the agent, say."""
    node, job = joined(store), store.jobs.submit(sleep())
    running(store, job.id)
    done = store.leases.finish(job.id, node.id, Report("cancelled"))
    assert (done.job.state, done.attempt.outcome) == (JobState.QUEUED, Outcome.REFUSED)
    assert (
        store.places.place(job.id)
        == "The nodes that could do it have refused it; its log says why."
    )


def test_a_result_for_somebody_elses_job_is_refused(store: HostStore) -> None:
    """Before it is given to anybody, and while another node has it."""
    joined(store)
    job = store.jobs.submit(sleep())
    thief = joined(store, connect=False)
    for _ in range(2):
        with pytest.raises(UnknownJob, match=r"^Job not found$"):
            store.leases.finish(job.id, thief.id, DONE)
        running(store, job.id) if store.jobs.get(job.id).attempts == 0 else None
    with pytest.raises(UnknownJob, match=r"^Job not found$"):
        store.leases.finish("x", thief.id, DONE)
    with pytest.raises(UnknownJob):
        store.leases.refuse(job.id, 1, thief.id, "no")
    store.leases.add_log(job.id, thief.id, "lies")
    assert store.jobs.log(job.id).text == ""
    assert store.jobs.get(job.id).state is JobState.RUNNING


def test_a_result_before_the_message_is_not_paid(store: HostStore, clock: Clock) -> None:
    """A node that guesses the id of its job gets no time for it."""
    node, job = joined(store), store.jobs.submit(sleep())
    assert isinstance(store.places.place(job.id), Attempt)
    clock.now_s += 50
    assert store.leases.finish(job.id, node.id, DONE).attempt.micro == 0
    assert store.ledger.differences() == []


def test_a_lost_node_gives_its_job_to_another(store: HostStore, clock: Clock) -> None:
    """Its own result, which comes when the other one has the job, is kept, acknowledged and not paid."""
    first = joined(store)
    job = store.jobs.submit(sleep())
    running(store, job.id)
    clock.now_s += 61
    second = joined(store)
    assert [done.attempt.outcome for done in store.leases.sweep()] == [Outcome.NODE_LOST]
    assert store.jobs.get(job.id).state is JobState.QUEUED
    assert store.jobs.get(job.id).reason == "node_lost"
    store.presence.heard([Beat(first.id, f"socket of {first.id}", store.now_ms())])
    turn = running(store, job.id)
    assert (turn.node_id, turn.n) == (second.id, 2)
    clock.now_s += 5
    late = store.leases.finish(job.id, first.id, Report("completed", log="late", n=1))
    assert (late.verdict, late.attempt.micro) == (Verdict.LATE, 0)
    assert store.jobs.log(job.id, 1).text == "late"
    assert store.leases.finish(job.id, first.id, DONE).verdict is Verdict.REPEATED
    assert store.leases.finish(job.id, second.id, DONE).verdict is Verdict.COUNTS
    assert store.ledger.balance(first.wallet).earned == 0
    assert store.ledger.balance(second.wallet).earned == 50_000
    assert store.ledger.differences() == []


def test_what_was_done_while_we_were_away_is_not_done_again(store: HostStore, clock: Clock) -> None:
    """The lease is over, yet nobody else has the job: the result counts, and pays what the work took."""
    node, job = joined(store), store.jobs.submit(sleep(5))
    running(store, job.id)
    clock.now_s += 3600
    store.leases.sweep()
    done = store.leases.finish(job.id, node.id, Report("completed", claimed_ms=5001))
    assert (done.verdict, done.job.state) == (Verdict.COUNTS, JobState.COMPLETED)
    assert store.ledger.balance(node.wallet).earned == 50_000
    assert store.ledger.differences() == []


def test_a_clock_that_was_a_day_ahead_for_a_while(store: HostStore, clock: Clock) -> None:
    """What was written meanwhile lies in the future: a node that is gone loses its job all the same, nothing is overpaid."""
    first = joined(store, gpus=gpus(2))
    before, runs = (store.jobs.submit(sleep(timeout_s=60)) for _ in range(2))
    running(store, before.id)
    clock.now_s += 86_400
    store.presence.connected(first.id, "here", "again")
    running(store, runs.id)
    assert store.leases.finish(before.id, first.id, DONE).attempt.micro <= 60 * 10_000
    clock.now_s -= 86_400
    store.presence.disconnected(first.id, "again")
    second = joined(store)
    clock.now_s += 31
    store.presence.heard([Beat(second.id, f"socket of {second.id}", store.now_ms())])
    assert [done.attempt.job_id for done in store.leases.sweep()] == [runs.id]
    assert running(store, runs.id).node_id == second.id
    clock.now_s += 5
    assert store.leases.finish(runs.id, second.id, DONE).attempt.micro == 50_000
    assert store.ledger.differences() == []


def test_a_job_that_is_lost_three_times_has_failed(store: HostStore, clock: Clock) -> None:
    """With the last reason; nodes that lost it are asked again where there is no other."""
    node, job = joined(store), store.jobs.submit(sleep(timeout_s=10))
    outcomes = []
    for _ in range(3):
        store.presence.connected(node.id, "here", "again")
        running(store, job.id)
        clock.now_s += 40
        store.presence.heard([Beat(node.id, "again", store.now_ms(), (job.id,))])
        outcomes += [done.attempt.outcome for done in store.leases.sweep()]
    assert outcomes == [Outcome.TIMEOUT] * 3
    failed = store.jobs.get(job.id)
    assert (failed.state, failed.reason) == (JobState.FAILED, "timeout")
    assert store.nodes.get(node.id).status(store.now_ms(), 10**9) == "paused"
    assert store.places.place(store.jobs.submit(sleep()).id) == (
        "No node is connected that takes jobs."
    )
    clock.now_s += 3600
    store.presence.heard([Beat(node.id, "again", store.now_ms())])
    assert isinstance(store.places.place(store.jobs.submit(sleep()).id), Attempt)


def test_a_message_that_never_left_does_not_count_against_anybody(
    store: HostStore, clock: Clock
) -> None:
    """The gateway died with it: the job is given again as often as it takes."""
    node, job = joined(store), store.jobs.submit(sleep())
    for n in range(1, 6):
        store.presence.connected(node.id, "here", f"{n}")
        turn = store.places.place(job.id)
        assert isinstance(turn, Attempt)
        clock.now_s += 61
        assert [done.attempt.outcome for done in store.leases.sweep()] == [Outcome.RELAY_LOST]
        with pytest.raises(LeaseLost, match="is not sent any more"):
            store.leases.sent(job.id, n)
    assert store.jobs.get(job.id).state is JobState.QUEUED
    assert store.nodes.get(node.id).paused_until_ms is None


@pytest.mark.parametrize("state", ["revoked", "banned"])
def test_what_a_node_that_is_out_brings_counts_for_nothing(
    store: HostStore, clock: Clock, state: NodeState
) -> None:
    """Before its lease is over or after: the job goes to another node, as its result may be made up."""
    cheat, job = joined(store, gpus=gpus(2)), store.jobs.submit(sleep())
    early = store.jobs.submit(sleep(only_node=cheat.id, max_attempts=1))
    for one in (job, early):
        running(store, one.id)
    clock.now_s += 5
    store.nodes.set_state(cheat.id, state, actor="admin")
    brought = store.leases.finish(early.id, cheat.id, DONE)
    assert (brought.verdict, brought.attempt.micro) == (Verdict.LATE, 0)
    assert {done.attempt.job_id for done in store.leases.sweep()} == {job.id, early.id}
    brought = store.leases.finish(job.id, cheat.id, DONE)
    assert (brought.verdict, brought.job.state) == (Verdict.LATE, JobState.QUEUED)
    honest = joined(store)
    assert running(store, job.id).node_id == honest.id
    assert store.ledger.balance(cheat.wallet).earned == 0
    assert store.ledger.differences() == []


def test_a_node_that_refuses_is_not_asked_again(store: HostStore) -> None:
    """Another one gets the job; who takes only what pays well pauses after three."""
    picky = joined(store)
    jobs = [store.jobs.submit(sleep()).id for _ in range(4)]
    for job_id in jobs[:3]:
        running(store, job_id)
        said = [store.leases.refuse(job_id, 1, picky.id, "too cheap").verdict for _ in range(2)]
        assert said == [Verdict.COUNTS, Verdict.REPEATED]
        assert store.jobs.get(job_id).state is JobState.QUEUED
        assert store.jobs.log(job_id).text == "too cheap"
    assert store.nodes.get(picky.id).paused_until_ms is not None
    other = joined(store)
    turn = store.places.place(jobs[0])
    assert isinstance(turn, Attempt)
    assert turn.node_id == other.id


def test_cancelling(store: HostStore, clock: Clock) -> None:
    """Ends what waits at once, stops what runs, and pays for the time until then."""
    node = joined(store)
    waiting, runs = store.jobs.submit(sleep()), store.jobs.submit(sleep())
    running(store, runs.id)
    clock.now_s += 3
    assert store.leases.cancel(waiting.id, actor="admin") is None
    with pytest.raises(UnknownJob):
        store.leases.cancel(runs.id, actor="w", submitter=new_wallet())
    stopped = store.leases.cancel(runs.id, actor="admin", submitter="admin")
    assert stopped is not None
    assert (stopped.attempt.node_id, stopped.attempt.micro) == (node.id, 30_000)
    again = store.leases.cancel(runs.id, actor="admin")
    assert again is not None
    assert (stopped.verdict, again.verdict) == (Verdict.COUNTS, Verdict.REPEATED)
    assert again.attempt == stopped.attempt
    assert store.leases.finish(runs.id, node.id, DONE).verdict is Verdict.LATE
    assert {store.jobs.get(one.id).state for one in (waiting, runs)} == {JobState.CANCELLED}
    over = store.jobs.submit(sleep())
    running(store, over.id)
    store.leases.finish(over.id, node.id, DONE)
    with pytest.raises(JobOver, match="is completed and cannot be cancelled any more"):
        store.leases.cancel(over.id, actor="admin")
    assert store.ledger.differences() == []


def test_a_gpu_has_one_job(store: HostStore) -> None:
    """A node with two GPUs takes two jobs of one, and no third; a job of three waits."""
    node = joined(store, gpus=gpus(2))
    jobs = [store.jobs.submit(sleep(gpus=1)).id for _ in range(3)]
    turns = [store.places.place(job_id) for job_id in jobs]
    uuids = {turn.gpu_uuids for turn in turns if isinstance(turn, Attempt)}
    assert uuids == {(gpu.uuid,) for gpu in node.gpus}
    assert turns[2] == "All nodes that could do it are busy."
    assert store.jobs.get(jobs[2]).reason == turns[2]
    large = store.jobs.submit(sleep(gpus=3))
    assert store.places.place(large.id) == "No connected node has 3 healthy GPUs."
    assert {turn.job_id for _, turn in store.leases.open_on(node.id)} == set(jobs[:2])


def test_many_places_at_once_take_each_gpu_once(store: HostStore) -> None:
    """Sixteen threads place twenty jobs on ten nodes: each GPU has one, each job one node."""
    nodes = [joined(store, address=f"192.0.2.{n}") for n in range(10)]
    for node in nodes:
        known(store, node.id)
    jobs = [store.jobs.submit(sleep(gpus=1)).id for _ in range(20)]
    start = threading.Barrier(16)

    def place(job_id: str) -> Attempt | str | None:
        while True:
            try:
                return store.places.place(job_id)
            except DatabaseUnavailable:
                pass  # All connections are taken; on a busy machine for longer than a placement waits.

    def place_all(k: int) -> list[Attempt]:
        start.wait()
        turns = [place(job_id) for job_id in jobs[k % 4 :] + jobs[: k % 4]]
        return [turn for turn in turns if isinstance(turn, Attempt)]

    with ThreadPoolExecutor(16) as threads:
        turns = [turn for found in threads.map(place_all, range(16)) for turn in found]
    assert len(turns) == len({turn.node_id for turn in turns}) == 10
    assert len({turn.job_id for turn in turns}) == 10
    assert {turn.n for turn in turns} == {1}


def test_a_result_races_the_sweep(store: HostStore, clock: Clock) -> None:
    """Whatever comes first, the job is done once and paid once."""
    nodes = [joined(store) for _ in range(8)]
    jobs = [store.jobs.submit(sleep(only_node=node.id)).id for node in nodes]
    for job_id in jobs:
        running(store, job_id)
    clock.now_s += 61
    start = threading.Barrier(9)

    def finish(k: int) -> None:
        start.wait()
        store.leases.sweep() if k == 8 else store.leases.finish(jobs[k], nodes[k].id, DONE)

    with ThreadPoolExecutor(9) as threads:
        list(threads.map(finish, range(9)))
    assert {store.jobs.get(job_id).state for job_id in jobs} == {JobState.COMPLETED}
    assert [store.ledger.balance(node.wallet).earned for node in nodes] == [600_000] * 8
    assert store.ledger.differences() == []


def test_strangers_nodes_do_their_test_and_nothing_else(store: HostStore, clock: Clock) -> None:
    """Whoever typed an address has shown nothing: a paid job waits, the test's pay is held."""
    node = joined(store, proven=False)
    paid = store.jobs.submit(sleep())
    assert store.places.place(paid.id) == (
        "Only nodes of wallets that have not signed in are connected."
    )
    test = store.jobs.submit(sleep(kind="test", only_node=node.id))
    running(store, test.id)
    clock.now_s += 5
    store.leases.finish(test.id, node.id, DONE)
    assert store.ledger.balance(node.wallet).held == 50_000
    assert store.ledger.pay_out() == []


def test_a_log_that_is_too_long_keeps_both_ends(store: HostStore) -> None:
    """What comes while a job runs is added; the result's log takes its place."""
    node, job = joined(store), store.jobs.submit(sleep())
    running(store, job.id)
    for part in ("one\n", "two\0\n"):
        store.leases.add_log(job.id, node.id, part)
    assert store.jobs.log(job.id).text == "one\ntwo\ufffd\n"
    long = "a" * MAX_LOG + "b" * MAX_LOG
    store.leases.finish(job.id, node.id, Report("completed", log=long))
    log = store.jobs.log(job.id)
    assert log.truncated
    assert len(log.text) < MAX_LOG + 100
    assert (log.text[0], log.text[-1]) == ("a", "b")
    store.leases.add_log(job.id, node.id, "more")
    assert store.jobs.log(job.id) == log


def reputation_of(store: HostStore, node_id: str) -> tuple[float, float]:
    """Return how much good and bad a node has done with commands."""
    from pocqueue.hosts.tables import reputation as table

    mine = (table.c.node_id == node_id) & (table.c.kind == "command")
    with store.database.read() as connection:
        row = connection.execute(select(table.c.good, table.c.bad).where(mine)).one()
    return row.good, row.bad


def known(store: HostStore, node_id: str) -> None:
    """Let a node be no stranger any more."""
    from pocqueue.hosts.tables import reputation

    values = {"good": 10.0, "bad": 0.0, "streak": 10, "at_ms": store.now_ms()}
    with store.database.write() as connection:
        new = reputation.insert().values(node_id=node_id, kind="command", **values)
        connection.execute(new)
