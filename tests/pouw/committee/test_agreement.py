"""The rules of a turn's vote, one by one, as one member of four follows them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pocqueue.pouw.committee.agreement import WINDOW, Agreement
from pocqueue.pouw.committee.quorum import faults, quorum
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.evidence import TwoProposals, TwoVotes
from pocqueue.pouw.wire.votes import PRECOMMIT, PREVOTE, Proposal, Said
from tests.pouw.committee.support import Group, ids, votes

FOUR = Group(4)
A, B = FOUR.value("a"), FOUR.value("b")


def _prevoted(name: str | None, ballot: int, *places: int) -> list[Said]:
    return [FOUR.vote(place, PREVOTE, name, ballot) for place in places]


def _precommitted(name: str | None, ballot: int, *places: int) -> list[Said]:
    return [FOUR.vote(place, PRECOMMIT, name, ballot) for place in places]


def _hear(member: Agreement, said: list[Said], now_ms: int = 0) -> list[bool]:
    return [member.hear(one, now_ms) for one in said]


def _locked(place: int = 1) -> tuple[Agreement, list[Said]]:
    """Return a member that is locked on "a" since ballot 0 and is in ballot 1, with all that it said."""
    member = FOUR.member(place)
    others = [other for other in range(4) if other != place]
    member.hear(FOUR.proposal("a"), 0)
    member.judge(A, True, 0)
    _hear(member, _prevoted("a", 0, *others[:2]))
    _hear(member, _precommitted(None, 0, *others))
    assert member.next_at_ms is not None
    member.tick(member.next_at_ms)
    assert member.ballot == 1
    return member, member.drain()


def test_a_quorum_is_more_than_half_of_those_that_are_not_faulty() -> None:
    """As the paper's 2f + 1 where n = 3f + 1."""
    assert [faults(n) for n in (1, 2, 3, 4, 5, 7, 16)] == [0, 0, 0, 1, 1, 2, 5]
    assert [quorum(n) for n in (1, 2, 3, 4, 5, 7, 16)] == [1, 2, 2, 3, 4, 5, 11]
    for n in range(1, 17):
        assert 2 * quorum(n) - n > faults(n)
        assert quorum(n) <= n - faults(n)


def test_a_committee_of_one_decides_by_itself() -> None:
    """Its own words go the way of all: no other call is needed than to propose and to judge."""
    group = Group(1, number=5)
    member = group.member(0)
    assert member.wants_value
    assert member.next_at_ms is None
    member.propose(group.certificate(), ids("a"), 10_000)
    assert not member.wants_value
    assert member.to_judge is not None
    member.judge(group.value(), True, 10_001)
    assert member.decided is not None
    certificate, signature, found = member.decided
    assert (certificate, found) == (group.certificate(), ids("a"))
    assert bls.verify(group.turn.committee.group_key, certificate.word, signature)
    assert [type(one).__name__ for one in member.drain()] == ["Proposal", "Vote", "Vote"]
    assert member.drain() == []


def test_what_a_committee_of_one_finds_bad_is_proposed_in_a_later_ballot() -> None:
    """After the time-out, not at once."""
    group = Group(1)
    member = group.member(0)
    member.propose(group.certificate(), ids("a"), 100)
    member.judge(group.value(), False, 150)
    assert votes(member.drain()) == [(0, PREVOTE, None), (0, PRECOMMIT, None)]
    assert (member.ballot, member.next_at_ms) == (0, 600)
    member.tick(599)
    assert member.ballot == 0
    member.tick(600)
    assert (member.ballot, member.wants_value) == (1, True)
    member.propose(group.certificate(), ids("a"), 700)
    assert member.to_judge is not None  # it may be good by now
    member.judge(group.value(), True, 700)
    assert member.decided is not None
    assert member.decided.certificate == group.certificate(ballot=1)


def test_four_members_decide_in_two_steps() -> None:
    """Proposal, prevotes, precommits; the signature is the group's."""
    member = FOUR.member(1)
    assert not member.wants_value
    assert member.hear(FOUR.proposal(), 0)
    assert member.to_judge == FOUR.proposal()
    member.judge(A, True, 0)
    assert member.to_judge is None
    assert votes(member.drain()) == [(0, PREVOTE, A)]
    _hear(member, _prevoted("a", 0, 0))
    assert member.drain() == []
    _hear(member, _prevoted("a", 0, 2))
    said = member.drain()
    assert votes([one for one in said if member.is_own(one)]) == [(0, PRECOMMIT, A)]
    _hear(member, _precommitted("a", 0, 0, 3))
    assert member.decided is not None
    assert member.decided.certificate == FOUR.certificate()
    group_key = FOUR.turn.committee.group_key
    assert bls.verify(group_key, FOUR.certificate().word, member.decided.signature)
    assert member.next_at_ms is None


