"""Clients' orders on a network that four supervisors certify together: closed, evaluated, paid out; a private one; and two
that nobody can train.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.pouw.acceptance.founded import Founded, founded
from tests.pouw.acceptance.processes import NodeProcess, order
from tests.pouw.data.files import vectors, write
from tests.support.commands import pocqueue
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long


class _Network(NamedTuple):
    folder: Path
    nodes: Founded

    @property
    def miners(self) -> list[NodeProcess]:
        """Return those that train."""
        return self.nodes.others[:2]

    @property
    def evaluator(self) -> NodeProcess:
        """Return who counts."""
        return self.nodes.others[2]

    def order(self, *options: str, code: int = 0) -> tuple[dict[str, Any], str]:
        """Order a small model of the digits and watch it to its end; return what came of it, and what was told.

        Args:
            options: more of the command's.
            code: that it leaves with: 1 if the order comes to nothing.
        """
        done = pocqueue(
            self.folder / "client",
            *("pouw", "task", "submit", "digits", "--widths", "16", *options, "--watch", "--json"),
            *("--bootstrap", f"127.0.0.1:{self.nodes.supervisors[0].port}"),
            POCQUEUE_POUW_NETWORK=self.nodes.genesis,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Network]:
    """All of them have their tickets, and the four are in office."""
    folder = tmp_path_factory.mktemp("network")
    found = founded(
        folder,
        *("miner_0", "miner_1", "evaluator"),
        changes=dict.fromkeys(range(4), "impatient"),
        can_be_told=False,
        slot_ms=50,
        result_blocks=8,
    )
    try:
        found.start()
        for one in found.nodes:
            one.until_past("turn", 3)
            wait_until(lambda one=one: _is_staked(one), message=f"a ticket of {one.name}")  # type: ignore[misc]
        yield _Network(folder, found)
    finally:
        found.stop()


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
    assert certified == dict.fromkeys(network.nodes.accounts, 2_750_000)
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
    assert set(_paid(found, "certifying")) == {*network.nodes.accounts}
    assert all(amount > 0 for amount in _paid(found, "training").values())


def test_an_order_that_too_few_can_train_ends_with_its_deadline(network: _Network) -> None:
    """The four say so together; all of it goes back, as there was no lap."""
    found, told = network.order(
        *("--name", "lonely", "--min-miners", "3", "--minutes", "1"), code=1
    )
    assert "lonely: refunded: nobody trained it" in told
    assert found["state"] == "refunded"
    assert _paid(found, "what is left") == {found["client"]: 55_000_000}


def test_an_order_whose_data_nobody_gets_ends_in_a_refund(network: _Network) -> None:
    """Its client stays, and gives its file to nobody: the four wait for it, then say together what is wrong."""
    file, at = network.folder / "own.safetensors", network.nodes.supervisors[0]
    write(file, vectors(num_train=600, num_val=150))
    argv = [str(file), "--widths", "16", "--name", "kept"]
    client = network.folder / "keeper"
    code, told = order(client, network.nodes.genesis, at, *argv, change="gives-no-data")
    assert code == 1
    assert "kept: refunded: its data are missing or are not what the order says" in told
    assert re.search(
        r"^kept: 55\.000000 PAI to 0[23][0-9a-f]{64} for what is left", told, re.MULTILINE
    )
    for one in network.nodes.nodes:
        wait_until(
            lambda one=one: ("kept", "refunded", 0) in _ends(one),  # type: ignore[misc]
            message=f"the refund at {one.name}",
        )


def _ends(one: NodeProcess) -> list[tuple[str, str, int]]:
    """Return names, states and slots of the tasks that a node knows of."""
    return [(task["name"], task["state"], task["slots"]) for task in one.ask("tasks") or []]
