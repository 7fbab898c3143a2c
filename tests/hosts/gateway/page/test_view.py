"""What a page shows of many machines, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocqueue.hosts.gateway.page import view
from pocqueue.hosts.gateway.page.rows import NodeRow
from pocqueue.hosts.gateway.page.view import Asked, read
from pocqueue.hosts.store import HostStore
from tests.hosts.gateway.page.fleet import fleet
from tests.hosts.parts import gpus, joined, new_wallet


def test_what_is_to_mend_is_first(store: HostStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever came later; every node is on one page, and each that is to mend is counted above."""
    monkeypatch.setattr(view, "PAGE", 3)
    asked, rows = Asked(fleet(store, 8)), list[NodeRow]()
    while not rows or asked.nodes:
        shown = read(store, asked, is_owner=True)
        rows += shown.nodes
        asked = replace(asked, nodes=shown.more_nodes)
    assert len({row.id for row in rows}) == len(rows) == 8
    assert [bool(row.notes) for row in rows] == [True] * 5 + [False] * 3
    numbers = [row.hostname[8:10] for row in rows]
    assert {*numbers[:3]} == {"01", "02", "04"}
    assert {*numbers[3:5]} == {"05", "06"}
    glance = shown.glance
    assert (glance.num["offline"], glance.num_unfit) == (1, 2)
    assert (glance.num_held, glance.num_stopped) == (1, 1)
    assert glance.num["mend"] == 5


def test_gpus_that_are_alike_are_one_line(store: HostStore) -> None:
    """Of those that are not, each has its own, with its number."""
    wallet = new_wallet()
    cards = gpus(4)
    node = joined(store, wallet=wallet, gpus=cards)
    [row] = read(store, Asked(wallet), is_owner=False).nodes
    assert [(gpu.num, gpu.number) for gpu in row.gpus] == [(4, 0)]
    store.health.set_self_test(node.id, [], {cards[1].uuid: "gpu_memory: uncorrected errors: 3"})
    [row] = read(store, Asked(wallet), is_owner=False).nodes
    assert [(gpu.num, gpu.number) for gpu in row.gpus] == [(1, 0), (1, 1), (2, 2)]