def test_what_is_found_bad_is_voted_against() -> None:
    """And nil prevotes of a quorum are followed by a nil precommit at once."""
    member = FOUR.member(1)
    member.hear(FOUR.proposal(), 0)
    member.judge(A, False, 0)
    assert votes(member.drain()) == [(0, PREVOTE, None)]
    _hear(member, _prevoted(None, 0, 2, 3))
    assert votes(member.drain()) == [(0, PRECOMMIT, None)]


def test_each_step_has_its_time() -> None:
    """600 ms and 200 more in each later ballot; votes are awaited for as long after a quorum has spoken."""
    member = FOUR.member(1)
    assert member.next_at_ms == 600
    member.tick(599)
    assert member.drain() == []
    member.tick(600)
    assert votes(member.drain()) == [(0, PREVOTE, None)]
    assert member.next_at_ms is None  # Only others can end it.
    _hear(member, _prevoted("a", 0, 0), 700)
    assert member.next_at_ms is None
    _hear(member, _prevoted("a", 0, 2), 800)
    assert member.next_at_ms == 1400
    member.tick(1400)
    assert votes(member.drain()) == [(0, PRECOMMIT, None)]
    _hear(member, _precommitted("b", 0, 0, 2), 1500)
    assert member.next_at_ms == 2100
    member.tick(2100)
    assert (member.ballot, member.wants_value, member.next_at_ms) == (1, True, None)
    _hear(member, _prevoted(None, 2, 0, 2), 2200)
    assert (member.ballot, member.next_at_ms) == (2, 3200)


def test_a_proposal_is_judged_in_a_time_of_its_own() -> None:
    """One that comes late leaves as much as one that comes at once; but only the first one."""
    member = FOUR.member(1)
    member.hear(FOUR.proposal(), 500)
    assert member.next_at_ms == 1100
    member.hear(FOUR.proposal("b"), 900)
    assert member.next_at_ms == 1100


def test_a_clock_that_is_set_back_moves_the_times() -> None:
    """Nobody waits an hour more."""
    member = FOUR.member(1, now_ms=3_600_000)
    member.tick(100)
    assert member.next_at_ms == 700


def test_a_leader_waits_for_nobody() -> None:
    """It has no time-out before it has proposed, and proposes once."""
    member = FOUR.member(0)
    assert (member.wants_value, member.next_at_ms) == (True, None)
    member.propose(FOUR.certificate("a", ballot=3), ids("a"), 5000)
    member.propose(FOUR.certificate("b"), ids("b"), 5001)
    assert member.drain() == [FOUR.proposal("a")]
    assert member.next_at_ms == 5600


def test_a_locked_member_votes_for_nothing_else() -> None:
    """Not even if it finds it good."""
    group, lock = FOUR, _locked(3)[0]
    lock.hear(group.proposal("b", 1), 2000)
    assert lock.to_judge is None
    assert votes(lock.drain()) == [(1, PREVOTE, None)]


def test_a_locked_member_votes_for_its_value() -> None:
    """A quorum has found it good."""
    member = _locked(3)[0]
    member.hear(FOUR.proposal("a", 1), 2000)
    assert votes(member.drain()) == [(1, PREVOTE, A)]


def test_a_lock_gives_way_to_a_later_quorum() -> None:
    """To prevotes of a ballot after the one that it is locked in; not before they are there."""
    member = _locked(3)[0]
    _hear(member, _prevoted(None, 2, 0, 1), 2000)
    assert member.ballot == 2
    member.drain()
    member.hear(FOUR.proposal("b", 2, valid_ballot=1), 2000)
    assert member.drain() == []
    _hear(member, _prevoted("b", 1, 0, 1), 2000)
    assert member.drain() == []
    _hear(member, _prevoted("b", 1, 2), 2000)
    assert votes(member.drain()) == [(2, PREVOTE, B)]


