"""Whatever hypothesis thinks of: ballots that reach some, a liar that agrees with everybody, restarts at any word.

Every word is held against `ledger`; so a wrong rule is found by what it has somebody say, long before luck makes two
decisions of it. What was put into the agreement on purpose, and in which history of 600 it was found:

    prevotes whatever its lock is                                24
    precommits what it prevoted, or what one fewer prevoted       2, 5
    precommits what a quorum prevoted in an earlier ballot        2
    gives its lock up for an earlier quorum of prevotes         134
    gives its lock up for a quorum of prevotes for nothing      134
    gives its lock up for a quorum that it was not shown         28
    forgets its lock after two ballots                           63
    forgets its precommits, prevotes or proposals in a restart   49, 12, 12
    forgets in a restart in which step it is, and votes again    12
    a quorum is one fewer, or one more                            4, 2
    takes a proposal of somebody who does not lead                4
    finds everything good                                         2
    never proposes anew what a quorum has prevoted for            4
    counts a liar's first vote alone                             66

Not found, of 250: it leaves a ballot silently; it does not write whose prevotes have locked it; it repeats a valid value
without its ballot. Those hold up a decision at worst, and only where restarts and losses come together.
"""

from __future__ import annotations

from itertools import combinations

from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE, Proposal, Vote
from tests.pouw.committee.turmoil import Turmoil

#: Those of the three honest ones that something reaches: all at best.
_SOME = st.sampled_from([set(some) for num in (3, 2, 1, 0) for some in combinations(range(3), num)])
_ALL = {0, 1, 2}
_FEW = st.integers(0, 2)
_TROUBLE = ["restart", "kill", "repeat", "tick", "lose", "refuse", "hear"]


