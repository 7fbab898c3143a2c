"""Miners that do not train as they say, or whose blocks are not of their training, where four certify: each is a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.pouw.acceptance.founded import Founded, all_go_on, founded, transactions
from tests.pouw.acceptance.history import assert_one_history, turns_until_caught
from tests.pouw.acceptance.processes import NodeProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long


class _Network(NamedTuple):
    folder: Path
    nodes: Founded
    cheats: set[str]  #: accounts

    @contextmanager
    def cheat(self, lie: str) -> Iterator[tuple[NodeProcess, str]]:
        """Give one more miner, which cheats from its first message on, and its account."""
        one = NodeProcess(
            self.folder / lie,
            "miner",
            self.nodes.genesis,
            *self.nodes.supervisors,
            can_be_told=True,
        )
        try:
            one.start()
            account = one.account()
            self.cheats.add(account)
            one.tell(f"cheat/{lie}")
            yield one, account
        finally:
            one.stop()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Network]:
    """Give four supervisors in office, a miner and a verifier; at the end they have one history, and their stakes."""
    folder = tmp_path_factory.mktemp("network")
    found = _Network(
        folder, founded(folder, "miner", "verifier", slot_ms=200, block_ms=1000), set()
    )
    try:
        found.nodes.start()
        for one in found.nodes.nodes:
            one.until_past("turn", 5)
        wait_until(lambda: all(map(_tickets, found.nodes.nodes)), message="all tickets")
        yield found
        all_go_on(found.nodes.nodes)
        height = max(one.number("blockchain_height") for one in found.nodes.nodes)
        for one in found.nodes.nodes:
            one.until_past("anchor_height", height)
            assert _tickets(one), one.name
            assert "Traceback" not in one.log.read_text(), one.name
        assert_one_history(found.nodes.nodes)
        accused = {one["accused"] for one in transactions(found.nodes.others[0], "Evidence")}
        assert accused <= found.cheats
    finally:
        found.nodes.stop()


def _tickets(one: NodeProcess, account: str | None = None) -> list[dict[str, Any]]:
    """Return the live tickets of an account, its own if none is named, by a node's chain."""
    status = one.ask()
    if status is None:
        return []
    found = one.ask(f"accounts/{account or status['public_key']}")
    return found["tickets"] if found else []


@pytest.mark.parametrize(
    "lie",
    [
        *("random-map", "flipped", "copied", "eighth-of-the-batch", "bfloat16"),
        *("other-weights-end", "old-residual"),
    ],
)
def test_who_trains_otherwise_loses_its_stake(network: _Network, lie: str) -> None:
    """Within 64 slots, by the word of three of the four, whoever found it; that evidence holds for anybody who looks again."""
    watching = network.nodes.others[0]
    with network.cheat(lie) as (_, account):
        wait_until(lambda: watching.ask(f"evidence/{account}"), message="evidence in the chain")
        [shown] = watching.ask(f"evidence/{account}")
        assert (shown["kind"], shown["culprit"], shown["holds"]) == ("Fault", account, True)
        assert _tickets(watching, account) == []
        assert turns_until_caught(watching, account) <= 64


@pytest.mark.parametrize(("lie", "rule"), [("other-header", "commitment"), ("other-nonce", "draw")])
def test_a_block_that_was_looked_for_by_hashing_is_refused(
    network: _Network, lie: str, rule: str
) -> None:
    """By each node that it is sent to, with the rule that it breaks; and whoever sent it is kept out."""
    with network.cheat(lie) as (_, account):

        def is_refused(judge: NodeProcess) -> bool:
            alerts = (judge.ask("alerts") or {"alerts": []})["alerts"]
            return any(
                (alert["type"], alert["source_peer"]) == ("invalid_block", account)
                and f"{rule}: " in alert["detail"]
                for alert in alerts
            )

        def is_kept_out(judge: NodeProcess) -> bool:
            peers = judge.ask("peers")
            return peers is not None and account not in {peer["account"] for peer in peers}

        judges = network.nodes.supervisors
        wait_until(lambda: all(map(is_refused, judges)), message="the alerts of all four")
        wait_until(lambda: all(map(is_kept_out, judges)), message="the end of its links")
        chain = network.nodes.others[0].ask("blocks?last=1000")
        assert account not in {block["miner"] for block in chain}
