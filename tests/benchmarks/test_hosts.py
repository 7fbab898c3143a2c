"""What is pure in the rows of GPU hosts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from benchmarks.hosts.nodes import address_of
from benchmarks.hosts.page import statuses
from benchmarks.stats import percentile
from pocqueue.hosts.gateway.page.feed import Feed
from pocqueue.hosts.gateway.page.view import Asked, read
from pocqueue.hosts.store import HostStore
from pocqueue.settings import HostsSettings, Settings
from tests.hosts.parts import joined


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0], 99, 3.0),
        ([2.0, 1.0], 50, 1.0),
        ([2.0, 1.0], 51, 2.0),
        (range(1, 1001), 99, 990),
        (range(1, 1001), 100, 1000),
    ],
)
def test_a_percentile_is_one_of_the_values(
    values: Sequence[float], percent: float, expected: float
) -> None:
    """The least that so many of them do not exceed."""
    assert percentile(values, percent) == expected


def test_each_machine_has_an_address_of_its_own_on_loopback() -> None:
    """A gateway bounds what comes from one address."""
    addresses = {ip_address(address_of(number)) for number in range(20_000)}
    assert len(addresses) == 20_000
    assert all(address.is_loopback for address in addresses)
    assert ip_address("127.0.0.1") not in addresses


def test_the_events_of_a_page_are_read_as_they_are_written(tmp_path: Path) -> None:
    """By the page itself; what says nothing of nodes is passed over."""
    with HostStore.open(Settings(state_dir=tmp_path), HostsSettings()) as store:
        there = joined(store)
        gone = joined(store, wallet=there.wallet, connect=False)
        news = Feed().news(read(store, Asked(there.wallet), is_owner=False))
    found = statuses(f"data: {json.dumps(news)}")
    assert found == {there.id: "online", gone.id: "offline"}
    for line in ("id: 3", "retry: 2000", ": still there", "", 'data: {"texts": {}}'):
        assert statuses(line) is None, line
