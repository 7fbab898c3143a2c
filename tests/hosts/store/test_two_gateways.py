"""Two gateways on one database, at once: what they, their agents and an admin do, in any order, is paid once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from pocqueue.hosts.errors import DatabaseUnavailable, HostError
from pocqueue.hosts.records import Beat, Report
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.database import Database
from pocqueue.settings import HostsSettings
from tests.hosts.parts import gpus, joined, sleep
from tests.hosts.store.test_failures import check
from tests.support.waiting import Clock

#: Two of each gateway.
NUM_THREADS = 4
NUM_CALLS = 60


def something(
    store: HostStore, relay: str, nodes: Sequence[str], jobs: Sequence[str], chance: random.Random
) -> Callable[[], object]:
    """Return a call that one of many makes: about any node, and any job as it stands now."""
    node_id, job_id = chance.choice(nodes), chance.choice(jobs)
    turns = store.jobs.attempts(job_id)
    has, n = (turns[-1].node_id, turns[-1].n) if turns else (node_id, 1)
    beats = [Beat(one, relay, store.now_ms(), tuple(jobs)) for one in nodes]
    calls: list[Callable[[], object]] = [
        lambda: list(store.places.place_waiting(limit=5)),
        lambda: store.places.place(job_id),
        lambda: store.leases.sent(job_id, n),
        lambda: store.leases.finish(job_id, has, Report("completed", n=n)),
        lambda: store.leases.finish(job_id, has, Report("failed", n=n)),
        lambda: store.leases.refuse(job_id, n, has, "no"),
        lambda: store.leases.cancel(job_id, actor="admin"),
        lambda: store.leases.sweep(),
        lambda: store.presence.connected(node_id, relay, relay),
        lambda: store.presence.disconnected(node_id, relay),
        lambda: store.presence.relay_started(relay),
        lambda: store.presence.heard(beats),
        lambda: store.nodes.adopt(nodes[0], actor="admin"),
        lambda: store.nodes.set_state(node_id, "draining", actor="admin"),
        lambda: store.nodes.set_state(node_id, "active", actor="admin"),
        lambda: store.ledger.pay_out(),
    ]
    if chance.random() < 0.01:
        return lambda: store.nodes.set_state(nodes[-1], "banned", actor="admin")
    return chance.choice(calls)


def test_two_gateways_at_once(database_url: str) -> None:
    """Each with connections of its own: all agrees in the end, and none has waited for the other for ever."""
    clock = Clock()
    deadlocks: list[str] = []
    start = threading.Barrier(NUM_THREADS)

    def work(number: int) -> None:
        store, chance = stores[number % 2], random.Random(number)  # noqa: S311
        start.wait()
        for _ in range(NUM_CALLS):
            clock.now_s += 0.5
            try:
                something(store, f"relay {number % 2}", nodes, jobs, chance)()
            except DatabaseUnavailable as exc:
                if "deadlock" in str(exc):
                    deadlocks.append(str(exc))
            except HostError:
                pass

    with ExitStack() as stack:
        stores = [
            stack.enter_context(HostStore(Database(database_url), HostsSettings(), clock=clock))
            for _ in range(2)
        ]
        nodes = [
            joined(stores[0], proven=n > 0, gpus=gpus(2), address=f"192.0.2.{n}").id
            for n in range(6)
        ]
        jobs = [stores[0].jobs.submit(sleep(5, gpus=n % 2, max_attempts=9)).id for n in range(30)]
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            list(threads.map(work, range(NUM_THREADS)))
        check(stores[0])
        clock.now_s += 5000
        stores[0].leases.sweep()
        stores[0].ledger.pay_out()
        check(stores[0])
        assert stores[0].ledger.balance(stores[0].nodes.get(nodes[1]).wallet).payable == 0
    assert deadlocks == []
