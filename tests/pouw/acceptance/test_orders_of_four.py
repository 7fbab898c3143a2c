"""Clients' orders on a network that four supervisors certify together: closed, evaluated, paid out; and a private one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pocqueue.node.keys import SigningKey
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis
from tests.support.commands import pocqueue
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long


class _Network(NamedTuple):
    folder: Path
    genesis: str
    supervisors: list[NodeProcess]
    miners: list[NodeProcess]
    evaluator: NodeProcess

    @property
    def nodes(self) -> list[NodeProcess]:
        """Return all of them."""
        return [*self.supervisors, *self.miners, self.evaluator]

    def order(self, *options: str) -> tuple[dict[str, Any], str]:
        """Order a small model of the digits and watch it to its end; return what came of it, and what was told."""
        done = pocqueue(
            self.folder / "client",
            *("pouw", "task", "submit", "digits", "--widths", "16", *options, "--watch", "--json"),
            *("--bootstrap", f"127.0.0.1:{self.supervisors[0].port}"),
            POCQUEUE_POUW_NETWORK=self.genesis,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Network]:
    """All of them have their tickets, and the four are in office."""
    folder = tmp_path_factory.mktemp("network")
    keys = [SigningKey.generate() for _ in range(4)]
    listed = ", ".join(f'"{key.public_hex}"' for key in keys)
    genesis = quick_genesis(folder, slot_ms=50, result_blocks=8, supervisors=f"[{listed}]")
    supervisors: list[NodeProcess] = []
    for place, key in enumerate(keys):
        folder_of = folder / f"supervisor_{place}"
        supervisors.append(
            NodeProcess(
                folder_of, "supervisor", genesis, *supervisors, options="--no-mine", key=key
            )
        )
    miners = [
        NodeProcess(folder / f"miner_{place}", "miner", genesis, *supervisors) for place in range(2)
    ]
    evaluator = NodeProcess(folder / "evaluator", "evaluator", genesis, *supervisors)
    found = _Network(folder, genesis, supervisors, miners, evaluator)
    try:
        for one in found.nodes:
            one.start()
        for one in found.nodes:
            one.until_past("turn", 3)
            wait_until(lambda one=one: _is_staked(one), message=f"a ticket of {one.name}")  # type: ignore[misc]
        yield found
    finally:
        for one in reversed(found.nodes):
            one.stop()


def _is_staked(one: NodeProcess) -> bool:
    return bool((one.ask() or {"economics": {}})["economics"].get("staked"))


def _accounts(nodes: list[NodeProcess]) -> set[str]:
    return {one.ask()["public_key"] for one in nodes}


def _paid(found: dict[str, Any], what: str) -> dict[str, int]:
    """Return who got how many µPAI for something."""
    lines = [one for one in found["payouts"] if one["for"] == what]
    return {one["account"]: round(1_000_000 * one["amount"]) for one in lines}


def test_an_order_is_closed_evaluated_and_paid_out_line_by_line(network: _Network) -> None:
    """What the four say of it needs three of them; all four are paid alike, and whoever trained and evaluated is."""
    found, told = network.order("--name", "open", "--min-accuracy", "0.5", "--max-epochs", "60")
    for line in (
        r"trained: closed by the committee of epoch \d+ after \d+ slots; it counts \d+ of 256 right",
        r"evaluator 0[23][0-9a-f]{10} finds \d+ of 256 right",
        r"settled: the median is [\d.]+ % right, so quality is 100.00 %",
    ):
        assert re.search(f"^open: {line}", told, re.MULTILINE), told
    assert found["state"] == "settled"
    assert sum(round(1_000_000 * one["amount"]) for one in found["payouts"]) == 55_000_000
    for one in found["payouts"]:
        assert f"{one['amount']:.6f} PAI to" in told
    certified = _paid(found, "certifying")
    assert certified == dict.fromkeys(_accounts(network.supervisors), 2_750_000)
    trained, evaluated = _paid(found, "training"), _paid(found, "evaluating")
    assert set(trained) <= _accounts(network.miners)
    assert set(evaluated) == _accounts([network.evaluator])
    # Shares are rounded down; what that leaves goes back to the client.
    assert 0 <= 33_000_000 - sum(trained.values()) < len(trained)
    assert sum(evaluated.values()) == 8_250_000


def test_a_private_order_is_trained_by_several_miners(network: _Network) -> None:
    """Each shows its noise to the four, or none of its messages would be certified; both are paid for theirs."""
    found, told = network.order(
        *("--name", "private", "--epsilon", "50", "--max-epochs", "3"),
        *("--min-accuracy", "0.01", "--min-miners", "2"),
    )
    assert "private: settled: " in told
    assert set(_paid(found, "training")) == _accounts(network.miners)
    assert set(_paid(found, "certifying")) == _accounts(network.supervisors)
    assert all(amount > 0 for amount in _paid(found, "training").values())
