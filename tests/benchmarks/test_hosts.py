"""What is pure in the rows of GPU hosts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from benchmarks.hosts.nodes import address_of
from benchmarks.hosts.page import statuses
from benchmarks.stats import percentile
from pocqueue.hosts.gateway.page.view import rows_of


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


def test_the_events_of_a_page_are_read_as_they_are_written() -> None:
    """By the page's own template; what says nothing of nodes is passed over."""
    node = {"hostname": "rig", "gpus": [], "last_heartbeat": "", "earned": "0", "failed": []}
    nodes = [node | {"id": "a-1", "status": "offline"}, node | {"id": "b-2", "status": "online"}]
    rows = rows_of({"nodes": nodes, "jobs": [], "online": 1, "earned": "0", "held": ""})
    assert statuses(f"data: {json.dumps(rows)}") == {"a-1": "offline", "b-2": "online"}
    for line in ("id: 3", "retry: 2000", ": still there", "", 'data: {"jobs": ""}'):
        assert statuses(line) is None, line
