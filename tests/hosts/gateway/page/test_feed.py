"""What an open page is told: what differs, and nothing else."""

from __future__ import annotations

from typing import Any

from pocqueue.hosts.gateway.page.feed import NOTHING, Feed
from pocqueue.hosts.gateway.page.view import Asked, View, read
from pocqueue.hosts.records import Beat, Report
from pocqueue.hosts.store import HostStore
from tests.hosts.parts import joined, new_wallet, running, sleep
from tests.support.waiting import Clock


def test_only_what_differs_is_told(store: HostStore, clock: Clock) -> None:
    """Rows by their key, heartbeats by themselves, and money as soon as a row or its owner changes."""
    wallet, feed = new_wallet(), Feed()
    asked, before = Asked(wallet), dict[str, View]()

    def news() -> dict[str, Any]:
        before["view"] = read(store, asked, is_owner=True, before=before.get("view"))
        return feed.news(before["view"])

    assert set(news()["lists"]) == {"nodes", "jobs", "earnings", "tokens"}
    assert news() == {}
    node = joined(store, wallet=wallet)
    held = joined(store, wallet=wallet, proven=False)
    told = news()
    assert set(told["lists"]["nodes"]["rows"]) == {node.id, held.id}
    assert NOTHING not in told["lists"]["nodes"]["keys"]
    assert news() == {}

    clock.now_s += 1
    store.presence.heard([Beat(node.id, f"socket of {node.id}", store.now_ms())])
    assert list(news()) == ["beats"]

    store.health.set_self_test(node.id, [{"name": "driver", "state": "fail"}], {})
    told = news()
    assert list(told["lists"]["nodes"]["rows"]) == [node.id]
    assert "failed a self-test" in told["texts"]["glance"]

    job = store.jobs.submit(sleep(only_node=node.id))
    running(store, job.id)
    assert set(news()["lists"]) == {"nodes", "jobs"}
    clock.now_s += 5
    store.leases.finish(job.id, node.id, Report("completed"))
    told = news()
    assert set(told["lists"]) == {"nodes", "jobs", "earnings"}
    [row] = told["lists"]["earnings"]["rows"].values()
    assert "0.05" in row
    assert "To be paid" in row

    store.ledger.correct(held.id, 20_000, "one")
    [row] = news()["lists"]["earnings"]["rows"].values()
    assert "Held" in row
    store.nodes.adopt(held.id, actor=wallet, wallet=wallet)
    [row] = news()["lists"]["earnings"]["rows"].values()
    assert "To be paid" in row
    store.nodes.set_state(held.id, "revoked", actor=wallet, wallet=wallet)
    told = news()
    assert told["lists"]["nodes"] == {"keys": [node.id], "rows": {}}
    assert news() == {}