def test_a_lock_does_not_give_way_to_an_earlier_quorum() -> None:
    """Of a ballot before the one that it is locked in."""
    member = FOUR.member(3)
    _hear(member, _prevoted("b", 0, 0, 1, 2))
    _hear(member, _prevoted("a", 1, 0, 1, 2))
    member.hear(FOUR.proposal("a", 1), 0)
    _hear(member, _prevoted(None, 2, 0, 1))
    assert member.ballot == 2
    assert (1, PRECOMMIT, A) in votes(member.drain())
    member.hear(FOUR.proposal("b", 2, valid_ballot=0), 0)
    assert votes(member.drain())[0] == (2, PREVOTE, None)


def test_a_leader_proposes_the_valid_value_again() -> None:
    """With the ballot in which a quorum prevoted for it; it is not asked for a value."""
    member, said = _locked()
    assert not member.wants_value
    assert FOUR.proposal("a", 1, valid_ballot=0) in said
    assert votes(said)[-1] == (1, PREVOTE, A)


def test_a_value_that_a_quorum_found_good_is_good() -> None:
    """A member that is behind does not hold up what others are locked on."""
    member = FOUR.member(3)
    member.hear(FOUR.proposal(), 0)
    member.judge(A, False, 0)
    _hear(member, _prevoted("a", 0, 0, 1, 2))
    assert (0, PRECOMMIT, A) in votes(member.drain())


def test_shares_of_two_ballots_never_mix() -> None:
    """A quorum of precommits is one of one ballot."""
    member = FOUR.member(3)
    _hear(member, [FOUR.proposal("a", 0), FOUR.proposal("a", 1)])
    _hear(member, _precommitted("a", 0, 0, 1))
    _hear(member, _precommitted("a", 1, 2))
    assert member.decided is None
    _hear(member, _precommitted("a", 0, 2))
    assert member.decided is not None
    assert member.decided.certificate.ballot == 0


def test_a_wrong_share_is_found_and_left_out() -> None:
    """The share of another ballot, or no signature at all; its member is known then, and counts no more there."""
    member = FOUR.member(3)
    member.hear(FOUR.proposal(), 0)
    other = FOUR.vote(0, PRECOMMIT, "a", 1).share
    wrong = FOUR.vote(0, PRECOMMIT, share=other)
    _hear(member, [wrong, *_precommitted("a", 0, 1)])
    assert member.liars == set()
    assert member.hear(FOUR.vote(2, PRECOMMIT), 0)
    assert member.decided is None
    assert member.liars == {0}
    assert not member.hear(wrong, 0)
    assert not member.hear(FOUR.vote(0, PRECOMMIT, share=bytes(96)), 0)
    assert not member.hear(FOUR.vote(0, PRECOMMIT), 0)
    _hear(member, _prevoted("a", 0, 0, 1, 2))
    member.judge(A, True, 0)
    assert member.decided is not None
    assert member.drain_faults() == []


def test_members_in_later_ballots_take_one_along() -> None:
    """f + 1 of them, one of whom is not faulty; as far as that one is."""
    member = FOUR.member(3)
    _hear(member, _prevoted(None, 4, 0))
    assert member.ballot == 0
    _hear(member, _prevoted(None, 2, 1))
    assert member.ballot == 2


def test_a_member_that_leaves_a_ballot_says_so() -> None:
    """For nothing, in the one before the one that it goes to: others may be there still, and need its votes."""
    member = FOUR.member(3)
    _hear(member, _prevoted(None, 3, 0, 1))
    assert votes(member.drain()) == [(2, PREVOTE, None), (2, PRECOMMIT, None)]
    locked, said = _locked(3)
    assert votes(said)[-2:] == [(0, PREVOTE, A), (0, PRECOMMIT, A)]
    _hear(locked, _prevoted(None, 2, 0, 1))
    assert votes(locked.drain()) == [(1, PREVOTE, None), (1, PRECOMMIT, None)]


def test_words_of_far_ballots_are_not_kept_but_noted() -> None:
    """One member cannot fill the memory, and two can take another along from however far."""
    member = FOUR.member(3)
    far = 1000 + WINDOW
    assert _hear(member, [*_prevoted("a", far, 0), *_prevoted("b", far, 0)]) == [True, False]
    assert member.repeat() == []
    assert member.drain_faults() == []
    _hear(member, _prevoted("a", far, 1))
    assert member.ballot == far
    assert _hear(member, _prevoted("a", far, 0)) == [True]


