"""Whatever order, loss, restart and lie: one decision a turn, one that somebody honest found good; and there is one."""

from __future__ import annotations

import random

import pytest

from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE
from tests.pouw.committee.turmoil import Turmoil


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
                    turmoil.deliver(place)
            turmoil.propose(place)
            turmoil.judge(place, ok=chance.random() < 0.95)
            if chance.random() < 0.1:
                turmoil.doomed.add(place)
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
