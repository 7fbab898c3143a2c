"""Whatever order, loss, restart and lie: one decision a turn, one that somebody honest found good; and there is one."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE
from tests.pouw.committee.turmoil import Turmoil

_PLACES = st.integers(0, 2)
_BALLOTS = st.integers(0, 3)
_KILLED = st.sampled_from([False] * 15 + [True])
#: Of the honest ones, whom a liar says something to.
_CHOSEN = st.sets(st.integers(0, 3), min_size=1)


class FourMembers(RuleBasedStateMachine):
    """Four members, one of whom lies."""

    turmoil: Turmoil

    @initialize(liar=st.integers(0, 3))
    def begin(self, liar: int) -> None:
        """Choose who lies."""
        self.turmoil = Turmoil(4, [liar])

    @rule(who=_PLACES, index=st.integers(0, 30), killed=_KILLED)
    def deliver(self, who: int, index: int, killed: bool) -> None:
        """One word, out of order."""
        place = self._place(who)
        if inbox := self.turmoil.inboxes[place]:
            self.turmoil.deliver(place, index % len(inbox), is_killed=killed)

    @rule(who=_PLACES, ok=st.booleans(), killed=_KILLED)
    def go_on(self, who: int, ok: bool, killed: bool) -> None:
        """All words in order; then it judges as it likes: its chain may be another one."""
        place = self._place(who)
        while self.turmoil.inboxes[place]:
            self.turmoil.deliver(place)
        self.turmoil.propose(place, is_killed=killed)
        self.turmoil.judge(place, ok=ok, is_killed=killed)

    @rule(cuts=st.sets(st.tuples(_PLACES, _PLACES)))
    def cut(self, cuts: set[tuple[int, int]]) -> None:
        """From here on words are lost between some of them, one way."""
        self.turmoil.cuts = {(self._place(first), self._place(second)) for first, second in cuts}

    @rule(who=_PLACES, index=st.integers(0, 30), number=st.integers(1, 8))
    def lose(self, who: int, index: int, number: int) -> None:
        """Some words in a row."""
        inbox = self.turmoil.inboxes[self._place(who)]
        del inbox[index : index + number]

    @rule(who=_PLACES, index=st.integers(0, 30))
    def double(self, who: int, index: int) -> None:
        """One comes once more, later."""
        inbox = self.turmoil.inboxes[self._place(who)]
        inbox += inbox[index : index + 1]

    @rule(who=_PLACES, killed=_KILLED)
    def tick(self, who: int, killed: bool) -> None:
        """Its time is over."""
        self.turmoil.tick(self._place(who), is_killed=killed)

    @rule(who=_PLACES)
    def repeat(self, who: int) -> None:
        """After a silence."""
        self.turmoil.repeat(self._place(who))

    @rule(who=_PLACES)
    def restart(self, who: int) -> None:
        """From its disk."""
        place = self._place(who)
        if self.turmoil.is_in_turn(place):
            self.turmoil.restart(place)

    @rule(index=st.integers(0, 5), places=_CHOSEN)
    def echo(self, index: int, places: set[int]) -> None:
        """The liar agrees with everybody."""
        [liar] = self.turmoil.liars
        self.turmoil.echo(liar, index, places)

    @rule(
        kind=st.sampled_from([None, PREVOTE, PRECOMMIT]),
        which=st.none() | st.integers(0, 9),
        ballot=_BALLOTS,
        other=st.none() | _BALLOTS,
        places=_CHOSEN,
    )
    def lie(
        self,
        kind: int | None,
        which: int | None,
        ballot: int,
        other: int | None,
        places: set[int],
    ) -> None:
        """To some of them, about something that was proposed or about something new."""
        names = ["x", "y", *self.turmoil.names]
        name = None if which is None else names[which % len(names)]
        [liar] = self.turmoil.liars
        self.turmoil.lie(liar, kind, name, ballot, other, places)

    @override
    def teardown(self) -> None:
        """With everything delivered and the liar silent there is a decision."""
        if hasattr(self, "turmoil"):
            self.turmoil.calm_down()

    def _place(self, who: int) -> int:
        return self.turmoil.honest[who]


def test_four_members_decide_one_thing_whatever_happens() -> None:
    """Whatever hypothesis thinks of."""
    run_state_machine_as_test(
        FourMembers,
        settings=settings(max_examples=80, stateful_step_count=60, deadline=None),
    )


@pytest.mark.parametrize(("n", "num_liars", "num_runs"), [(1, 0, 10), (4, 1, 400), (7, 2, 40)])
def test_members_decide_one_thing_in_random_turmoil(n: int, num_liars: int, num_runs: int) -> None:
    """Liars agree with everybody, each time in the hearing of others."""
    for seed in range(num_runs):
        _random_run(n, num_liars, random.Random(seed))  # noqa: S311 - a fixed seed


def test_a_decision_that_one_liar_withheld_reaches_all() -> None:
    """One has missed the proposal; the liar lets another decide when all others are ballots further, and is silent."""
    first, behind, liar, early = range(4)
    turmoil = Turmoil(4, [liar])
    assert turmoil.group.turn.leader(0) == first
    turmoil.cuts = {(first, behind)}
    turmoil.propose(first)
    turmoil.cuts = set()
    turmoil.deliver(early, 0)
    for place in (first, early):
        turmoil.judge(place, ok=True)
    turmoil.lie(liar, PREVOTE, turmoil.names[0], 0, None, turmoil.honest)
    for place in (first, early):
        while turmoil.inboxes[place]:
            turmoil.deliver(place)
    while any(member.ballot < 2 for member in turmoil.members.values()):
        turmoil.propose(behind)
        for place in turmoil.honest:
            while turmoil.inboxes[place]:
                turmoil.deliver(place)
            turmoil.judge(place, ok=True)
            turmoil.tick(place)
    turmoil.lie(liar, PRECOMMIT, turmoil.names[0], 0, None, [early])
    while turmoil.is_in_turn(early):
        turmoil.deliver(early)
    turmoil.repeat(early)
    assert [turmoil.is_in_turn(place) for place in (first, behind)] == [False, True]
    turmoil.calm_down()


def _random_run(n: int, num_liars: int, chance: random.Random) -> None:
    """All go on together, and much is lost on the way: so they get far, each knowing something else."""
    turmoil = Turmoil(n, chance.sample(range(n), num_liars))
    arrival = chance.choice([0.4, 0.6, 0.8, 0.95])
    num_heard = 0
    for _ in range(60):
        for liar in turmoil.liars:
            _lie(turmoil, liar, len(turmoil.heard) - num_heard, chance)
        num_heard = len(turmoil.heard)
        for place in chance.sample(turmoil.honest, len(turmoil.honest)):
            words, turmoil.inboxes[place] = turmoil.inboxes[place], []
            for word in words:
                if chance.random() < arrival:
                    turmoil.inboxes[place].insert(0, word)
                    turmoil.deliver(place, is_killed=chance.random() < 0.01)
            turmoil.propose(place, is_killed=chance.random() < 0.01)
            ok = chance.random() < 0.95
            turmoil.judge(place, ok=ok, is_killed=chance.random() < 0.01)
        place = chance.choice(turmoil.honest)
        if chance.random() < 0.1:
            turmoil.repeat(place)
        if chance.random() < 0.03 and turmoil.is_in_turn(place):
            turmoil.restart(place)
        if len(turmoil.heard) == num_heard:
            for place in turmoil.honest:
                if chance.random() < 0.9:
                    turmoil.tick(place)
    turmoil.calm_down()


def _lie(turmoil: Turmoil, liar: int, num_new: int, chance: random.Random) -> None:
    """Propose something to some where it leads, and say what everybody else has just said, to some."""
    ballot = max(member.ballot for member in turmoil.members.values())
    if turmoil.group.turn.leader(ballot) == liar and chance.random() < 0.5:
        is_new = not turmoil.names or chance.random() < 0.6
        name = f"lie in {ballot}" if is_new else chance.choice(turmoil.names)
        valid_ballot = chance.choice([None, None, None, max(ballot - 1, 0)])
        some = [place for place in turmoil.honest if chance.random() < 0.7]
        turmoil.lie(liar, None, name, ballot, valid_ballot, some)
    for index in range(min(num_new, 6)):
        some = [place for place in turmoil.honest if chance.random() < 0.6]
        turmoil.echo(liar, index, some)
    if chance.random() < 0.1:
        word = chance.choice([None, *turmoil.names])
        turmoil.lie(liar, PRECOMMIT, word, ballot, max(ballot - 1, 0), turmoil.honest)