def test_what_is_known_is_not_passed_on() -> None:
    """Nor what is of another turn or epoch, or of a turn that is decided."""
    member = FOUR.member(3)
    assert _hear(member, [FOUR.proposal(), FOUR.proposal()]) == [True, False]
    assert _hear(member, _prevoted("a", 0, 0, 0)) == [True, False]
    assert not member.hear(FOUR.vote(1, PREVOTE, turn=9), 0)
    assert not member.hear(FOUR.vote(1, PREVOTE, epoch=9), 0)
    _hear(member, _precommitted("a", 0, 0, 1, 2))
    assert member.decided is not None
    assert not member.hear(FOUR.vote(1, PREVOTE), 0)


def test_what_breaks_a_rule_is_refused() -> None:
    """With the rule's name, and nothing of it is kept."""
    member = FOUR.member(3)
    vote, proposal = FOUR.vote(1, PREVOTE), FOUR.proposal()
    head = proposal.head
    broken: dict[str, Said] = {
        "network": replace(vote, network=b"x" * 32),
        "member": replace(vote, member=4),
        "signature: a vote": replace(vote, member=2),
        "share": FOUR.vote(1, PREVOTE, share=bytes(96)),
        "share: a vote": FOUR.vote(1, PRECOMMIT, share=None),
        "leader": FOUR.proposal(place=2),
        "ballot": FOUR.proposal(ballot=0, valid_ballot=0),
        "root": replace(proposal, ids=ids("b")),
        "signature": replace(proposal, head=replace(head, signature=bytes(64))),
    }
    for rule, said in broken.items():
        with pytest.raises(SlotError, match=f"^{rule}"):
            member.hear(said, 0)
    with pytest.raises(SlotError, match=r"^share"):
        member.hear(FOUR.vote(1, PRECOMMIT, None, share=bytes(96)), 0)
    assert member.repeat() == []


def test_whoever_says_two_things_leaves_evidence() -> None:
    """Once for each ballot and kind; the first vote counts."""
    member = FOUR.member(3)
    first, second = FOUR.vote(0, PREVOTE, "a"), FOUR.vote(0, PREVOTE, "b")
    assert _hear(member, [first, second, FOUR.vote(0, PREVOTE, "c")]) == [True, True, False]
    assert member.drain_faults() == [TwoVotes(first, second)]
    proposals = [FOUR.proposal("a"), FOUR.proposal("b"), FOUR.proposal("c")]
    assert _hear(member, list(proposals)) == [True, True, False]
    assert member.drain_faults() == [TwoProposals(proposals[0].head, proposals[1].head)]
    assert member.drain_faults() == []
    assert member.to_judge == proposals[0]


def test_a_liars_vote_that_others_acted_on_counts() -> None:
    """A member to which a liar said something else first still sees the quorum that others are locked by."""
    member = FOUR.member(3)
    _hear(member, [*_prevoted("c", 0, 0), *_prevoted("b", 0, 0), *_prevoted("a", 0, 1, 2)])
    _hear(member, _precommitted(None, 0, 0, 1, 2), 600)
    member.tick(600)
    assert member.ballot == 1
    member.drain()
    member.hear(FOUR.proposal("a", 1, valid_ballot=0), 600)
    assert member.drain() == []
    assert _hear(member, _prevoted("a", 0, 0)) == [True]
    assert votes(member.drain()) == [(1, PREVOTE, A)]


def test_all_that_is_open_is_repeated() -> None:
    """Of the open ballot and the one before, also what others said; the valid value and its votes however old."""
    member, _ = _locked(3)
    said = member.repeat()
    assert {*_prevoted("a", 0, 0, 1, 3), *_precommitted(None, 0, 0, 1, 2)} < set(said)
    assert said[0] == FOUR.proposal("a")
    _hear(member, _prevoted(None, 3, 0, 1), 5000)
    assert member.ballot == 3
    member.drain()
    assert votes(member.repeat())[-4:] == [(0, PREVOTE, A)] * 3 + [(0, PRECOMMIT, A)]
    assert FOUR.proposal("a") in member.repeat()
    member.tick(10_000)
    proposed = [one for one in member.repeat() if isinstance(one, Proposal)]
    assert proposed == [FOUR.proposal("a", 3, valid_ballot=0), FOUR.proposal("a")]


def test_what_a_decision_rests_on_is_repeated() -> None:
    """However old it is: who has missed it is alone with the liars, and decides by it."""
    member = _locked(3)[0]
    _hear(member, _prevoted(None, 3, 0, 1), 5000)
    _hear(member, _precommitted("a", 0, 0, 1), 5000)
    assert member.decided is not None
    behind = FOUR.member(2)
    _hear(behind, member.repeat())
    assert behind.decided == member.decided


