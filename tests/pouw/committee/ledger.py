"""What everybody has said in a turn, and the rules that words of honest members keep, in whatever order they come.

The rules are those that the proof of the agreement rests on (arXiv 1807.04938, lemmas 3 to 5). Whoever breaks one of
them may leave no two decisions behind for long: it takes more bad luck than a test has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE, Proposal, Said, Vote

#: Of so many members so many have to say the same, counted by hand.
_QUORUMS = {1: 1, 4: 3, 7: 5}


class Ledger:
    """The words of turn 0 of `n` members.

    Args:
        n: members.
        liars: places of those who may say anything.
    """

    def __init__(self, n: int, liars: Iterable[int]) -> None:
        self._n, self._quorum = n, _QUORUMS[n]
        self._liars = set(liars)
        self._said: dict[tuple[int, int | None, int], Said] = {}
        self._proposed: dict[int, set[bytes]] = defaultdict(set)
        self._prevoted: dict[tuple[int, bytes], set[int]] = defaultdict(set)
        # The newest precommit of each member for something: ballot and value.
        self._locked: dict[int, tuple[int, bytes]] = {}

    def agreed(self, ballot: int, value: bytes) -> bool:
        """Say whether a quorum has prevoted for a value in a ballot."""
        return len(self._prevoted.get((ballot, value), ())) >= self._quorum

    @property
    def all_agreed(self) -> list[tuple[int, bytes]]:
        """Return all that a quorum has prevoted for: ballot and value, ascending."""
        return sorted(one for one in self._prevoted if self.agreed(*one))

    def note(self, said: Said) -> None:
        """Write down what a member sends to whomever.

        Raises:
            AssertionError: it is honest, and may not say this.
        """
        if isinstance(said, Proposal):
            self._note_proposal(said)
        else:
            self._note_vote(said)

    def _note_proposal(self, proposal: Proposal) -> None:
        head = proposal.head
        ballot, value = head.certificate.ballot, head.certificate.value
        is_leader = head.member == ballot % self._n
        if head.member not in self._liars:
            self._note_once((ballot, None, head.member), proposal)
            assert is_leader, "an honest member proposes what another one leads"
            is_new = head.valid_ballot is None
            assert is_new or self.agreed(head.valid_ballot or 0, value), "nobody found it good"
        if is_leader:
            self._proposed[ballot].add(value)

    def _note_vote(self, vote: Vote) -> None:
        ballot, member, value = vote.ballot, vote.member, vote.value
        is_honest = member not in self._liars
        if is_honest:
            self._note_once((ballot, vote.kind, member), vote)
        if value is None:
            return
        if vote.kind == PREVOTE:
            self._prevoted[ballot, value].add(member)
            if is_honest:
                assert value in self._proposed[ballot], "a vote for what its leader has not said"
                self._check_lock(vote, value)
        elif is_honest:
            assert vote.kind == PRECOMMIT
            assert self.agreed(ballot, value), "a precommit without a quorum of prevotes"
            self._locked[member] = max((ballot, value), self._locked.get(member, (-1, value)))

    def _check_lock(self, vote: Vote, value: bytes) -> None:
        ballot, locked = self._locked.get(vote.member, (0, value))
        later = range(ballot, vote.ballot)
        is_free = locked == value or any(self.agreed(one, value) for one in later)
        assert is_free, "a vote against a lock"

    def _note_once(self, place: tuple[int, int | None, int], said: Said) -> None:
        assert self._said.setdefault(place, said) == said, "an honest member contradicts itself"
