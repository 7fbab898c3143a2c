"""The ledger: what is owed, what is paid out, and how a difference is found."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from pocqueue.hosts.errors import LedgerError, UnknownNode
from pocqueue.hosts.records import Report
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.database import Database, file_url
from pocqueue.hosts.store.ledger import Payout, add
from pocqueue.hosts.tables import attempt, audit, job, ledger, payout, wallet as wallet_table
from pocqueue.settings import HostsSettings
from tests.hosts.parts import joined, new_wallet, running, sleep
from tests.support.waiting import Clock, wait_until


def test_a_fact_pays_once(store: HostStore) -> None:
    """Sixteen threads write the same row: one does."""
    node = joined(store)
    start = threading.Barrier(16)

    def write(_: int) -> bool:
        start.wait()
        return store.ledger.correct(node.id, 7, "the same")

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(write, range(16))) == 1
    assert store.ledger.balance(node.wallet).earned == 7


def test_corrections_are_rows_of_their_own(store: HostStore) -> None:
    """With words for what they mend; newest first, in pages."""
    node = joined(store)
    for n in range(1, 6):
        assert store.ledger.correct(node.id, -n, f"mistake {n}")
    first = [one.entry for one in store.overview.earnings(node.wallet, limit=3)]
    assert [entry.micro for entry in first] == [-5, -4, -3]
    assert not store.ledger.correct(node.id, -1, "mistake 1")
    with store.database.read() as connection:
        noted = connection.execute(select(audit.c.subject).order_by(audit.c.id)).scalars().all()
    mended = [subject for subject in noted if "mistake" in subject]
    assert mended == [f"{node.id} mistake {n}" for n in range(1, 6)]
    rest = store.overview.earnings(node.wallet, before=first[-1].id)
    assert [one.entry.ref for one in rest] == ["mistake 2", "mistake 1"]
    with pytest.raises(UnknownNode):
        store.ledger.correct("x", 1, "y")
    for micro, ref in ((0, "y"), (1, "")):
        with pytest.raises(LedgerError):
            store.ledger.correct(node.id, micro, ref)


def test_a_payout_takes_all_that_is_owed_once(store: HostStore) -> None:
    """Of all nodes of a wallet together; what is too little waits."""
    rich, poor = new_wallet(), new_wallet()
    for micro in (30_000, 50_000):
        store.ledger.correct(joined(store, wallet=rich).id, micro, f"{micro}")
    small = joined(store, wallet=poor)
    store.ledger.correct(small.id, 9, "9")
    assert {one.wallet: one.micro for one in store.ledger.payable()} == {rich: 80_000, poor: 9}
    [made] = store.ledger.pay_out(at_least=10)
    assert (made.wallet, made.micro) == (rich, 80_000)
    assert store.ledger.pay_out(at_least=10) == []
    assert store.ledger.payouts(made.batch) == [made]
    balance = store.ledger.balance(rich)
    assert (balance.earned, balance.paid, balance.payable) == (80_000, 80_000, 0)
    assert [one.wallet for one in store.ledger.pay_out()] == [poor]
    assert store.ledger.differences() == []


def test_batches_of_payouts_are_listed_whole(store: HostStore, clock: Clock) -> None:
    """Newest first, with what is in them; of one with thousands of wallets none is missing when it is read again."""
    assert store.ledger.batches() == []
    node = joined(store)
    sums = []
    for micro in (30_000, 50_000):
        clock.now_s += 1
        store.ledger.correct(node.id, micro, f"{micro}")
        [made] = store.ledger.pay_out()
        sums.append((made.batch, made.at_ms, 1, micro))
    assert [astuple(one) for one in store.ledger.batches()] == sums[::-1]
    wallets = [new_wallet() for _ in range(1500)]
    rows = [
        {"id": f"{n}", "batch": "many", "wallet": one, "micro": 7, "at_ms": 0}
        for n, one in enumerate(wallets)
    ]
    with store.database.write() as connection:
        connection.execute(wallet_table.insert(), [{"address": one} for one in wallets])
        connection.execute(payout.insert(), rows)
    assert [one.wallet for one in store.ledger.payouts("many")] == sorted(wallets)
    assert astuple(store.ledger.batches()[-1]) == ("many", 0, 1500, 10_500)


def test_held_pay_is_paid_out_once_its_node_is_adopted(store: HostStore) -> None:
    """Once, however many adopt it and pay out at a time, and with one line of the audit; a revoked node's, too."""
    owner = new_wallet()
    own, late = joined(store, wallet=owner), joined(store, wallet=owner, proven=False)
    store.ledger.correct(own.id, 10_000, "own")
    store.ledger.correct(late.id, 50_000, "held")
    store.nodes.set_state(late.id, "revoked", actor=owner, wallet=owner)
    assert [one.micro for one in store.ledger.pay_out()] == [10_000]
    balance = store.ledger.balance(owner)
    assert (balance.earned, balance.held, balance.payable) == (10_000, 50_000, 0)
    start = threading.Barrier(8)

    def adopt(_: int) -> list[Payout]:
        start.wait()
        assert store.nodes.adopt(late.id, actor="admin").proven
        return store.ledger.pay_out()

    with ThreadPoolExecutor(8) as threads:
        made = [one for found in threads.map(adopt, range(8)) for one in found]
    assert [(one.wallet, one.micro) for one in made] == [(owner, 50_000)]
    balance = store.ledger.balance(owner)
    assert (balance.earned, balance.held, balance.paid) == (60_000, 0, 60_000)
    with store.database.read() as connection:
        lines = select(audit.c.actor).where(audit.c.action == "node.adopt")
        assert connection.execute(lines).scalars().all() == ["admin"]
    assert store.ledger.differences() == []


