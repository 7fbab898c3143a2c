"""The way to a gateway, as a machine's self-test measures it against a real one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pocqueue.hosts.agent.self_test.network import network_rows
from pocqueue.hosts.protocol import SPEED_BYTES, SPEED_PATH
from tests.hosts.gateway.conftest import Gateway

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_a_machine_measures_the_way(make: Callable[..., Gateway]) -> None:
    """20 MB each way over either port; an address may do that a few times an hour."""
    gateway = make(limits_factor=1.0)
    for endpoint in (gateway.ws_url, f"{gateway.ws_url}/ws", gateway.ws_url):
        rows = {row.name: row for row in await network_rows(endpoint)}
        assert {name: row.state for name, row in rows.items()} == {
            **dict.fromkeys(("dns", "way", "clock"), "pass"),
            "speed": rows["speed"].state,
        }
        assert rows["speed"].state in {"pass", "warn"}
        assert "Mbit/s down" in rows["speed"].measured
    for _ in range(5):
        row = {row.name: row for row in await network_rows(gateway.ws_url)}["speed"]
    assert (row.state, "a few times an hour" in row.measured) == ("skip", True)
    refused = gateway.http.get(SPEED_PATH)
    assert refused.status_code == 429
    assert "240 pieces in 3,600 seconds are allowed" in refused.json()["error"]


def test_a_piece_is_a_million_bytes(gateway: Gateway) -> None:
    """More than the gateway takes in one request is refused, as anywhere."""
    assert len(gateway.http.get(SPEED_PATH).content) == SPEED_BYTES
    assert gateway.http.post(SPEED_PATH, content=b"12345").json() == {"bytes": 5}
    assert gateway.http.post(SPEED_PATH, content=bytes(2 << 20)).status_code == 413
