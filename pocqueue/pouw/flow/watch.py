"""What a node watches over beside its work: whether the committee's members take part, and whether it hears of any."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pocqueue.pouw.chain.records import SUPERVISOR, Committee
from pocqueue.pouw.committee.attendance import Attendance
from pocqueue.pouw.flow.addresses import staked
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.wire.evidence import TwoProposals, TwoVotes

#: Without a new certificate for so long a node says that it is isolated.
_ISOLATED_S = 30.0
#: The same after a slot that had no messages: such slots last up to two minutes.
_IDLE_SLOTS_S = 150.0
#: How often the committee is looked at.
_LOOK_S = 1.0
#: A share of 1/3 is 1 of 3, however it is rounded.
_EPSILON = 1e-9


class Present(NamedTuple):
    """A member of the committee in office, as this node hears of it."""

    account: bytes
    heard_s: float | None  #: seconds since it was heard last; None: it was not
    is_silent: bool
    is_faulty: bool


class Watch:
    """Tells what goes wrong with the committee, or with this node's links to it.

    Args:
        core, slots: of the node.
        clock: seconds that only grow.
    """

    def __init__(
        self, core: Core, slots: SlotFlow, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._core, self._slots, self._clock = core, slots, clock
        self._committee: Committee | None = None
        self._attendance = Attendance(1)
        self._is_told = False

    def heard(self, committee: Committee, turn: int, member: int) -> None:
        """Note a member's word, which was checked."""
        self._of(committee).hear(turn, member, self._clock())

    def contradicted(self, fault: TwoVotes | TwoProposals) -> None:
        """Tell, once, of a member that has said two things in one ballot."""
        committee, place = self._committee, fault.first.member
        if committee is None or place in self._attendance.faulty:
            return
        self._attendance.faulty.add(place)
        self._core.alert(
            "byzantine_fault",
            f"member {place} of epoch {committee.epoch}, {committee.members[place].hex()[:16]}, has said two things in "
            "one ballot",
            source=committee.members[place],
            evidence=fault.first.id,
        )

    async def run(self) -> None:
        """Watch over both."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_committee())
            group.create_task(self._watch_isolation())

    def members(self, committee: Committee) -> list[Present]:
        """Return the members of the committee in office as this node hears of them."""
        attendance, now_s = self._of(committee), self._clock()
        silent = attendance.silent(self._slots.next_turn, now_s) if _is_heard(committee) else set()
        heard = attendance.heard_s
        return [
            Present(
                account,
                0.0 if account == self._core.account else _since(heard.get(place), now_s),
                place in silent,
                place in attendance.faulty,
            )
            for place, account in enumerate(committee.members)
        ]

    async def look(self) -> None:
        """Tell if too many members are faulty or silent; once, until there are fewer."""
        security, committee = self._core.security, await self._slots.committee()
        if security is None or committee is None or not _is_heard(committee):
            return
        attendance = self._of(committee)
        attendance.faulty |= self._punished(committee)
        share = attendance.share(self._slots.next_turn, self._clock())
        is_much = share >= security["byzantine_tolerance"].threshold - _EPSILON
        if is_much and not self._is_told:
            silent = attendance.silent(self._slots.next_turn, self._clock())
            self._core.alert(
                "byzantine_fault",
                f"of {len(committee.members)} members of epoch {committee.epoch} "
                f"{len(attendance.faulty)} are faulty and {len(silent - attendance.faulty)} silent",
            )
        self._is_told = is_much

    async def _watch_committee(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def _watch_isolation(self) -> None:
        """Tell when no certificate came for long although there is a committee, and look for others then."""
        core, is_told = self._core, False
        while True:
            newest = self._slots.newest[2]
            # Slots that nobody has a message of follow each other more and more slowly.
            is_idle = newest is not None and not newest.certificate.count
            patience_s = _IDLE_SLOTS_S if is_idle else _ISOLATED_S
            # One that has just come into office had no time to certify anything.
            has_committee = core.chain.tip.state.committee_in_office is not None
            came = await self._slots.changed.heard(patience_s)
            if not came and has_committee:
                if not is_told:
                    core.alert("isolated", f"no certificate came for {patience_s:.0f} s")
                # Whoever surrounds a node has no say in what the chain names.
                core.network.dial_all(staked(core.chain.tip.state, is_local=core.network.is_local))
            is_told = not came

    def _of(self, committee: Committee) -> Attendance:
        if committee != self._committee:
            members, own = committee.members, self._core.account
            place = members.index(own) if own in members else None
            self._committee, self._attendance = committee, Attendance(len(members), place)
        return self._attendance

    def _punished(self, committee: Committee) -> set[int]:
        """Return the places of those that have lost the stake of their seat."""
        state = self._core.chain.tip.state
        lost: dict[bytes, Any] = {
            slash.ticket: account
            for account, slashes in state.slashes().items()
            for slash in slashes
            if slash.role == SUPERVISOR
        }
        return {place for place, ticket in enumerate(committee.tickets) if ticket in lost}


def _is_heard(committee: Committee) -> bool:
    """Say whether its members speak to each other: one alone does not."""
    return len(committee.members) > 1


def _since(heard_s: float | None, now_s: float) -> float | None:
    return None if heard_s is None else now_s - heard_s