def test_a_banned_nodes_pay_is_not_to_be_adopted(store: HostStore) -> None:
    """It is gone, and stays so."""
    node = joined(store, proven=False)
    store.ledger.correct(node.id, 50_000, "held")
    store.nodes.set_state(node.id, "banned", actor="admin")
    for node_id in (node.id, "x"):
        with pytest.raises(UnknownNode):
            store.nodes.adopt(node_id, actor="admin")
    assert store.ledger.pay_out() == []


def test_payouts_that_race_pay_once(store: HostStore) -> None:
    """Eight at a time, beside work that goes on."""
    nodes = [joined(store) for _ in range(5)]
    for node in nodes:
        store.ledger.correct(node.id, 100, f"first {node.id}")
    start = threading.Barrier(8)

    def pay(k: int) -> list[Payout]:
        start.wait()
        store.ledger.correct(nodes[k % 5].id, 1, f"{k}")
        return store.ledger.pay_out()

    with ThreadPoolExecutor(8) as threads:
        made = [one for found in threads.map(pay, range(8)) for one in found]
    made += store.ledger.pay_out()
    assert sum(one.micro for one in made) == 508
    assert store.ledger.payable() == []
    assert store.ledger.differences() == []


def test_a_payout_has_all_that_came_before_it(store: HostStore) -> None:
    """Also what another has added and not committed yet: the page calls what has a lower number paid."""
    node = joined(store)
    store.ledger.correct(node.id, 100, "first")
    row = (node.wallet, node.id, "correction", "second", 10)

    def is_waiting() -> bool:
        waits = text("SELECT 1 FROM pg_locks WHERE NOT granted")
        with store.database.read() as connection:
            return paying.done() or connection.execute(waits).first() is not None

    with ThreadPoolExecutor(1) as thread:
        with store.database.write() as connection:
            add(store.database, connection, store.now_ms(), *row)
            paying = thread.submit(store.ledger.pay_out)
            if not store.database.is_sqlite:  # where a thread waits for the other
                wait_until(is_waiting, message="a payout that waits")
        assert [one.micro for one in paying.result()] == [110]
    fates = [one.fate for one in store.overview.earnings(node.wallet)]
    assert fates == [None, "paid", "paid"]
    assert store.ledger.balance(node.wallet).payable == 0


def test_every_kind_of_difference_is_found(store: HostStore, clock: Clock) -> None:
    """A row that somebody changed or added by hand, whichever table it is in."""
    node, job = joined(store), store.jobs.submit(sleep())
    running(store, job.id)
    clock.now_s += 5
    store.leases.finish(job.id, node.id, Report("completed"))
    store.ledger.correct(node.id, 10, "a gift")
    [made] = store.ledger.pay_out()
    assert store.ledger.differences() == []
    row = {"at_ms": 1, "wallet": node.wallet, "node_id": node.id, "kind": "job"}
    with store.database.write() as connection:
        connection.execute(update(attempt).values(micro=90_000))
        connection.execute(ledger.insert().values(**row, ref="attempt:x:1", micro=5))
        connection.execute(update(payout).values(micro=1))
    first, second, third = store.ledger.differences()
    assert first == (
        f"Attempt 1 of job {job.id}: its times say 50000 micro-HYPER, its row has 90000, the ledger 50000 for its node."
    )
    assert second == "The ledger has a row for attempt:x:1, which is not."
    assert third == f"Payout {made.id}: 1 micro-HYPER, and the ledger has 50010 for it."


def test_an_audit_goes_through_its_rows_once(tmp_path: Path) -> None:
    """A node of thousands of attempts is no reason to go through all of them for each: what SQLite's machine does
    grows with their number, not with its square.
    """
    url = file_url(tmp_path / "hosts.sqlite3")
    steps: list[int] = []

    def count(connection: Any, _record: object) -> None:
        connection.set_progress_handler(lambda: steps.append(1), 100)

    with HostStore(Database(url), HostsSettings()) as store, Database(url) as counted:
        store.database.check()
        node = joined(store)
        event.listen(counted.engine, "connect", count)
        auditor = HostStore(counted, HostsSettings())
        work = []
        for batch, num in (("first", 300), ("more", 900)):
            ids = [f"{batch} {n}" for n in range(num)]
            asked = asdict(sleep()) | {"state": "completed", "rate_micro": 10_000, "attempts": 1}
            turn = {"n": 1, "node_id": node.id, "relay": "here", "gpu_uuids": [], "leased_ms": 1}
            turn |= {"lease_until_ms": 1, "sent_ms": 1000, "ended_ms": 6000, "micro": 50_000}
            row = {"at_ms": 1, "wallet": node.wallet, "node_id": node.id, "kind": "job"}
            with store.database.write() as connection:
                new = [asked | {"id": one, "created_ms": 1} for one in ids]
                connection.execute(job.insert(), new)
                done = [turn | {"job_id": one, "outcome": "completed"} for one in ids]
                connection.execute(attempt.insert(), done)
                paid = [row | {"ref": f"attempt:{one}:1", "micro": 50_000} for one in ids]
                connection.execute(ledger.insert(), paid)
            steps.clear()
            assert auditor.ledger.differences() == []
            work.append(len(steps))
    assert work[1] < 6 * work[0]
