"""What a node says while nobody is there, and while members of the committee are away or lie."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pocqueue.pouw.chain.records import SUPERVISOR, Committee
from pocqueue.pouw.flow import watch as watch_module
from pocqueue.pouw.flow.core import Bell
from pocqueue.pouw.flow.watch import Watch
from pocqueue.pouw.security import SecuritySystem
from pocqueue.pouw.wire.evidence import TwoVotes
from tests.pouw.offences import vote
from tests.pouw.support import account
from tests.support.waiting import PATIENCE_S

_NAMES = ("first", "second", "third", "fourth")
_COMMITTEE = Committee(
    0,
    tuple(map(account, _NAMES)),
    b"g" * 48,
    (1, 2, 3, 4),
    (b"k" * 48,) * 4,
    3,
    tuple(bytes([n]) * 32 for n in range(4)),
)


class _Node:
    """A node without a seat that follows this committee."""

    def __init__(self, committee: Committee = _COMMITTEE, own: str = "miner") -> None:
        self.security = SecuritySystem("node")
        self.alerts: list[str] = []
        self.slashes: dict[bytes, list[Any]] = {}
        state = SimpleNamespace(
            committee_in_office=committee, slashes=lambda: self.slashes, live_tickets=lambda _: {}
        )
        self.dialled = asyncio.Event()
        core = SimpleNamespace(
            account=account(own),
            security=self.security,
            chain=SimpleNamespace(tip=SimpleNamespace(state=state)),
            alert=lambda kind, detail, **_: self.alerts.append(f"{kind}: {detail}"),
            network=SimpleNamespace(is_local=True, dial_all=lambda _: self.dialled.set()),
        )

        async def in_office() -> Committee:
            return committee

        self.slots = SimpleNamespace(next_turn=0, committee=in_office, changed=Bell(), newest=None)
        self.now_s = 1000.0
        self.watch = Watch(cast(Any, core), cast(Any, self.slots), lambda: self.now_s)

    def turns(self, number: int, *members: int) -> None:
        """Have members speak in some turns, all of which are decided then."""
        for turn in range(self.slots.next_turn, self.slots.next_turn + number):
            for member in members:
                self.watch.heard(_COMMITTEE, turn, member)
        self.slots.next_turn += number


async def test_a_third_that_says_nothing_is_told_of_once() -> None:
    """One of four is less than a third; with two, nothing goes on, and that is told as well. Then again, later."""
    node = _Node()
    node.turns(20, 0, 1, 2)
    await node.watch.look()
    assert node.alerts == []
    assert [one.is_silent for one in node.watch.members(_COMMITTEE)] == [False, False, False, True]
    for member in (0, 1):
        node.watch.heard(_COMMITTEE, 20, member)
    node.now_s += 9
    await node.watch.look()
    assert node.alerts == []
    node.now_s += 1
    for _ in range(3):
        await node.watch.look()
    assert node.alerts == ["byzantine_fault: of 4 members of epoch 0 0 are faulty and 2 silent"]
    for member in (2, 3):
        node.watch.heard(_COMMITTEE, 20, member)
    node.turns(1, 0, 1, 2, 3)
    await node.watch.look()
    node.turns(20, 0, 1)
    await node.watch.look()
    assert len(node.alerts) == 2


async def test_the_operators_threshold_counts() -> None:
    """With a fifth, one of four is too much."""
    node = _Node()
    node.security["byzantine_tolerance"].threshold = 0.2
    node.turns(20, 0, 1, 2)
    await node.watch.look()
    assert node.alerts == ["byzantine_fault: of 4 members of epoch 0 0 are faulty and 1 silent"]


async def test_who_contradicts_itself_is_told_of_once_and_counts() -> None:
    """With one that is silent it makes a third."""
    node = _Node()
    node.turns(20, 0, 1, 2)
    fault = TwoVotes(vote("second", member=1), vote("second", member=1, value=bytes(32)))
    for _ in range(2):
        node.watch.contradicted(fault)
    assert len(node.alerts) == 1
    assert "member 1 of epoch 0" in node.alerts[0]
    await node.watch.look()
    assert node.alerts[1:] == ["byzantine_fault: of 4 members of epoch 0 1 are faulty and 1 silent"]
    assert [one.is_faulty for one in node.watch.members(_COMMITTEE)] == [False, True, False, False]


async def test_who_has_lost_the_stake_of_its_seat_counts() -> None:
    """Also at nodes that did not hear what it did."""
    node = _Node()
    node.turns(20, 0, 1, 2, 3)
    node.slashes = {
        _COMMITTEE.members[place]: [
            SimpleNamespace(role=SUPERVISOR, ticket=_COMMITTEE.tickets[place])
        ]
        for place in (0, 1)
    }
    await node.watch.look()
    assert node.alerts == ["byzantine_fault: of 4 members of epoch 0 2 are faulty and 0 silent"]


async def test_a_member_is_never_silent_to_itself() -> None:
    """It does not hear its own words."""
    node = _Node(own="first")
    node.turns(20, 1, 2, 3)
    found = node.watch.members(_COMMITTEE)
    assert [one.is_silent for one in found] == [False] * 4
    assert found[0].heard_s == 0


async def test_a_committee_of_one_is_not_watched() -> None:
    """It speaks to nobody."""
    committee = Committee(0, (account("supervisor"),), b"g" * 48)
    node = _Node(committee)
    node.slots.next_turn = 100
    await node.watch.look()
    assert node.alerts == []
    [only] = node.watch.members(committee)
    assert (only.heard_s, only.is_silent) == (None, False)


@pytest.mark.parametrize(("count", "said"), [(1, "for 2 s"), (0, "for 3 s")])
async def test_a_node_says_for_how_long_no_certificate_came(
    monkeypatch: pytest.MonkeyPatch, count: int, said: str
) -> None:
    """Which is longer after a slot without messages; and it dials whoever the chain names."""
    monkeypatch.setattr(watch_module, "_ISOLATED_S", 2)
    monkeypatch.setattr(watch_module, "_IDLE_SLOTS_S", 3)
    node = _Node()
    node.slots.newest = (b"", 1, SimpleNamespace(certificate=SimpleNamespace(count=count)))
    watching = asyncio.create_task(node.watch.run())
    async with asyncio.timeout(PATIENCE_S):
        await node.dialled.wait()
    assert [one for one in node.alerts if one.startswith("isolated") and said in one]
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
