"""What candidates say by themselves, and how founders share the making of blocks."""

from __future__ import annotations

import msgspec
import pytest

from pocqueue.pouw.chain.office import Step
from pocqueue.pouw.committee.seats import Seat, seat_at
from pocqueue.pouw.committee.steps import founding_due_ms, steps_of
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.transactions import Answer, Complaint, Confirm, Deal
from tests.pouw.generations import NAMES, Said, Town, begun, in_office
from tests.pouw.support import account

_DIGEST = b"d" * 32


def _said(town: Town, *names: str) -> list[Said]:
    """Return what these names say by themselves in the next block."""
    return [(name, step) for name in names for step in steps_of(town.state, town.dealer(name))]


def _until_office(town: Town, *names: str) -> None:
    """Let these names say what they say by themselves, until a committee is in office."""
    for _ in range(30):
        if town.state.committee_in_office is not None:
            return
        town.block(*_said(town, *names))
    raise AssertionError("nobody came into office")


def _seats(town: Town, *names: str) -> list[Seat]:
    found = [seat_at(town.state, town.committee, town.dealer(name)) for name in names]
    return [seat for seat in found if seat is not None]


def _is_signed(town: Town, seats: list[Seat]) -> bool:
    shares = {town.committee.numbers[seat.place]: seat.share.sign(_DIGEST) for seat in seats}
    return bls.verify(town.committee.group_key, _DIGEST, bls.combine(shares))


def test_honest_candidates_come_into_office() -> None:
    """Each deals once, and has nothing to say of the others; strangers say nothing."""
    town = begun(4)
    assert [type(body) for _, body in _said(town, *NAMES[:5])] == [Deal] * 4
    town.block(*_said(town, *NAMES[:4]))
    assert _said(town, *NAMES[:4]) == []
    _until_office(town, *NAMES[:4])
    assert town.height == 11
    seats = _seats(town, *NAMES[:5])
    assert [seat.committee for seat in seats] == [town.committee] * 4
    assert _is_signed(town, seats[1:])
    assert _said(town, *NAMES[:4]) == []


def test_a_wrong_share_is_complained_about_and_shown() -> None:
    """By those that it is for, all at once; and the honest part of the cheat answers."""
    town, cheat = begun(4), NAMES[0]
    town.block(town.wrong_deal(cheat, NAMES[1], NAMES[3]), *_said(town, *NAMES[1:4]))
    town.until(5)
    said = _said(town, *NAMES[:4])
    assert [(name, type(body)) for name, body in said] == list(
        zip(NAMES[:4], (Confirm, Complaint, Confirm, Complaint), strict=True)
    )
    town.block(*said)
    # Who has complained confirms once that is in the chain.
    confirms = _said(town, *NAMES[:4])
    assert [(name, type(body)) for name, body in confirms] == [
        (name, Confirm) for name in (NAMES[1], NAMES[3])
    ]
    town.block(*confirms)
    answers = _said(town, *NAMES[:4])
    assert [(name, type(body)) for name, body in answers] == [(cheat, Answer)] * 2
    town.block(answers[0])
    assert _said(town, *NAMES[:4]) == answers[1:]
    _until_office(town, *NAMES[:4])
    assert _is_signed(town, _seats(town, *NAMES[:3]))


def test_whoever_stays_silent_is_left_behind() -> None:
    """With what the others say by themselves the four of five are in office after a second try."""
    town = begun(5)
    _until_office(town, *NAMES[:2], *NAMES[3:5])
    assert town.height == 19
    assert len(_seats(town, *NAMES[:5])) == 4


@pytest.mark.parametrize("away", [6, 7])
def test_who_missed_its_time_to_complain_is_not_counted_on(away: int) -> None:
    """It was away up to this block: the key is made anew, and at the next try it has its share; no committee has a mute member."""
    town, cheat, victim = begun(4), NAMES[0], NAMES[1]
    town.block(town.wrong_deal(cheat, victim), *_said(town, *NAMES[1:4]))
    while town.height < away:
        town.block(*_said(town, cheat, *NAMES[2:4]))
    assert (_said(town, victim) == []) == (away == 7)
    _until_office(town, *NAMES[:4])
    assert town.height == (11 if away == 6 else 19)
    assert len(_seats(town, *NAMES[:4])) == 4
    assert _is_signed(town, _seats(town, victim, *NAMES[2:4]))


