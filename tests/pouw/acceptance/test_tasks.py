"""Clients' tasks on a network of processes, one supervisor, two miners, one evaluator: from the order to who was paid."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.data.files import hidden, vectors, write
from tests.pouw.flow.nodes import quick_genesis
from tests.support.commands import pocqueue
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long


class _Network(NamedTuple):
    folder: Path
    genesis: str
    supervisor: NodeProcess
    miners: list[NodeProcess]
    evaluator: NodeProcess

    def order(self, *options: str) -> tuple[dict[str, Any], str]:
        """Order a task as a client and watch it to its end; return what came of it, and what was told."""
        done = pocqueue(
            self.folder / "client",
            *("pouw", "task", "submit", *options, "--watch", "--json"),
            *("--bootstrap", f"127.0.0.1:{self.supervisor.port}"),
            POCQUEUE_POUW_NETWORK=self.genesis,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Network]:
    """All of them have their tickets."""
    folder = tmp_path_factory.mktemp("network")
    genesis = quick_genesis(folder, slot_ms=50, result_blocks=8, reveal_blocks=20)
    supervisor = NodeProcess(folder / "supervisor", "supervisor", genesis, options="--no-mine")
    others = [
        NodeProcess(folder / name, role, genesis, supervisor)
        for name, role in (("miner_1", "miner"), ("miner_2", "miner"), ("judge", "evaluator"))
    ]
    nodes = [supervisor, *others]
    try:
        for one in nodes:
            one.start()
        for one in nodes:
            wait_until(functools.partial(_is_staked, one), message=f"a ticket of {one.name}")
        yield _Network(folder, genesis, supervisor, others[:2], others[2])
    finally:
        for one in reversed(nodes):
            one.stop()


def _is_staked(one: NodeProcess) -> bool:
    return bool((one.ask() or {"economics": {}})["economics"].get("staked"))


def _paid(found: dict[str, Any], what: str) -> dict[str, int]:
    """Return who got how many µPAI for something."""
    lines = [one for one in found["payouts"] if one["for"] == what]
    return {one["account"]: round(1_000_000 * one["amount"]) for one in lines}


def _account(one: NodeProcess) -> str:
    account = one.ask()["public_key"]
    assert isinstance(account, str)
    return account


def test_a_hidden_part_decides_what_a_model_is_worth(network: _Network) -> None:
    """Nobody has it before the training is over; then its client shows it, the evaluator counts, and all is paid."""
    own = vectors(num_train=600, num_val=150)
    data, test = network.folder / "own.safetensors", network.folder / "test.safetensors"
    write(data, own)
    write(test, hidden(vectors(num_train=30, num_val=77)))
    found, told = network.order(
        *(str(data), "--test", str(test), "--name", "own", "--widths", "16"),
        *("--min-accuracy", "0.6", "--max-epochs", "60"),
    )
    for line in (
        r"trained: closed by the committee of epoch \d+ after \d+ slots; it counts \d+ of 150 right",
        r"its hidden test part is shown",
        r"evaluator 0[23][0-9a-f]{10} finds \d+ of 77 right",
        r"settled: the median is [\d.]+ % right, so quality is [\d.]+ %",
    ):
        assert re.search(f"^own: {line}", told, re.MULTILINE), told
    assert found["state"] == "settled"
    assert found["quality"] > 0
    assert sum(round(1_000_000 * one["amount"]) for one in found["payouts"]) == 55_000_000
    mined, evaluated = _paid(found, "training"), _paid(found, "evaluating")
    assert set(mined) <= {_account(one) for one in network.miners}
    assert set(evaluated) == {_account(network.evaluator)}
    assert sum(evaluated.values()) > 0
    assert set(_paid(found, "certifying")) == {_account(network.supervisor)}
    # What the network says of the work is the chain's.
    reputations = [one.ask()["economics"]["reputation"] for one in network.miners]
    assert max(reputations) > 0.5


def test_a_tau_that_is_too_large_ends_in_a_refund(network: _Network) -> None:
    """After two laps, with the reason; of the fee only those are paid for."""
    found, told = network.order(
        "words", "--tau", "1", "--name", "stiff", "--max-epochs", "100", "--fee", "10"
    )
    assert "stiff: refunded: messages of its first slots moved next to nothing" in told
    assert found["state"] == "refunded"
    [left] = _paid(found, "what is left").values()
    assert 58_000_000 < left < 60_000_000
    assert sum(round(1_000_000 * one["amount"]) for one in found["payouts"]) == 60_000_000
