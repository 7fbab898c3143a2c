"""A committee in a bad network: what is said is lost, late, twice and out of order, members restart, one lies.

Every honest member writes what it says before it is sent, and begins again from that. A liar may sign whatever it
likes, and send it to whom it likes.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable
from typing import cast

from pocqueue.pouw.committee.agreement import Decided
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE, Proposal, Said, Vote
from tests.pouw.committee.ledger import Ledger
from tests.pouw.committee.support import Group, ids


class _Remembers:
    """A share that makes each signature once: the members of all runs say much the same."""

    def __init__(self, share: bls.SecretKey) -> None:
        self.sign = functools.cache(share.sign)


@functools.cache
def group(n: int) -> Group:
    """Return the committee of `n` that all runs share."""
    made = Group(n)
    made.shares = [cast("bls.SecretKey", _Remembers(share)) for share in made.shares]
    return made


class Turmoil:
    """A turn of `n` members, of whom some lie.

    Args:
        n: members.
        liars: their places.
    """

    def __init__(self, n: int, liars: Iterable[int]) -> None:
        self.group = group(n)
        self.liars = set(liars)
        self.honest = [place for place in range(n) if place not in self.liars]
        self.now_ms = 0
        self.members = {place: self.group.member(place) for place in self.honest}
        self.disks: dict[int, list[Said]] = {place: [] for place in self.honest}
        #: Pairs of members between which everything is lost, one way.
        self.cuts: set[tuple[int, int]] = set()
        #: All words of honest members, as liars hear them.
        self.heard: list[Said] = []
        #: What is on its way to a member.
        self.inboxes: dict[int, list[Said]] = {place: [] for place in self.honest}
        #: Names of what was proposed, and who found it good.
        self.names: list[str] = []
        self.found_good: dict[bytes, set[int]] = defaultdict(set)
        self.decisions: list[Decided] = []
        #: Who is killed when something happens to it next, before it writes anything of that.
        self.doomed: set[int] = set()
        #: Whatever was said to whom.
        self.ledger = Ledger(n, self.liars)

    def act(self, place: int) -> None:
        """Write and send what a member says after something has happened to it; or kill it before that."""
        member = self.members[place]
        if place in self.doomed:
            self.restart(place)
            return
        said = member.drain()
        self.disks[place] += said
        for one in said:
            if member.is_own(one):
                self.ledger.note(one)
                self.heard.append(one)
                self.send(one, self._in_reach(place))
        for fault in member.drain_faults():
            liar = fault.first.member
            assert liar == fault.second.member
            assert liar in self.liars, "an honest member is accused"
        assert member.liars <= self.liars
        if member.decided is not None:
            self._decide(member.decided)

    def send(self, said: Said, places: Iterable[int]) -> None:
        """Put a word on its way to some members."""
        for place in places:
            if place in self.inboxes:
                self.inboxes[place].append(said)

    def is_in_turn(self, place: int) -> bool:
        """Say whether a member still votes: one that has decided says again what it knows."""
        return self.members[place].decided is None

    def has_voted(self, place: int, kind: int) -> bool:
        """Say whether a member has said something of a kind in its open ballot."""
        own = (place, kind, self.members[place].ballot)
        votes = (one for one in self.disks[place] if isinstance(one, Vote))
        return any((one.member, one.kind, one.ballot) == own for one in votes)

    def deliver(self, place: int, index: int = 0) -> None:
        """Let a member hear one of the words that are on their way to it."""
        said = self.inboxes[place].pop(index)
        try:
            self.members[place].hear(said, self.now_ms)
        except SlotError:
            assert self._is_out_of_turn(said), "what is within the rules is refused"
        self.act(place)

    def judge(self, place: int, *, ok: bool) -> None:
        """Let a member judge what it is asked to."""
        if proposal := self.members[place].to_judge:
            value = proposal.head.certificate.value
            if ok:
                self.found_good[value].add(place)
            self.members[place].judge(value, ok, self.now_ms)
            self.act(place)

    def propose(self, place: int) -> None:
        """Let a leader propose something new."""
        member = self.members[place]
        if member.wants_value:
            name = f"{place} in {member.ballot}"
            self.names.append(name)
            member.propose(self.group.certificate(name), ids(name), self.now_ms)
            self.act(place)

    def tick(self, place: int) -> None:
        """Let a member's time-out pass."""
        if (at_ms := self.members[place].next_at_ms) is not None:
            self.now_ms = max(self.now_ms, at_ms)
            self.members[place].tick(self.now_ms)
            self.act(place)

    def repeat(self, place: int) -> None:
        """Let a member say everything again, and show the decision if it has it."""
        member, others = self.members[place], self._in_reach(place)
        for one in member.repeat():
            self.send(one, others)
        if member.decided is not None:
            certificate, signature, _ = member.decided
            for other in others:
                self.members[other].learn(certificate.word, signature)

    def restart(self, place: int) -> None:
        """Begin a member again from what is on its disk."""
        self.doomed.discard(place)
        self.members[place] = self.group.member(place, self.disks[place], self.now_ms)
        self.act(place)

    def lie(
        self,
        liar: int,
        kind: int | None,
        name: str | None,
        ballot: int,
        other: int | None,
        places: Iterable[int],
    ) -> None:
        """Send a liar's word to some members.

        Args:
            liar: its place.
            kind: of a vote; None: a proposal, which is against the rules if the liar does not lead the ballot.
            name: what it is for; None: for nothing.
            ballot: in which.
            other: a ballot before it that is named in the proposal, or any whose share is in the precommit.
            places: to whom.
        """
        said: Proposal | Vote
        if kind is None:
            valid = other if other is not None and other < ballot else None
            said = self.group.proposal(name or "lie", ballot, valid, liar)
            self.names.append(name or "lie")
        else:
            said = self.group.vote(liar, kind, name, ballot)
            if kind == PRECOMMIT and name is not None and other is not None:
                share = self.group.vote(liar, kind, name, other).share
                said = self.group.vote(liar, kind, name, ballot, share=share)
        self.ledger.note(said)
        self.send(said, places)

    def echo(self, liar: int, index: int, places: Iterable[int]) -> None:
        """Let a liar agree with one of the newest honest words, to some members: it agrees with everybody.

        Args:
            liar: its place.
            index: of the word, the newest first.
            places: to whom.
        """
        if not self.heard:
            return
        said = self.heard[-1 - index % len(self.heard)]
        self.agree(liar, said, places)

    def agree(self, liar: int, said: Said, places: Iterable[int]) -> None:
        """Let a liar vote as somebody has said, to some members."""
        value: bytes | None
        if isinstance(said, Proposal):
            at, kind, value = said.head.certificate.ballot, PREVOTE, said.head.certificate.value
        else:
            at, kind, value = said.ballot, said.kind, said.value
        self.lie(liar, kind, None if value is None else self.name(value), at, None, places)

    def name(self, value: bytes) -> str:
        """Return what a value was proposed as."""
        return next(name for name in self.names if self.group.value(name) == value)

    def calm_down(self, num_rounds: int = 60) -> None:
        """Deliver everything from now on, with all liars silent, until everybody honest has decided: each of them may
        be needed for the slot's beacon.

        Raises:
            AssertionError: somebody did not.
        """
        self.cuts.clear()
        for _ in range(num_rounds):
            if not any(map(self.is_in_turn, self.honest)):
                return
            for place in self.honest:
                self.repeat(place)
            while any(self.inboxes.values()) or any(map(self._is_asked, self.honest)):
                for place in self.honest:
                    self.propose(place)
                    self.judge(place, ok=True)
                    while self.inboxes[place]:
                        self.deliver(place)
            due = [member.next_at_ms for member in self.members.values() if member.next_at_ms]
            self.now_ms = max(self.now_ms, min(due, default=0))
            for place in self.honest:
                self.members[place].tick(self.now_ms)
                self.act(place)
        ballots = [member.ballot for member in self.members.values()]
        raise AssertionError(f"not all have decided; the members are in ballots {ballots}")

    def _in_reach(self, place: int) -> list[int]:
        cuts = self.cuts | {(place, place)}
        return [other for other in self.honest if (place, other) not in cuts]

    def _is_out_of_turn(self, said: Said) -> bool:
        if not isinstance(said, Proposal):
            return False
        return said.head.member != said.head.certificate.ballot % len(self.group.keys)

    def _is_asked(self, place: int) -> bool:
        member = self.members[place]
        return member.wants_value or member.to_judge is not None

    def _decide(self, decided: Decided) -> None:
        certificate, signature, found = decided
        assert bls.verify(self.group.turn.committee.group_key, certificate.word, signature)
        assert certificate.count == len(found)
        assert self.found_good[certificate.value], "nobody honest found it good"
        self.decisions.append(decided)
        assert len({one.certificate.id for one in self.decisions}) == 1, "two decisions"
