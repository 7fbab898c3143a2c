"""Four supervisors who do not trust each other: what their network promises, and what it does when one of them lies.

One network of nine processes for all tests of this module; at the end it has one history.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest

from pocqueue.node.keys import SigningKey
from tests.pouw.acceptance.history import assert_one_history
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: What was on its way when something is cut has arrived after this.
_ON_ITS_WAY_S = 2.0
#: Several times what a ballot without its leader takes.
_STILL_S = 5.0


class _Network(NamedTuple):
    supervisors: list[NodeProcess]
    others: list[NodeProcess]  #: three miners, a verifier, a peer

    @property
    def nodes(self) -> list[NodeProcess]:
        """Return all of them."""
        return self.supervisors + self.others


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Network]:
    """Give a network whose committee of four is in office and certifies slots."""
    folder = tmp_path_factory.mktemp("network")
    keys = [SigningKey.generate() for _ in range(4)]
    accounts = ", ".join(f'"{key.public_hex}"' for key in keys)
    genesis = quick_genesis(
        folder, slot_ms=150, block_ms=2000, first_target_bits=249, supervisors=f"[{accounts}]"
    )
    supervisors: list[NodeProcess] = []
    for place, key in enumerate(keys):
        one = NodeProcess(
            folder / f"supervisor_{place}",
            "supervisor",
            genesis,
            *supervisors,
            options="--no-mine",
            key=key,
            can_be_told=True,
        )
        supervisors.append(one)
    others = [
        NodeProcess(folder / name, name.partition("_")[0], genesis, *supervisors, can_be_told=True)
        for name in ("miner_0", "miner_1", "miner_2", "verifier", "peer")
    ]
    found = _Network(supervisors, others)
    try:
        for one in found.nodes:
            one.start()
        for one in found.nodes:
            one.until_past("turn", 10)
        yield found
        height = max(one.number("blockchain_height") for one in found.nodes)
        for one in found.nodes:
            one.until_past("anchor_height", height)
        assert_one_history(found.nodes)
        for one in found.nodes:
            assert "Traceback" not in one.log.read_text(), one.name
    finally:
        for one in found.nodes:
            one.stop()


def _turn(nodes: Sequence[NodeProcess]) -> int:
    return max(one.number("turn") for one in nodes)


def _all_go_on(nodes: Sequence[NodeProcess]) -> None:
    """Wait until each of these has slots that nobody had yet."""
    newest = _turn(nodes)
    for one in nodes:
        one.until_past("turn", newest)


def _stand_still(nodes: Sequence[NodeProcess]) -> None:
    """Fail if one of these gets a slot after what was on its way."""
    time.sleep(_ON_ITS_WAY_S)
    before = [one.number("turn") for one in nodes]
    time.sleep(_STILL_S)
    assert [one.number("turn") for one in nodes] == before


def _evidence(one: NodeProcess) -> list[dict[str, Any]]:
    """Return the evidence in a node's chain: what it is, and whom it accuses."""
    found = []
    for block in one.ask("blocks?last=1000"):
        if block["num_transactions"]:
            found += one.ask(f"blocks/{block['height']}")["transactions"]
    return [transaction for transaction in found if transaction["kind"] == "Evidence"]


def _trained(one: NodeProcess) -> list[dict[str, Any]]:
    """Return the final blocks of a node that were trained."""
    return [
        block
        for block in one.ask("blocks?last=1000") or []
        if block["is_final"] and not block["proof"].startswith("founding")
    ]


