"""Four supervisors who do not trust each other: what their network promises, and what it does when one of them lies.

One network of nine processes for all tests of this module; at the end it has one history.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.pouw.acceptance.founded import Founded, all_go_on, founded, newest_turn, transactions
from tests.pouw.acceptance.history import assert_one_history
from tests.pouw.acceptance.processes import NodeProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: What was on its way when something is cut has arrived after this.
_ON_ITS_WAY_S = 2.0
#: Several times what a ballot without its leader takes.
_STILL_S = 5.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Founded]:
    """Give a network whose committee of four is in office and certifies slots."""
    found = founded(
        tmp_path_factory.mktemp("network"),
        *("miner_0", "miner_1", "miner_2", "verifier", "peer"),
        slot_ms=150,
        block_ms=2000,
        first_target_bits=249,
    )
    try:
        found.start()
        for one in found.nodes:
            one.until_past("turn", 10)
        yield found
        _have_one_history(found.nodes)
        for one in found.nodes:
            assert "Traceback" not in one.log.read_text(), one.name
    finally:
        found.stop()


def _have_one_history(nodes: Sequence[NodeProcess]) -> None:
    """Wait until all blocks that somebody has are final for each of these; fail if they are not the same, or the slots."""
    height = max(one.number("blockchain_height") for one in nodes)
    for one in nodes:
        one.until_past("anchor_height", height)
    assert_one_history(nodes)


def _stand_still(nodes: Sequence[NodeProcess]) -> None:
    """Fail if one of these gets a slot after what was on its way."""
    time.sleep(_ON_ITS_WAY_S)
    before = [one.number("turn") for one in nodes]
    time.sleep(_STILL_S)
    assert [one.number("turn") for one in nodes] == before


def _trained(one: NodeProcess) -> list[dict[str, Any]]:
    """Return the final blocks of a node that were trained."""
    return [
        block
        for block in one.ask("blocks?last=1000") or []
        if block["is_final"] and not block["proof"].startswith("founding")
    ]


def test_all_nodes_have_the_same_blocks_and_weights(network: Founded) -> None:
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


def test_a_supervisor_that_is_killed_holds_nobody_up(network: Founded) -> None:
    """Slots go on without it; started again it follows, and contradicts nothing that it has said."""
    victim, *rest = network.supervisors
    victim.kill()
    for one in rest:
        one.until_past("turn", newest_turn(rest) + 8)
    victim.start()
    began_s, account = time.monotonic(), network.accounts[0]

    def is_heard() -> bool:
        """It votes again: another member has heard it since then."""
        since_s = time.monotonic() - began_s
        members = (rest[0].ask("committee") or {"members": []})["members"]
        heard_s = [one["heard_s"] for one in members if one["account"] == account]
        return any(one is not None and one < since_s for one in heard_s)

    wait_until(is_heard, message="a vote of who was killed")
    all_go_on(network.nodes)
    assert not transactions(network.others[-1], "Evidence")


def test_without_two_of_four_nothing_is_certified(network: Founded) -> None:
    """As long as they stand still; then slots go on, where they were."""
    for one in network.supervisors[:2]:
        one.signal(signal.SIGSTOP)
    try:
        _stand_still([*network.supervisors[2:], *network.others])
    finally:
        for one in network.supervisors[:2]:
            one.signal(signal.SIGCONT)
    all_go_on(network.nodes)


@pytest.mark.parametrize("inside", [2, 1])
def test_a_network_in_two_parts(network: Founded, inside: int) -> None:
    """Only that part goes on that has three of the four; joined, both have its history."""
    one_side = [*network.supervisors[:inside], network.others[0]]
    other_side = [one for one in network.nodes if one not in one_side]
    for here, there in ((one_side, other_side), (other_side, one_side)):
        for one in here:
            one.cut(*there)
    try:
        _stand_still(one_side)
        if inside == 1:
            all_go_on(other_side)
        else:
            _stand_still(other_side)
    finally:
        for one in network.nodes:
            one.tell("heal")
    all_go_on(network.nodes)
    _have_one_history(network.nodes)


def test_a_leader_of_two_minds_loses_its_stake(network: Founded) -> None:
    """It proposes two values each time; there is one certificate a turn, and its ticket is gone."""
    liar = network.supervisors[3]
    account = liar.ask()["public_key"]
    liar.tell("cheat/two-values")
    try:
        wait_until(
            lambda: any(
                (one["evidence"], one["accused"]) == ("TwoProposals", account)
                for one in transactions(network.others[-1], "Evidence")
            ),
            message="evidence of it in the chain",
        )
    finally:
        liar.tell("cheat/none")
    assert network.others[-1].ask(f"accounts/{account}")["tickets"] == []
    all_go_on(network.nodes)
    certificates: dict[int, set[str]] = {}
    for one in network.nodes:
        for slot in one.ask("slots?last=200"):
            certificates.setdefault(slot["turn"], set()).add(slot["certificate"])
    assert all(len(found) == 1 for found in certificates.values())


def test_nothing_was_told_that_did_not_happen(network: Founded) -> None:
    """Alerts are about what was done here, of the liar at most."""
    for one in network.nodes:
        kinds = set(re.findall(r"Security alert: (\w+)", one.log.read_text()))
        assert kinds <= {"isolated_detected", "byzantine_fault_detected"}, one.name
