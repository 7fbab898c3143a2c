"""A node's configuration: seed's defaults, bounds, live effort."""

from __future__ import annotations

from typing import Any

import pytest

from pocqueue.pouw.config import NodeConfig, place
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import ConfigError


def _config(**fields: Any) -> NodeConfig:
    given: dict[str, Any] = {"node_id": "miner_001", "role": NodeRole.MINER}
    return NodeConfig(**given | fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_id", ""),
        ("node_id", "a b"),
        ("node_id", "x" * 65),
        ("role", "miner"),
        ("host", ""),
        ("port", -1),
        ("port", 65536),
        ("port", True),
        ("initial_stake", -1),
        ("initial_stake", float("nan")),
        ("preferences", []),
        ("preferences", {"a": object()}),
        ("preferences", {"a": "x" * 2048}),
        ("omega_b", 0),
        ("omega_m", float("inf")),
        ("max_peers", 0),
        ("max_peers", 1001),
        ("data_mib", 127),
        ("bootstrap_peers", "localhost:8000"),
        ("bootstrap_peers", [("localhost", 0)]),
        ("bootstrap_peers", [("localhost", "8000")]),
        ("enable_security_monitoring", 1),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(field: str, value: Any) -> None:
    """In one sentence."""
    with pytest.raises(ConfigError) as caught:
        _config(**{field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} is ")
    assert "allowed:" in str(caught.value)


def test_effort_may_be_changed_while_a_node_runs() -> None:
    """Seed's tuning loop reaches two parts after five turns; it never leaves the bounds."""
    config = _config()
    assert (config.parts, config.tries(16)) == (1, 16)
    for _ in range(5):
        config.omega_b *= 1.1
        config.omega_m *= 0.5
    assert config.parts == 2
    assert config.tries(16) == 1
    config.omega_b = 1.0
    config.omega_m = 1.0
    assert (config.parts, config.tries(16)) == (8, 16)


def test_the_place_that_is_not_the_default_counts() -> None:
    """As seed's examples give it in one place, the other or both."""
    config = _config(host="0.0.0.0", port=8002)  # noqa: S104 - nothing listens
    assert place(config, "localhost", 8000) == ("0.0.0.0", 8002)  # noqa: S104
    assert place(config, "0.0.0.0", 8002) == ("0.0.0.0", 8002)  # noqa: S104
    assert place(_config(), "::1", 8001) == ("::1", 8001)
    with pytest.raises(ConfigError, match=r"8002.*|8003"):
        place(config, "localhost", 8003)