def test_all_nodes_have_the_same_blocks_and_weights(network: _Network) -> None:
    """Slots are certified by the four together, eight blocks are mined, the model gets 0.93 right, nobody is accused."""

    def is_trained(one: NodeProcess) -> bool:
        return len(_trained(one)) >= 8 and ((one.ask() or {}).get("accuracy") or 0) >= 0.93

    # Who of them has looked at the model's accuracy says it; a peer trusts in what is certified.
    for one in network.supervisors:
        wait_until(lambda one=one: is_trained(one), message=f"what {one.name} trains")  # type: ignore[misc]
    height = max(one.number("anchor_height") for one in network.nodes)
    for one in network.nodes:
        one.until_past("anchor_height", height - 1)
    blocks = [
        {block["id"] for block in _trained(one) if block["height"] <= height}
        for one in network.nodes
    ]
    assert len(blocks[0]) >= 8
    assert all(found == blocks[0] for found in blocks)
    statuses = [one.ask() for one in network.nodes]
    committees = {tuple(status["committee"]) for status in statuses}
    assert {len(committee) for committee in committees} == {4}
    assert len(committees) == 1
    thetas: dict[int, set[str]] = {}
    for one in network.nodes:
        for slot in one.ask("slots?last=50"):
            thetas.setdefault(slot["turn"], set()).add(slot["theta"])
    assert all(len(found) == 1 for found in thetas.values())
    assert any(len(found) == 1 for found in thetas.values())
    # Of slots that are late on a busy machine may be told, of nobody in particular.
    alerts = [alert for one in network.nodes for alert in one.ask("alerts")["alerts"]]
    assert [alert for alert in alerts if alert["source_peer"]] == []


def test_a_supervisor_that_is_killed_holds_nobody_up(network: _Network) -> None:
    """Slots go on without it; started again it follows, and contradicts nothing that it has said."""
    victim, *rest = network.supervisors
    victim.kill()
    for one in rest:
        one.until_past("turn", _turn(rest) + 8)
    victim.start()
    _all_go_on(network.nodes)
    assert not _evidence(network.others[-1])


def test_without_two_of_four_nothing_is_certified(network: _Network) -> None:
    """As long as they stand still; then slots go on, where they were."""
    for one in network.supervisors[:2]:
        one.signal(signal.SIGSTOP)
    try:
        _stand_still([*network.supervisors[2:], *network.others])
    finally:
        for one in network.supervisors[:2]:
            one.signal(signal.SIGCONT)
    _all_go_on(network.nodes)


@pytest.mark.parametrize("inside", [2, 1])
def test_a_network_in_two_parts(network: _Network, inside: int) -> None:
    """Only that part goes on that has three of the four; joined, both have its history."""
    one_side = [*network.supervisors[:inside], network.others[0]]
    other_side = [one for one in network.nodes if one not in one_side]
    for here, there in ((one_side, other_side), (other_side, one_side)):
        for one in here:
            one.cut(*there)
    try:
        _stand_still(one_side)
        if inside == 1:
            _all_go_on(other_side)
        else:
            _stand_still(other_side)
    finally:
        for one in network.nodes:
            one.tell("heal")
    _all_go_on(network.nodes)


def test_a_leader_of_two_minds_loses_its_stake(network: _Network) -> None:
    """It proposes two values each time; there is one certificate a turn, and its ticket is gone."""
    liar = network.supervisors[3]
    account = liar.ask()["public_key"]
    liar.tell("cheat/two-values")
    try:
        wait_until(
            lambda: any(
                (one["evidence"], one["accused"]) == ("TwoProposals", account)
                for one in _evidence(network.others[-1])
            ),
            message="evidence of it in the chain",
        )
    finally:
        liar.tell("cheat/none")
    assert network.others[-1].ask(f"accounts/{account}")["tickets"] == []
    _all_go_on(network.nodes)
    certificates: dict[int, set[str]] = {}
    for one in network.nodes:
        for slot in one.ask("slots?last=200"):
            certificates.setdefault(slot["turn"], set()).add(slot["certificate"])
    assert all(len(found) == 1 for found in certificates.values())


def test_nothing_was_told_that_did_not_happen(network: _Network) -> None:
    """Alerts are about what was done here, of the liar at most."""
    for one in network.nodes:
        kinds = set(re.findall(r"Security alert: (\w+)", one.log.read_text()))
        assert kinds <= {"isolated_detected", "byzantine_fault_detected"}, one.name