def test_who_says_falsely_that_its_shares_are_good_has_no_seat() -> None:
    """It signs nothing rather than something wrong; the other three go on."""
    town, cheat, liar = begun(4), NAMES[0], NAMES[1]
    town.block(town.wrong_deal(cheat, liar), *_said(town, *NAMES[1:4]))
    town.until(5)
    town.block(*_said(town, cheat, *NAMES[2:4]), *town.confirms(liar))
    _until_office(town, cheat, *NAMES[2:4])
    assert account(liar) in town.committee.members
    assert _seats(town, liar) == []
    assert _is_signed(town, _seats(town, cheat, *NAMES[2:4]))


def test_a_seat_is_found_where_its_committee_is_in_office() -> None:
    """Neither before, nor after its successor has come, nor in a committee of another branch."""
    town = in_office(4)
    before, committee = town.fork(), town.committee
    town.block(town.ticket(NAMES[4]))
    town.until(20)
    town.make_committee(*NAMES[:5])
    dealer = town.dealer(NAMES[0])
    assert seat_at(before.state, committee, dealer) is not None
    assert seat_at(town.state, committee, dealer) is None
    assert seat_at(before.state, town.committee, dealer) is None
    assert seat_at(town.state, town.committee, dealer) is not None
    making = begun(4)
    assert seat_at(making.state, committee, making.dealer(NAMES[0])) is None
    other = msgspec.structs.replace(committee, shares=committee.shares[::-1])
    assert seat_at(before.state, other, dealer) is None


def _due_s(town: Town, name: str, *waiting: tuple[bytes, Step]) -> float:
    due_ms = founding_due_ms(town.genesis, town.state, account(name), waiting)
    return (due_ms - town.state.clock.time_ms) / 1000


def test_founders_make_blocks_by_turns() -> None:
    """Whose turn it is does not wait; the next one a second and a half, and one more for each after it."""
    town = begun(4)
    town.block(*town.deals(*NAMES[:4]))
    assert town.height == 2
    assert [_due_s(town, name) for name in NAMES[:5]] == [2.5, 3.5, 0, 1.5, 4.5]
    town.block()
    assert [_due_s(town, name) for name in NAMES[:4]] == [1.5, 2.5, 3.5, 0]


def test_a_block_waits_for_deals_and_words() -> None:
    """Five seconds for those that have not dealt, unless their deals are waiting; three for what is said of shares, and for
    answers that are due."""
    town = begun(4)
    turn = NAMES[town.height % 4]
    deals = [(account(name), town.deal(name)[1]) for name in NAMES[:4]]
    steps = [(sender, body) for sender, body in deals if isinstance(body, Deal)]
    assert _due_s(town, turn) == _due_s(town, turn, *steps[:3]) == 5
    assert _due_s(town, turn, *steps) == 0
    stale = msgspec.structs.replace(steps[3][1], generation=bytes(32))
    assert _due_s(town, turn, *steps[:3], (steps[3][0], stale)) == 5
    town.block(*town.deals(*NAMES[:4]))
    waits, complaint = [], town.complaint(NAMES[0], NAMES[1])
    for height in range(2, 11):
        assert town.height == height
        waits.append(_due_s(town, NAMES[height % 4]))
        match height:
            case 5:  # a complaint says as much as that all is good
                heard = [(account(name), body) for name, body in town.confirms(*NAMES[1:4])]
                confirms = [(sender, body) for sender, body in heard if isinstance(body, Step)]
                assert isinstance(complaint[1], Complaint)
                own = (account(NAMES[0]), complaint[1])
                assert _due_s(town, NAMES[1], *confirms) == 3
                assert _due_s(town, NAMES[1], *confirms, own) == 0
                town.block(complaint, *town.confirms(*NAMES[2:4]))
            case 6:
                town.block(*_said(town, NAMES[0]))
            case _:
                town.block(*_said(town, NAMES[1]))
    assert waits == [0, 0, 0, 3, 3, 3, 0, 0, 0]
    # Where one has not dealt it begins anew, and nobody is waited for.
    three = begun(4)
    three.block(*three.deals(*NAMES[:3]))
    three.until(5)
    assert _due_s(three, NAMES[5 % 4]) == 0


@pytest.mark.parametrize("num", [0, 4])
def test_without_a_key_in_the_making_others_do_not_wait(num: int) -> None:
    """On `dev`, and where a committee is in office."""
    town = in_office(4)
    genesis = msgspec.structs.replace(town.genesis, supervisors=town.genesis.supervisors[:num])
    assert _due_s(Town(genesis, town.state), NAMES[9]) == 0
