"""Three of eight miners send the opposite of what they found from their first message on, each node a process."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from tests.pouw.acceptance.founded import Founded, founded, transactions
from tests.pouw.acceptance.history import (
    assert_one_history,
    messages_on_disk,
    turns_until_caught,
)
from tests.pouw.acceptance.processes import NodeProcess

pytestmark = pytest.mark.long

_MINERS = [f"miner_{number}" for number in range(8)]
#: Slots from which on the accuracy is looked at, and at which it is enough.
_LEARNED, _ENOUGH = 260, 340
_LOOK = re.compile(r"Task filler 0 slot (\d+): (\d+) of (\d+) right")


def _started(network: Founded) -> set[str]:
    """Start a network whose last three miners lie before they have a ticket; return their accounts."""
    network.start()
    liars = network.others[-3:]
    accounts = {one.account() for one in liars}
    for one in liars:
        one.tell("cheat/flipped")
    return accounts


def _shares(one: NodeProcess) -> list[float]:
    """Return which shares of its validation part the common model got right, in a supervisor's looks once it had learned."""
    looks = [map(int, look) for look in _LOOK.findall(one.log.read_text())]
    return [right / total for slot, right, total in looks if _LEARNED <= slot <= _ENOUGH]


def _have_learned(network: Founded) -> None:
    """Wait until the common model is trained; fail if it gets a tenth wrong by what a supervisor has seen since, on average:
    one look's part is 256 samples.
    """
    for one in network.supervisors:
        one.until_past("slot", _ENOUGH)
        assert statistics.mean(_shares(one)) > 0.9, one.name
    assert_one_history(network.nodes)


def test_the_others_learn_though_nobody_is_audited(tmp_path: Path) -> None:
    """All eight are certified slot after slot: a map weighs no more than another one. Blocks of liars are refused all the same."""
    trusting = dict.fromkeys([*range(4), *_MINERS], "audits-nobody")
    network = founded(tmp_path, *_MINERS, changes=trusting, slot_ms=100)
    try:
        liars = _started(network)
        _have_learned(network)
        assert not transactions(network.supervisors[0], "Evidence")
        sent = Counter(miner for _, miner in messages_on_disk(network.supervisors[0].folder))
        assert len(sent) == 8
        assert sum(sent[account] for account in liars) > sum(sent.values()) / 4
        blocks = network.supervisors[0].ask("blocks?last=1000")
        assert not liars & {block["miner"] for block in blocks}
    finally:
        network.stop()


def test_the_three_are_thrown_out(tmp_path: Path) -> None:
    """Each within 64 slots of its first message, and nobody else; the model learns as if they had never been there."""
    network = founded(tmp_path, *_MINERS, slot_ms=200)
    watching = network.supervisors[0]
    try:
        liars = _started(network)
        _have_learned(network)
        accused = {found["accused"] for found in transactions(watching, "Evidence")}
        assert accused == liars
        for account in liars:
            assert turns_until_caught(watching, account) <= 64
    finally:
        network.stop()
