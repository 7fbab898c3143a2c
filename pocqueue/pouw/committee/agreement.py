"""Single-shot Tendermint of one turn, by one member (arXiv 1807.04938, algorithm 1).

The machine has one step a ballot after the other: it waits for the leader's proposal, then for prevotes, then for
precommits. The rules below are the paper's, in its order, and each says which of its lines it is. Where it goes
further:

* A value that a quorum has prevoted for is good, whatever this member found: f + 1 that are not faulty have judged it.
  Without that one member whose chain or weights are behind could hold up a value that others are locked on.
* Messages are lost here. So all that is held of the open ballot, the one before, and of the ballot of the valid value
  is repeated, also what others said, and by whoever has decided all that the decision rests on; and f + 1 members in
  later ballots are enough, even if they are in different ones.
* A precommit is a share of the committee's signature on the certificate with its ballot: those of two ballots are of
  different digests and never mix.
* A member never says a second thing in a ballot, whatever it forgets: what it said is on its disk before anybody hears
  it, with the proposal and the prevotes that it is locked by; its lock follows from its own precommits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from msgspec.structs import replace

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.committee.turn import Turn
from pocqueue.pouw.committee.words import Words, at
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.evidence import TwoProposals, TwoVotes
from pocqueue.pouw.wire.slots import Certificate
from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE, Proposal, ProposalHead, Said, Vote

__all__ = ["Agreement", "Decided", "Said", "Turn"]

#: A step of ballot b lasts STEP_MS + LATER_MS * b, in vain.
STEP_MS: Final = 600
LATER_MS: Final = 200
#: Words of so many ballots after the open one are kept.
WINDOW: Final = 4


class Decided(NamedTuple):
    """What a turn's decision is."""

    certificate: Certificate
    signature: bytes  #: the committee's, over the certificate's word
    ids: tuple[bytes, ...]  #: of its messages


class _Step(IntEnum):
    PROPOSE = 0  #: the ballot's proposal is awaited, or judged
    PREVOTE = 1  #: this member has prevoted
    PRECOMMIT = 2  #: and precommitted


