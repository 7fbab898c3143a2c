"""What was heard of one turn: proposals and votes by ballot, and who said two things.

Of a ballot it keeps two proposals, besides those that somebody who is not faulty has voted for, and of a member, ballot
and kind two votes that differ, besides those for a value that was proposed: the first counts wherever votes are
counted, the second is evidence. A vote for a value that was proposed counts in any case: a liar's vote may be one that
others have acted upon.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from msgspec.structs import replace

from pocqueue.pouw.committee.turn import Turn
from pocqueue.pouw.wire.evidence import TwoProposals, TwoVotes
from pocqueue.pouw.wire.slots import Certificate
from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE, Proposal, Said, Vote

#: So many proposals of a ballot, and votes of a member, ballot and kind: one, and one more as evidence.
_KEPT = 2


class Words:
    """The words of a turn, checked before (`Turn.check`).

    Args:
        turn: which one.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._proposals: dict[int, list[Proposal]] = {}
        # By ballot and kind, then by value, then by member.
        self._votes: dict[tuple[int, int], dict[bytes | None, dict[int, Vote]]] = {}
        self._first: dict[tuple[int, int, int], Vote] = {}
        # Ballots and members whose share was wrong.
        self._wrong: set[tuple[int, int]] = set()
        self._faults: list[TwoVotes | TwoProposals] = []
        self._accused: set[tuple[int, ...]] = set()
        #: The newest ballot that each member has spoken in; -1: none.
        self.latest = [-1] * len(turn.committee.members)
        #: Everything that was proposed, by its value.
        self.proposed: dict[bytes, Proposal] = {}

    def __contains__(self, said: Said) -> bool:
        if isinstance(said, Proposal):
            return said in self._proposals.get(said.head.certificate.ballot, ())
        votes = self._votes.get((said.ballot, said.kind), {})
        return votes.get(said.value, {}).get(said.member) == said

    def note(self, said: Said) -> bool:
        """Remember how far its sender is; False if that was known."""
        ballot, member = at(said)
        is_news = ballot > self.latest[member]
        self.latest[member] = max(ballot, self.latest[member])
        return is_news

    def add(self, said: Said) -> bool:
        """Keep what was said; False if it was known, or is more than is kept."""
        self.note(said)
        return self._add_proposal(said) if isinstance(said, Proposal) else self._add_vote(said)

    def proposal(self, ballot: int) -> Proposal | None:
        """Return the first proposal of a ballot."""
        return next(iter(self._proposals.get(ballot, ())), None)

    def with_word(self, word: bytes) -> tuple[Certificate, tuple[bytes, ...]] | None:
        """Return the certificate that the committee would sign so, and the ids under it.

        Its value was proposed here, maybe in another ballot.
        """
        ballots = self._proposals.keys() | {ballot for ballot, _ in self._votes}
        for proposal in self.proposed.values():
            for ballot in ballots:
                certificate = replace(proposal.head.certificate, ballot=ballot)
                if certificate.word == word:
                    return certificate, proposal.ids
        return None

    def for_value(self, ballot: int, value: bytes) -> list[Said]:
        """Return what says of a value that it is good, or decided, in a ballot: it, as it was proposed first, and the
        votes for it there."""
        votes = (self.votes(ballot, kind, value).values() for kind in (PREVOTE, PRECOMMIT))
        return [self.proposed[value], *(vote for found in votes for vote in found)]

    def voters(self, ballot: int, kind: int) -> set[int]:
        """Return who has voted in a ballot, for whatever."""
        return set[int]().union(*self._votes.get((ballot, kind), {}).values())

    def votes(self, ballot: int, kind: int, value: bytes | None) -> dict[int, Vote]:
        """Return the votes for a value in a ballot, by member."""
        return self._votes.get((ballot, kind), {}).get(value, {})

    def vote(self, ballot: int, kind: int, member: int) -> Vote | None:
        """Return a member's first vote in a ballot."""
        return self._first.get((ballot, kind, member))

    def agreed(self, kind: int) -> Iterator[tuple[int, bytes]]:
        """Yield what a quorum has voted for and was proposed: ballot and value, the newest ballot first."""
        for ballot, at_kind in sorted(self._votes, reverse=True):
            if at_kind == kind:
                for value, votes in self._votes[ballot, kind].items():
                    if len(votes) >= self._turn.quorum and value in self.proposed:
                        assert value is not None
                        yield ballot, value

    def drop(self, votes: list[Vote]) -> None:
        """Forget precommits whose share is wrong; their members have no other one in that ballot."""
        for vote in votes:
            self._wrong.add((vote.ballot, vote.member))
            del self._votes[vote.ballot, vote.kind][vote.value][vote.member]

    @property
    def liars(self) -> set[int]:
        """Return the places of those whose share was wrong."""
        return {member for _, member in self._wrong}

    def since(self, ballot: int) -> list[Said]:
        """Return all that was said in a ballot and those after it, proposals first."""
        found: list[Said] = []
        for at_ballot in sorted(self._proposals):
            found += self._proposals[at_ballot] if at_ballot >= ballot else ()
        for at_ballot, kind in sorted(self._votes):
            if at_ballot >= ballot:
                for votes in self._votes[at_ballot, kind].values():
                    found += votes.values()
        return found

    def drain_faults(self) -> list[TwoVotes | TwoProposals]:
        """Return what shows that somebody said two things, each once."""
        found, self._faults = self._faults, []
        return found

    def _add_proposal(self, proposal: Proposal) -> bool:
        head = proposal.head
        kept = self._proposals.setdefault(head.certificate.ballot, [])
        if any(one.head.id == head.id for one in kept):
            return False
        value = head.certificate.value
        if len(kept) >= _KEPT and (
            any(one.head.certificate.value == value for one in kept) or not self._is_trusted(value)
        ):
            return False
        kept.append(proposal)
        self.proposed.setdefault(value, proposal)
        if len(kept) > 1:
            self._faults.append(TwoProposals(kept[0].head, head))
        return True

    def _is_trusted(self, value: bytes) -> bool:
        """Say whether more members than are faulty have voted for a value, in whatever ballots.

        A liar that leads may have shown this member two other proposals before the one that all others know.
        """
        votes = (values.get(value, {}) for values in self._votes.values())
        return len(set[int]().union(*votes)) > self._turn.faults

    def _add_vote(self, vote: Vote) -> bool:
        place = (vote.ballot, vote.kind, vote.member)
        values = self._votes.setdefault(place[:2], defaultdict(dict))
        if (
            vote.kind != PREVOTE
            and vote.value is not None
            and (vote.ballot, vote.member) in self._wrong
        ):
            return False
        if vote.member in values.get(vote.value, ()):
            return False
        num_kept = sum(vote.member in votes for votes in values.values())
        if num_kept >= _KEPT and vote.value not in self.proposed:
            return False
        values[vote.value][vote.member] = vote
        first = self._first.setdefault(place, vote)
        if first.value != vote.value and place not in self._accused:
            self._accused.add(place)
            self._faults.append(TwoVotes(first, vote))
        return True


def at(said: Said) -> tuple[int, int]:
    """Return in which ballot something was said, and by which member."""
    if isinstance(said, Proposal):
        return said.head.certificate.ballot, said.head.member
    return said.ballot, said.member
