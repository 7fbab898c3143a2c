"""What the page reads: how nodes stand, what they are at, and what became of each row of the ledger."""

from __future__ import annotations

from pocqueue.hosts.records import Report
from pocqueue.hosts.store import HostStore
from tests.hosts.parts import gpus, joined, new_wallet, running, sleep
from tests.support.waiting import Clock


def test_how_nodes_stand(store: HostStore, clock: Clock) -> None:
    """Newest first, those of this wallet alone; a text of an agent cannot look like a row that failed."""
    wallet = new_wallet()
    nodes = []
    for _ in range(5):
        nodes.append(joined(store, wallet=wallet, gpus=gpus(2)))
        clock.now_s += 1
    joined(store)
    fine, at_work, out, failed, gone = nodes
    job = store.jobs.submit(sleep(only_node=at_work.id, gpus=1))
    turn = running(store, job.id)
    store.health.set_self_test(
        fine.id, [{"name": "x", "state": "warn", "measured": '"state":"fail"'}], {}
    )
    store.health.set_self_test(out.id, [], {out.gpus[0].uuid: "hot"})
    store.health.set_self_test(failed.id, [{"name": "driver", "state": "fail"}], {})
    store.nodes.set_state(gone.id, "revoked", actor=wallet, wallet=wallet)
    found = store.overview.standings(wallet)
    assert [(one.node.id, one.is_busy, one.is_unfit) for one in found] == [
        (failed.id, False, True),
        (out.id, False, True),
        (at_work.id, True, False),
        (fine.id, False, False),
    ]
    ids = [one.node.id for one in found]
    [work] = store.overview.work(ids)[at_work.id]
    assert (work.job_id, work.kind, work.gpu_uuids) == (job.id, "command", turn.gpu_uuids)
    assert store.overview.nodes(ids)[out.id] == store.nodes.get(out.id)
    assert store.overview.self_tests(ids)[failed.id] == [{"name": "driver", "state": "fail"}]
    assert store.overview.nodes([]) == {}
    assert store.overview.self_tests([]) == {}
    assert store.overview.work([]) == {}


def test_what_became_of_each_row(store: HostStore, clock: Clock) -> None:
    """Held, to be paid, paid or forfeited; with the job and how long it took."""
    wallet = new_wallet()
    own, held = joined(store, wallet=wallet), joined(store, wallet=wallet, proven=False)

    def fates() -> list[tuple[str, str | None, int]]:
        rows = store.overview.earnings(wallet)
        return [(row.entry.kind, row.fate, row.entry.micro) for row in rows]

    job = store.jobs.submit(sleep(only_node=own.id))
    running(store, job.id)
    clock.now_s += 5
    store.leases.finish(job.id, own.id, Report("completed"))
    store.ledger.correct(held.id, 30_000, "one")
    assert fates() == [("correction", "held", 30_000), ("job", "due", 50_000)]
    row = store.overview.earnings(wallet)[1]
    assert (row.job_id, row.job_kind, row.seconds) == (job.id, "command", 5)
    assert row.hostname == own.hostname
    store.ledger.pay_out()
    store.ledger.correct(own.id, 10_000, "two")
    assert fates() == [
        ("correction", "due", 10_000),
        ("payout", None, -50_000),
        ("correction", "held", 30_000),
        ("job", "paid", 50_000),
    ]
    page = store.overview.earnings(wallet, limit=2)
    older = store.overview.earnings(wallet, before=page[-1].entry.id)
    assert [one.fate for one in older] == ["held", "paid"]
    store.nodes.adopt(held.id, actor=wallet, wallet=wallet)
    assert fates()[2] == ("correction", "due", 30_000)
    store.nodes.set_state(held.id, "banned", actor="admin")
    assert ("forfeit", None, -30_000) in fates()
    assert ("correction", "forfeited", 30_000) in fates()
    assert store.overview.earnings(new_wallet()) == []