def test_what_is_not_written_yet_is_not_repeated() -> None:
    """It may be forgotten, and then another thing be said."""
    member = FOUR.member(1)
    member.hear(FOUR.proposal(), 0)
    member.judge(A, True, 0)
    assert member.repeat() == [FOUR.proposal()]
    said = member.drain()
    assert member.repeat() == [FOUR.proposal(), *said]


def test_a_decision_is_learnt_of_a_ballot_whose_proposal_is_missing() -> None:
    """The value was proposed in another one, and is the same."""
    member = FOUR.member(3)
    _hear(member, [FOUR.proposal("a"), *_prevoted("a", 1, 0, 1)])
    assert not member.learn(FOUR.certificate("b", 1).word, bytes(96))
    assert member.learn(FOUR.certificate("a", 1).word, bytes(96))
    assert member.decided == (FOUR.certificate("a", 1), bytes(96), ids("a"))


def test_what_others_vote_for_is_kept_whatever_its_leader_proposed_first() -> None:
    """Of a leader's third proposal one vote alone says nothing."""
    member = FOUR.member(3)
    _hear(member, [FOUR.proposal("b"), FOUR.proposal("c"), *_precommitted("a", 0, 0)])
    assert not member.hear(FOUR.proposal("a"), 0)
    _hear(member, _precommitted("a", 0, 1, 2))
    assert member.hear(FOUR.proposal("a"), 0)
    assert member.decided is not None
    assert member.decided.ids == ids("a")


def test_a_member_stands_by_what_it_said_after_a_restart() -> None:
    """Its words are repeated; it says no other thing, and is in the step where it was."""
    before = FOUR.member(1)
    before.hear(FOUR.proposal(), 0)
    before.judge(A, True, 0)
    said = before.drain()
    again = FOUR.member(1, said, 5000)
    assert again.repeat() == said
    again.tick(99_000)
    assert again.drain() == []
    _hear(again, [FOUR.proposal("b"), *_prevoted("a", 0, 0, 2)])
    assert again.decided is None
    assert (0, PRECOMMIT, A) not in votes(again.drain())  # "a" is not known here yet
    _hear(again, [FOUR.proposal("a")])
    assert (0, PRECOMMIT, A) in votes(again.drain())


def test_a_lock_outlives_a_restart() -> None:
    """With the proposal and the prevotes that it is locked by, so that it can be proposed again, and be proved."""
    _, said = _locked(1)
    last = next(
        i for i, one in enumerate(said) if isinstance(one, Proposal) and one.head.member == 1
    )
    again = FOUR.member(1, said[:last], 0)
    assert again.ballot == 0
    _hear(again, _precommitted(None, 0, 0, 2, 3))
    again.tick(600)
    assert FOUR.proposal("a", 1, valid_ballot=0) in again.drain()
    assert votes(again.repeat()).count((0, PREVOTE, A)) == 3
    follower = FOUR.member(3, _locked(3)[1], 0)
    _hear(follower, _prevoted(None, 1, 0, 1))
    follower.hear(FOUR.proposal("b", 1), 0)
    assert votes(follower.drain())[0] == (1, PREVOTE, None)


def test_a_leader_proposes_nothing_else_after_a_restart() -> None:
    """What it proposed is judged again."""
    before = FOUR.member(0)
    before.propose(FOUR.certificate("a"), ids("a"), 0)
    again = FOUR.member(0, before.drain(), 0)
    assert not again.wants_value
    assert again.to_judge == FOUR.proposal("a")
    again.propose(FOUR.certificate("b"), ids("b"), 0)
    assert again.drain() == []


def test_a_member_that_forgot_stands_by_what_others_heard_of_it() -> None:
    """A node whose disk is gone says nothing that contradicts a vote of its own that comes back."""
    member = FOUR.member(1)
    _hear(member, [FOUR.proposal("b"), *_prevoted("a", 0, 1)])
    member.judge(B, True, 0)
    assert votes(member.drain()) == []
    assert member.drain_faults() == []


def test_what_another_turn_has_said_is_left_out() -> None:
    """Of another turn, or of another committee's epoch."""
    said: list[Said] = [FOUR.vote(1, PREVOTE, turn=9), FOUR.vote(1, PREVOTE, epoch=9)]
    assert FOUR.member(1, said).repeat() == []