class Agreement:
    """One member's part in a turn. Nothing is sent or written here; of one thread.

    Each call may make this member say something. The caller writes what `drain` returns so that it is on disk, and
    only then sends it, or tells anybody of `decided`.

    Args:
        turn: which decision.
        place: this member's.
        key: of its account.
        share: its share of the group key; the group key's own secret if it is the only member.
        said: all that `drain` gave for this turn before a restart, in that order. What is of another turn or
            epoch is left out.
        now_ms: Unix time.
    """

    def __init__(
        self,
        turn: Turn,
        place: int,
        key: SigningKey,
        share: bls.SecretKey,
        said: Sequence[Said],
        now_ms: int,
    ) -> None:
        self._turn, self._place, self._key, self._share = turn, place, key, share
        self._words = Words(turn)
        self._outbox: list[Said] = []
        self._judged: dict[bytes, bool] = {}
        #: The turn's decision, once there is one. It stays.
        self.decided: Decided | None = None
        self._now_ms = now_ms
        # When the open ballot began, when its step has lasted long enough, and when the ballot has.
        self._began_ms = now_ms
        self._step_ms: int | None = None
        self._ballot_ms: int | None = None
        self._ballot, self._step = 0, _Step.PROPOSE
        for one in said:
            if turn.is_of(one):
                self._words.add(one)
        # Others' words are among them: those that it is locked by.
        self._open(max(self._words.latest[place], 0))
        if self._words.vote(self._ballot, PRECOMMIT, place):
            self._enter(_Step.PRECOMMIT)
        elif self._words.vote(self._ballot, PREVOTE, place):
            self._enter(_Step.PREVOTE)
        self._settle()

    @property
    def ballot(self) -> int:
        """Return the open ballot."""
        return self._ballot

    @property
    def liars(self) -> set[int]:
        """Return the places of members whose share of the signature was wrong."""
        return self._words.liars

    @property
    def wants_value(self) -> bool:
        """Say whether this member is to propose something of its own: `propose`, once there is something."""
        return self._may_propose and self._valid is None

    @property
    def to_judge(self) -> Proposal | None:
        """Return the open ballot's proposal if this member has to judge it: `judge` with its value."""
        proposal = self._words.proposal(self._ballot)
        if self.decided or self._step != _Step.PROPOSE or proposal is None:
            return None
        value = proposal.head.certificate.value
        is_new = proposal.head.valid_ballot is None and value not in self._judged
        return proposal if is_new else None

    @property
    def next_at_ms(self) -> int | None:
        """Return when `tick` has something to do, Unix time; None: nothing will happen by time alone."""
        due = [at_ms for at_ms in (self._step_ms, self._ballot_ms) if at_ms is not None]
        return None if self.decided else min(due, default=None)

    def propose(self, certificate: Certificate, ids: Sequence[bytes], now_ms: int) -> None:
        """Propose what the turn shall decide; nothing happens if `wants_value` is False by now.

        Args:
            certificate: of this network, epoch and turn; its ballot is set here.
            ids: under its root.
            now_ms: Unix time.
        """
        self._look_at_clock(now_ms)
        if self.wants_value:
            self._propose(certificate, tuple(ids), None)
            self._settle()

    def judge(self, value: bytes, ok: bool, now_ms: int) -> None:
        """Say whether the value of a proposal is good. What is bad may be good in a later ballot.

        Args:
            value: `Certificate.value`.
            ok: this member has its messages, and all of it is right.
            now_ms: Unix time.
        """
        self._look_at_clock(now_ms)
        if value in self._words.proposed:
            self._judged[value] = ok
            self._settle()

    def hear(self, said: Said, now_ms: int) -> bool:
        """Take what a member said, from anybody.

        Returns:
            Whether it is new and worth passing on. False for what is of another turn or epoch.

        Raises:
            SlotError: as `Turn.is_of` and `Turn.check`: it breaks a rule, and nobody may pass it on.
        """
        self._look_at_clock(now_ms)
        if not self._turn.is_of(said) or self.decided or said in self._words:
            return False
        self._turn.check(said)
        is_far = at(said)[0] > self._ballot + WINDOW
        is_new = self._words.note(said) if is_far else self._keep(said)
        self._settle()
        return is_new

    def learn(self, word: bytes, signature: bytes) -> bool:
        """Take the decision from somebody who has it; False: it was not proposed here, or it is known.

        Args:
            word: of its certificate.
            signature: the committee's over it; the caller has checked that.
        """
        found = self._words.with_word(word)
        if self.decided is not None or found is None:
            return False
        certificate, ids = found
        self.decided = Decided(certificate, signature, ids)
        return True

    def tick(self, now_ms: int) -> None:
        """Go on without what has not come in time."""
        self._look_at_clock(now_ms)
        if self.decided:
            return
        if self._ballot_ms is not None and self._ballot_ms <= now_ms:  # line 65
            self._open(self._ballot + 1)
        elif self._step_ms is not None and self._step_ms <= now_ms:  # lines 57 and 61
            self._vote(PREVOTE if self._step == _Step.PROPOSE else PRECOMMIT, None)
        self._settle()

    def drain(self) -> list[Said]:
        """Return what this member has said since the last call, in order: to be written, then sent.

        What others said may be among it: proposal and prevotes of what it precommits. They have to be written with it;
        only `is_own` words have to be sent.
        """
        said, self._outbox = self._outbox, []
        return said

    def is_own(self, said: Said) -> bool:
        """Say whether this member said it."""
        return at(said)[1] == self._place

    def repeat(self) -> list[Said]:
        """Return all that is to be said again after a silence: of the open ballot, the one before, and later ones, with
        the valid value and the prevotes for it; of a decision, what it rests on. Also what others said: they may not
        have reached everybody. What `drain` has yet to return is left out.
        """
        said, good = self._words.since(max(self._ballot - 1, 0)), self._valid
        if self.decided is not None:
            certificate = self.decided.certificate
            good = certificate.ballot, certificate.value
        if good is not None:
            said += [one for one in self._words.for_value(*good) if one not in said]
        return [one for one in said if one not in self._outbox]

    def drain_faults(self) -> list[TwoVotes | TwoProposals]:
        """Return what shows anybody that a member said two things; each once."""
        return self._words.drain_faults()

    @property
    def _length_ms(self) -> int:
        return STEP_MS + LATER_MS * self._ballot

    @property
    def _is_leader(self) -> bool:
        return self._turn.leader(self._ballot) == self._place

    @property
    def _may_propose(self) -> bool:
        is_open = self.decided is None and self._step == _Step.PROPOSE and self._is_leader
        return is_open and self._words.proposal(self._ballot) is None

    @property
    def _locked(self) -> tuple[int, bytes] | None:
        """Return ballot and value of its newest precommit for something: lockedRound and lockedValue."""
        for ballot in range(self._ballot, -1, -1):
            vote = self._words.vote(ballot, PRECOMMIT, self._place)
            if vote is not None and vote.value is not None:
                return ballot, vote.value
        return None

    @property
    def _valid(self) -> tuple[int, bytes] | None:
        """Return ballot and value of the newest quorum of prevotes: validRound and validValue."""
        found = (one for one in self._words.agreed(PREVOTE) if one[0] <= self._ballot)
        return next(found, None)

    def _is_good(self, value: bytes) -> bool | None:
        """Return valid(v); None: not judged yet."""
        if any(agreed == value for _, agreed in self._words.agreed(PREVOTE)):
            return True
        return self._judged.get(value)

    def _settle(self) -> None:
        """Use the rules until none of them has anything to do."""
        rules: tuple[Callable[[], bool], ...] = (
            self._decide,
            self._catch_up,
            self._propose_valid,
            self._prevote,
            self._precommit,
        )
        while self.decided is None and any(rule() for rule in rules):
            pass
        self._set_times()

    def _decide(self) -> bool:
        """A quorum of precommits for a value in one ballot is the decision (line 49)."""
        for ballot, value in list(self._words.agreed(PRECOMMIT)):
            proposal = self._words.proposed[value]
            certificate = replace(proposal.head.certificate, ballot=ballot)
            votes = self._words.votes(ballot, PRECOMMIT, value)
            signature = self._turn.signature(certificate.word, votes)
            if isinstance(signature, bytes):
                self.decided = Decided(certificate, signature, proposal.ids)
                return True
            if signature:
                self._words.drop([votes[place] for place in signature])
                return True
        return False

    def _catch_up(self) -> bool:
        """f + 1 members are in later ballots: one of them is not faulty (line 55)."""
        reached = sorted(self._words.latest, reverse=True)[self._turn.faults]
        if reached <= self._ballot:
            return False
        self._open(reached)
        return True

    def _propose_valid(self) -> bool:
        """A leader that knows a valid value proposes it again (line 15)."""
        if not self._may_propose or (valid := self._valid) is None:
            return False
        proposal = self._words.proposed[valid[1]]
        self._propose(proposal.head.certificate, proposal.ids, valid[0])
        return True

    def _prevote(self) -> bool:
        """Prevote for a proposal that is good, unless the lock forbids it (lines 22 and 28)."""
        proposal = self._words.proposal(self._ballot)
        if self._step != _Step.PROPOSE or proposal is None:
            return False
        value, valid_ballot = proposal.head.certificate.value, proposal.head.valid_ballot
        locked = self._locked
        is_free = locked is None or locked[1] == value
        if valid_ballot is not None:
            if len(self._words.votes(valid_ballot, PREVOTE, value)) < self._turn.quorum:
                return False
            is_free = is_free or (locked is not None and locked[0] <= valid_ballot)
            is_good: bool | None = True
        else:
            is_good = self._is_good(value)
        if is_free and is_good is None:
            return False
        self._vote(PREVOTE, value if is_free and is_good else None)
        return True

    def _precommit(self) -> bool:
        """Precommit what a quorum has prevoted for in this ballot, or nothing (lines 36 and 44)."""
        if self._step != _Step.PREVOTE:
            return False
        agreed = (value for ballot, value in self._words.agreed(PREVOTE) if ballot == self._ballot)
        value = next(agreed, None)
        against = self._words.votes(self._ballot, PREVOTE, None)
        if value is None and len(against) < self._turn.quorum:
            return False
        self._vote(PRECOMMIT, value)
        return True

    def _set_times(self) -> None:
        """Say how long the leader has (line 21), and once a quorum has spoken, whatever it said, the others have (lines
        34 and 47). A leader that has proposed nothing waits for nobody.
        """
        words, quorum, ballot = self._words, self._turn.quorum, self._ballot
        is_awaited = {
            _Step.PROPOSE: not self._may_propose,
            _Step.PREVOTE: len(words.voters(ballot, PREVOTE)) >= quorum,
            _Step.PRECOMMIT: False,
        }
        if self._step_ms is None and is_awaited[self._step]:
            self._step_ms = self._now_ms + self._length_ms
        if len(words.votes(ballot, PRECOMMIT, None)) >= quorum:
            # Nothing can be decided in it any more. It is not over at once, or ballots would follow each other
            # as fast as members refuse.
            over_ms = max(self._began_ms + self._length_ms, self._now_ms)
            self._ballot_ms = min(self._ballot_ms or over_ms, over_ms)
        elif self._ballot_ms is None and len(words.voters(ballot, PRECOMMIT)) >= quorum:
            self._ballot_ms = self._now_ms + self._length_ms

    def _open(self, ballot: int) -> None:
        """Begin a ballot (line 11).

        What this member has not said in the one before it says now, for nothing. Those that are still there may need
        it: that a quorum was heard there may be forgotten by all who left it, if they are restarted.
        """
        self._ballot, self._began_ms, self._ballot_ms = ballot, self._now_ms, None
        self._judged = {value: ok for value, ok in self._judged.items() if ok}
        if ballot > 0:
            for kind in (PREVOTE, PRECOMMIT):
                if self._words.vote(ballot - 1, kind, self._place) is None:
                    self._say_vote(ballot - 1, kind, None, None)
        self._enter(_Step.PROPOSE)

    def _enter(self, step: _Step) -> None:
        self._step, self._step_ms = step, None

    def _propose(
        self, certificate: Certificate, ids: tuple[bytes, ...], valid_ballot: int | None
    ) -> None:
        certificate = replace(certificate, ballot=self._ballot)
        head = ProposalHead(certificate, valid_ballot, self._place, bytes(64))
        proposal = Proposal(replace(head, signature=sign(self._key, head.id)), ids)
        assert self._turn.is_of(proposal)
        self._say(proposal)

    def _vote(self, kind: int, value: bytes | None) -> None:
        """Vote, unless this member has done so already, and go to the next step."""
        if self._words.vote(self._ballot, kind, self._place) is None:
            share = None
            if kind == PRECOMMIT and value is not None:
                proposal = self._words.proposed[value]
                votes = self._words.votes(self._ballot, PREVOTE, value)
                proof: list[Said] = [proposal, *votes.values()]
                self._outbox += [one for one in proof if not self.is_own(one)]
                certificate = replace(proposal.head.certificate, ballot=self._ballot)
                share = self._share.sign(certificate.word)
            self._say_vote(self._ballot, kind, value, share)
        self._enter(_Step.PREVOTE if kind == PREVOTE else _Step.PRECOMMIT)

    def _say_vote(self, ballot: int, kind: int, value: bytes | None, share: bytes | None) -> None:
        turn = self._turn
        vote = Vote(
            network=turn.network,
            epoch=turn.committee.epoch,
            turn=turn.number,
            ballot=ballot,
            kind=kind,
            value=value,
            member=self._place,
            share=share,
            signature=bytes(64),
        )
        self._say(replace(vote, signature=sign(self._key, vote.id)))

    def _say(self, said: Said) -> None:
        self._keep(said)
        self._outbox.append(said)

    def _keep(self, said: Said) -> bool:
        awaited = self._words.proposal(self._ballot) is None
        is_new = self._words.add(said)
        if self._step == _Step.PROPOSE and awaited and self._words.proposal(self._ballot):
            self._step_ms = None  # judging it has a time of its own
        return is_new

    def _look_at_clock(self, now_ms: int) -> None:
        """Move all times if the clock was set back."""
        back_ms = max(self._now_ms - now_ms, 0)
        self._began_ms -= back_ms
        if self._step_ms is not None:
            self._step_ms -= back_ms
        if self._ballot_ms is not None:
            self._ballot_ms -= back_ms
        self._now_ms = now_ms