class FourMembers(RuleBasedStateMachine):
    """Four members, one of whom lies."""

    turmoil: Turmoil
    liar: int

    @initialize(liar=st.integers(0, 3))
    def begin(self, liar: int) -> None:
        """Choose who lies."""
        self.liar, self.turmoil = liar, Turmoil(4, [liar])

    @rule(locked=_SOME, decided=_SOME, old=_FEW)
    def decide(self, locked: set[int], decided: set[int], old: int) -> None:
        """Hold a ballot: all may prevote, some hear all prevotes, and some all precommits."""
        self._hold(_ALL, locked, decided, old)

    @rule(locked=_SOME, old=_FEW)
    def lock(self, locked: set[int], old: int) -> None:
        """Hold a ballot that some are locked in, and that decides nothing."""
        self._hold(_ALL, locked, set(), old)

    @rule(proposed=_SOME, old=_FEW)
    def propose(self, proposed: set[int], old: int) -> None:
        """Hold a ballot that nobody is locked in: whatever a quorum has prevoted for, nobody knows it in time."""
        self._hold(proposed, set(), set(), old)

    @rule(proposed=_SOME, prevoted=_SOME, precommitted=_SOME, old=_FEW)
    def begin_a_ballot(
        self, proposed: set[int], prevoted: set[int], precommitted: set[int], old: int
    ) -> None:
        """Hold as much of a ballot as there is when some hear nothing of a step."""
        self._hold(proposed, prevoted, precommitted, old, is_rest_silent=True)

    @rule(what=st.sampled_from(["propose", PREVOTE, PRECOMMIT]), which=_FEW, other=_FEW, to=_SOME)
    def lie(self, what: str | int, which: int, other: int, to: set[int]) -> None:
        """The liar says of the newest ballot what it may not, or what nobody understands: a proposal out of turn, a
        vote for another value, a share of another ballot.
        """
        turmoil, ballot = self.turmoil, self._newest
        name = [*turmoil.names[::-1], "x", "y", "z"][which]
        kind = None if what == "propose" else int(what)
        turmoil.lie(self.liar, kind, name, ballot, other or None, self._places(to))

    @rule(back=_FEW, to=_SOME)
    def show(self, back: int, to: set[int]) -> None:
        """What was said in an old ballot comes late, and the liar agrees with all of it."""
        self._show(self._newest - back, self._places(to))

    @rule(what=st.sampled_from(_TROUBLE), who=st.integers(0, 2), index=_FEW)
    def trouble(self, what: str, who: int, index: int) -> None:
        """Something happens to one of them."""
        turmoil, place = self.turmoil, self.turmoil.honest[who]
        inbox = turmoil.inboxes[place]
        if what == "restart" and turmoil.is_in_turn(place):
            turmoil.restart(place)
        elif what == "kill":
            turmoil.doomed.add(place)
        elif what == "repeat":
            turmoil.repeat(place)
        elif what == "tick":
            turmoil.tick(place)
        elif what == "lose":
            inbox.clear()
        elif what == "refuse":
            self._hear(place, None)
            turmoil.judge(place, ok=False)
        elif what == "hear" and inbox:
            turmoil.deliver(place, index % len(inbox))

    @override
    def teardown(self) -> None:
        """With everything delivered and the liar silent there is a decision."""
        if hasattr(self, "turmoil"):
            self.turmoil.calm_down()

    def _places(self, some: set[int]) -> list[int]:
        return [self.turmoil.honest[who] for who in sorted(some)]

    def _hold(
        self,
        proposed: set[int],
        prevoted: set[int],
        precommitted: set[int],
        old: int,
        *,
        is_rest_silent: bool = False,
    ) -> None:
        """Hold the newest ballot: each of its steps reaches some in time, and the liar votes there as they do.

        The others hear as much as they need to go on with nothing, or nothing at all; the rest comes later.
        """
        turmoil = self.turmoil
        self._lead(self._places(proposed), old)
        for place in turmoil.honest:
            turmoil.propose(place)
        for place in self._places(proposed):
            self._hear(place, None)
            turmoil.judge(place, ok=True)
        for kind, reached in ((PREVOTE, prevoted), (PRECOMMIT, precommitted)):
            self._tick_those_without(kind)
            for place in turmoil.honest:
                if place in self._places(reached):
                    self._help(place, kind)
                    self._hear(place, kind)
                elif not is_rest_silent:
                    turmoil.lie(self.liar, kind, None, self._ballot(place), None, [place])
                    self._hear(place, kind, of=self.liar)
                    self._hear(place, kind, num=1)
        for place in turmoil.honest:
            turmoil.tick(place)

    @property
    def _newest(self) -> int:
        return max(map(self._ballot, self.turmoil.honest))

    def _ballot(self, place: int) -> int:
        return self.turmoil.members[place].ballot

    def _lead(self, first: list[int], old: int) -> None:
        """Let the liar propose two things to two parts, if it leads: one of them has had its quorum of prevotes, or is
        said to have had it."""
        turmoil, ballot = self.turmoil, self._newest
        if turmoil.group.turn.leader(ballot) != self.liar:
            return
        agreed = turmoil.ledger.all_agreed[::-1][old : old + 1]
        for before, value in agreed:
            self._show(before, first)
            turmoil.lie(self.liar, None, turmoil.name(value), ballot, before, first)
        others = [place for place in turmoil.honest if place not in first]
        claimed = ballot - 1 if ballot > 0 and old == 2 else None
        for to in (others,) if agreed else (first, others):
            turmoil.lie(self.liar, None, f"lie to {to} in {ballot}", ballot, claimed, to)

    def _show(self, ballot: int, to: list[int]) -> None:
        for one in list(self.turmoil.heard):
            if isinstance(one, Proposal):
                is_shown = one.head.certificate.ballot == ballot
            else:
                is_shown = (one.ballot, one.kind) == (ballot, PREVOTE)
            if is_shown:
                self.turmoil.send(one, to)
                self.turmoil.agree(self.liar, one, to)

    def _help(self, place: int, kind: int) -> None:
        """Let the liar vote as a member does in its ballot, or as another one if it votes for nothing."""
        votes = [
            one
            for one in self.turmoil.heard
            if isinstance(one, Vote) and (one.ballot, one.kind) == (self._ballot(place), kind)
        ]
        for one in sorted(votes, key=lambda one: (one.value is not None, one.member == place))[-1:]:
            self.turmoil.agree(self.liar, one, [place])

    def _tick_those_without(self, kind: int) -> None:
        for place in self.turmoil.honest:
            if not self.turmoil.has_voted(place, kind):
                self.turmoil.tick(place)

    def _hear(self, place: int, kind: int | None, num: int = 99, of: int | None = None) -> None:
        """Let a member hear proposals (None), or votes of a kind, that are on their way to it; or a few of its ballot."""
        inbox = self.turmoil.inboxes[place]
        for one in [one for one in inbox if getattr(one, "kind", None) == kind]:
            is_meant = of is None or (isinstance(one, Vote) and one.member == of)
            if is_meant and num > 0 and one in inbox:
                num -= 1
                self.turmoil.deliver(place, inbox.index(one))


def test_four_members_decide_one_thing_whatever_happens() -> None:
    """Many short histories: a wrong rule shows itself within a few ballots."""
    run_state_machine_as_test(
        FourMembers,
        settings=settings(max_examples=600, stateful_step_count=10, deadline=None),
    )
