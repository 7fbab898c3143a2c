"""Committees: who is chosen, whose key it is, and when it is in office; whatever single candidates do or leave undone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.apply import begin_block
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.office import choose, due_step, is_founder, is_over, qualified
from pocqueue.pouw.chain.records import SUPERVISOR, generation_key
from pocqueue.pouw.chain.signatures import sign_transaction
from pocqueue.pouw.chain.state import Draft
from pocqueue.pouw.committee.quorum import quorum
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.transactions import (
    Answer,
    Body,
    Complaint,
    Confirm,
    Deal,
    Release,
    Transaction,
    Transfer,
)
from tests.pouw.generations import NAMES, Said, Town, begun, founded_by, in_office
from tests.pouw.support import account, coins, key

_DIGEST = b"d" * 32
_NOW_MS = founded_by(4).time_ms + 60_000


def _members(town: Town) -> set[str]:
    return {name for name in NAMES if account(name) in town.committee.members}


def _signs(town: Town, *names: str) -> bool:
    """Say whether these members can sign for the group."""
    signature = town.signed_by(names, _DIGEST)
    return bls.verify(town.committee.group_key, _DIGEST, signature)


def _refused(town: Town, *said: Said) -> str:
    """Return the rule by which a block of this is refused."""
    with pytest.raises(InvalidTransaction) as caught:
        town.block(*said)
    return caught.value.rule


def test_founders_come_into_office_together() -> None:
    """Ten blocks after the last of their tickets; nobody before; any three of four sign."""
    town = Town(founded_by(4))
    for name in NAMES[:3]:
        town.block(town.ticket(name))
    town.blocks(5)
    assert town.state.generation is None
    town.block(town.ticket(NAMES[3]))
    first = town.height
    assert town.generation.height == first
    for name in NAMES[:4]:
        town.block(town.deal(name))
    for name in NAMES[:4]:
        town.block(*town.confirms(name))
    town.until(first + 9)
    assert town.state.office is None
    town.block()
    assert town.height == first + 10
    assert _members(town) == {*NAMES[:4]}
    committee, office = town.committee, town.state.office
    assert office is not None
    assert (office.epoch, office.height, office.ticket) == (0, 0, committee.tickets[0])
    assert (committee.threshold, committee.numbers) == (3, (1, 2, 3, 4))
    assert _signs(town, *NAMES[:3])
    assert _signs(town, *NAMES[1:4])
    assert not _signs(town, *NAMES[:2])


def test_only_those_listed_found() -> None:
    """Until the first committee is in office; then, and on `dev`, any supervisor may where founding is allowed."""
    town = begun(4)
    assert [is_founder(town.genesis, town.state, account(name)) for name in NAMES[3:5]] == [
        *(True, False)
    ]
    town.make_committee(*NAMES[:4])
    assert is_founder(town.genesis, town.state, account(NAMES[4]))
    dev = msgspec.structs.replace(founded_by(4), supervisors=())
    assert is_founder(dev, dev.state, account(NAMES[4]))


def test_the_silent_one_of_four_is_waited_for() -> None:
    """Three of four stand by nobody's fault: it begins again at once, until all four have dealt."""
    town = begun(4)
    first = town.generation
    town.block(*town.deals(*NAMES[:3]))
    town.until(9)
    again = town.generation
    assert (again.height, again.candidates) == (9, first.candidates)
    assert town.state.deals(0) == {}
    town.make_committee(*NAMES[:4])
    assert _signs(town, *NAMES[1:4])


def test_the_silent_one_of_five_stays_outside() -> None:
    """The others make another key, of which a fourth may be away."""
    town = begun(5)
    town.block(*town.deals(*NAMES[:4]))
    town.confirmed()
    assert [one.account for one in town.generation.candidates] == [*map(account, NAMES[:4])]
    assert (town.generation.height, town.generation.threshold) == (9, 3)
    committee = town.make_committee(*NAMES[:4])
    assert (town.height, len(committee.chosen)) == (19, 5)
    assert _signs(town, *NAMES[1:4])
    # As long as the same five are chosen, nothing begins anew.
    town.blocks(21)
    assert town.state.generation is None


def test_a_wrong_share_that_is_shown_rightly_counts() -> None:
    """The one that it was for takes the shown one; all are members."""
    town, (cheat, victim) = begun(4), NAMES[:2]
    town.block(town.wrong_deal(cheat, victim), *town.deals(*NAMES[1:4]))
    town.until(5)
    town.block(town.complaint(victim, cheat))
    town.block(*town.confirms(*NAMES[:4]))
    assert qualified(town.state, town.generation) == [1, 2, 3]
    town.block(town.answer(cheat, victim))
    assert qualified(town.state, town.generation) == [0, 1, 2, 3]
    town.until(11)
    assert _members(town) == {*NAMES[:4]}
    assert _signs(town, *NAMES[:3])


def test_a_wrong_share_that_nobody_shows_throws_its_dealer_out() -> None:
    """Also one that is shown wrongly: that transaction is refused."""
    town, (cheat, victim) = begun(5), NAMES[2:4]
    town.block(town.wrong_deal(cheat, victim), *town.deals(*NAMES[:2], *NAMES[3:5]))
    town.until(5)
    town.block(town.complaint(victim, cheat))
    town.until(7)
    assert _refused(town, town.wrong_answer(cheat, victim)) == "answer"
    assert _refused(town, town.answer(cheat, NAMES[0])) == "answer"
    town.confirmed()
    others = [*NAMES[:2], *NAMES[3:5]]
    assert [one.account for one in town.generation.candidates] == [*map(account, others)]
    town.make_committee(*others)
    assert _signs(town, *others[:3])


def test_a_false_complaint_throws_nobody_out() -> None:
    """The dealer shows what it has sealed, which is the complainer's own to keep."""
    town, (dealer, liar) = begun(4), NAMES[:2]
    town.block(*town.deals(*NAMES[:4]))
    town.until(5)
    town.block(town.complaint(liar, dealer))
    assert _refused(town, town.complaint(liar, dealer)) == "complaint"
    town.until(7)
    town.block(town.answer(dealer, liar))
    assert _refused(town, town.answer(dealer, liar)) == "answer"
    town.confirmed()
    town.until(11)
    assert _members(town) == {*NAMES[:4]}
    assert _signs(town, liar, *NAMES[2:4])


def test_who_does_not_confirm_its_shares_is_no_member() -> None:
    """It may have been dealt a wrong one while it was away: as a member it could sign nothing, beside a dealer that lies."""
    town, (cheat, victim) = begun(5), NAMES[:2]
    others = [cheat, *NAMES[2:5]]
    town.block(town.wrong_deal(cheat, victim), *town.deals(*NAMES[1:5]))
    town.until(6)
    town.block(*town.confirms(*others))
    assert _refused(town, *town.confirms(cheat)) == "confirm"
    town.until(9)
    assert [one.account for one in town.generation.candidates] == [*map(account, others)]
    town.make_committee(*others)
    assert _signs(town, *others[1:])
    # Of four founders it is waited for.
    four = begun(4)
    four.block(four.wrong_deal(cheat, victim), *four.deals(*NAMES[1:4]))
    four.until(8)
    four.block(*four.confirms(cheat, *NAMES[2:4]))
    assert (four.generation.height, len(four.generation.candidates)) == (9, 4)
    assert four.state.confirmed(0) == set()


def test_who_is_left_is_who_dealt_and_answered() -> None:
    """Of seven, as computed by hand: one silent, one that does not answer, one that does, one that is lied about."""
    town = begun(7)
    a, b, c, d, e, f, g = NAMES[:7]
    town.block(town.wrong_deal(b, c), town.wrong_deal(d, e, f), *town.deals(c, e))
    town.blocks(2)
    town.block(*town.deals(f, g))
    town.block(town.complaint(c, b), town.complaint(a, g))
    town.block(town.complaint(e, d), town.complaint(f, d))
    town.block(town.answer(d, e), town.answer(g, a))
    town.block(town.answer(d, f), *town.confirms(*NAMES[:7]))
    assert town.height == 9
    # a was silent, b left c's complaint standing: c, d, e, f and g are five, as many as the first key would have needed.
    assert [one.account for one in town.generation.candidates] == [*map(account, (c, d, e, f, g))]
    assert town.generation.threshold == quorum(5) == 4
    town.make_committee(c, d, e, f, g)
    assert _signs(town, c, d, f, g)


def test_too_few_are_no_committee() -> None:
    """Of seven, four honest ones are fewer than the five that their key would need: the founders try again."""
    town = begun(7)
    town.block(*town.deals(*NAMES[:4]))
    town.confirmed()
    assert len(town.generation.candidates) == 7
    assert town.state.office is None


@pytest.mark.parametrize(
    ("height", "step"),
    [(1, None), (2, Deal), (5, Deal), (6, Complaint), (7, Complaint), (8, Answer), (9, Answer)],
)
def test_each_step_has_its_blocks(height: int, step: type[Body] | None) -> None:
    """Of a key generation that began in block 1; block 10 and 11 take none."""
    generation = begun(4).generation
    assert due_step(generation, height) is step
    assert due_step(generation, 10) is due_step(generation, 11) is None


def test_what_comes_too_early_or_too_late_is_refused() -> None:
    """The one may be good in a later block, the other is not."""
    town, (first, second) = begun(4), NAMES[:2]
    town.block(town.deal(first))
    assert _refused(town, town.complaint(second, first)) == "early"
    assert _refused(town, town.answer(first, second)) == "early"
    assert _refused(town, *town.confirms(second)) == "early"
    town.until(5)
    late = town.deal(second)
    assert _refused(town, late) == "step"
    assert isinstance(late[1], Deal)
    assert not is_over(late[1], 5)
    assert is_over(late[1], 6)
    town.until(7)
    assert _refused(town, town.complaint(second, first)) == "step"
    confirm = Confirm(town.generation.id)
    assert not is_over(confirm, 9)
    assert is_over(confirm, 10)
    town.until(9)
    assert _refused(town, late) == "generation"


def test_only_candidates_take_part_and_once() -> None:
    """Nobody deals twice, for another one, about nobody, or without being a candidate."""
    town, (first, second) = begun(4), NAMES[:2]
    stranger = NAMES[4]
    assert _refused(town, (stranger, town.deal(first)[1])) == "candidate"
    # Another candidate's deal has its empty share in the wrong place.
    assert _refused(town, (second, town.deal(first)[1])) == "deal"
    town.block(town.deal(first))
    assert _refused(town, town.deal(first)) == "deal"
    town.until(5)
    assert _refused(town, town.complaint(first, first)) == "complaint"
    assert _refused(town, town.complaint(first, second)) == "complaint"
    nobody = (first, Complaint(town.generation.id, 200))
    assert _refused(town, nobody) == "complaint"
    assert _refused(town, (stranger, Complaint(town.generation.id, 0))) == "candidate"


@pytest.mark.parametrize(
    "changed",
    [
        {"commitments": ()},
        {"commitments": (bytes(48),) * 3},
        {"commitments": (b"\xc0" + bytes(47),) * 3},
        {"shares": ()},
        {"shares": (b"", *[bytes(48)] * 2)},
        {"shares": (b"", *[bytes(48)] * 4)},
        {"shares": (b"", b"", *[bytes(48)] * 2)},
        {"shares": (b"", *[bytes(47)] * 3)},
        {"shares": (bytes(48),) * 4},
    ],
)
def test_a_deal_has_a_form(changed: dict[str, Any]) -> None:
    """As many commitments as shares make a signature, all of them points; a sealed share for each of the others."""
    town = begun(4)
    deal = msgspec.structs.replace(town.deal(NAMES[0])[1], **changed)
    with pytest.raises(InvalidTransaction, match=r"^deal: ") as refused:
        town.block((NAMES[0], deal))
    assert refused.value.is_fault


def test_a_restart_in_each_step_changes_nothing() -> None:
    """Whoever is started again says what it would have said, and finds its share in the chain and its key."""
    town, (cheat, victim) = begun(4), NAMES[:2]
    said = [town.deal(name) for name in NAMES[:4]]
    town.block(town.wrong_deal(cheat, victim), said[2])
    # `Town.dealer` is another one each time: nothing is known to it but the account's key.
    assert [town.deal(name) for name in NAMES[:4]] == said
    town.block(*town.deals(victim, NAMES[3]))
    town.until(5)
    deals = town.state.deals(0)
    opened = [town.dealer(name).opened(town.generation, 0, deals[0]) for name in NAMES[:4]]
    assert [share is None for share in opened] == [False, True, False, False]
    town.block(town.complaint(victim, cheat))
    town.until(7)
    town.block(town.answer(cheat, victim))
    town.confirmed()
    town.until(11)
    assert _signs(town, *NAMES[:3])
    shares = [town.share(name) for name in NAMES[:4]]
    town.blocks(30)
    assert [town.share(name) for name in NAMES[:4]] == shares


def test_the_committee_follows_the_stakes_at_epochs() -> None:
    """4, then 5, then 7, as supervisors join; each hands over ten blocks after the epoch began."""
    town = in_office(4)
    first = town.committee
    for joining, num in ((NAMES[4:5], 5), (NAMES[5:7], 7)):
        town.block(*(town.ticket(name) for name in joining))
        assert town.state.generation is None
        town.until(-(-town.height // 10) * 10)
        began, before = town.generation.height, town.committee
        town.block(*town.deals(*NAMES[:num]))
        town.confirmed()
        town.until(began + 9)
        assert town.committee == before
        town.block()
        assert _members(town) == {*NAMES[:num]}
        office = town.state.office
        assert office is not None
        assert (office.epoch, office.height) == (before.epoch + 1, began + 10)
        assert _signs(town, *NAMES[num - quorum(num) : num])
    assert town.committee.group_key != first.group_key
    assert town.state.committee(0) == first
    # Of a committee that is out of office nothing is kept by which its members had their shares.
    assert [town.state.generation_of(epoch) is None for epoch in range(3)] == [True, True, False]
    assert [len(town.state.deals(epoch)) for epoch in range(3)] == [0, 0, 7]


def test_three_do_not_follow_on_four() -> None:
    """Who gives its ticket back stays in office; so do all, if nobody has a ticket."""
    town = in_office(4)
    before = town.committee
    town.block(town.release(NAMES[0]))
    town.blocks(30)
    assert town.committee == before
    town.block(*(town.release(name) for name in NAMES[1:4]))
    town.blocks(30)
    assert town.committee == before
    assert town.state.generation is None


def test_a_member_has_something_to_lose() -> None:
    """While it is in office without a live ticket, and as long after it as anybody who gives one back."""
    town = in_office(4)
    unbonding = town.genesis.parameters.unbonding_blocks
    left = town.committee.tickets[town.committee.members.index(account(NAMES[1]))]
    town.block(town.release(NAMES[1]))
    town.blocks(2 * unbonding)
    assert town.state.ticket(left) is not None
    town.block(town.ticket(NAMES[4]))
    town.until(-(-town.height // 10) * 10)
    town.make_committee(NAMES[0], *NAMES[2:5])
    assert left not in town.committee.tickets
    town.blocks(unbonding - 1)
    assert town.state.ticket(left) is not None
    owned = town.state.account(account(NAMES[1])).balance
    town.blocks(unbonding)
    assert town.state.ticket(left) is None
    assert town.state.account(account(NAMES[1])).balance == owned + 100 * PAI


def test_who_comes_for_who_goes() -> None:
    """With the next epoch; until then the one that goes is a member."""
    town = in_office(4)
    town.block(town.release(NAMES[1]), town.ticket(NAMES[4]))
    town.until(20)
    now = [NAMES[0], *NAMES[2:5]]
    town.block(*town.deals(*now))
    town.confirmed()
    town.until(29)
    assert _members(town) == {*NAMES[:4]}
    town.block()
    assert _members(town) == {*now}
    assert _signs(town, *now[1:])


def test_a_committee_that_fails_leaves_the_old_one() -> None:
    """And the next epoch tries again."""
    town = in_office(4)
    town.block(town.release(NAMES[1]), town.ticket(NAMES[4]))
    town.until(20)
    town.block(*town.deals(NAMES[0], NAMES[2]))
    town.confirmed()
    assert town.state.generation is None
    assert _members(town) == {*NAMES[:4]}
    town.until(30)
    assert town.generation.height == 30


def test_sixteen_at_most_by_stake() -> None:
    """Equal stakes are settled by the smaller ticket."""
    dev = msgspec.structs.replace(founded_by(4), supervisors=())
    more = {"rich": 500 * PAI, "poor": 100 * PAI}
    accounts = (*dev.accounts, *((account(name), 10_000 * PAI) for name in more))
    town = Town(msgspec.structs.replace(dev, accounts=accounts))
    town.block(*(town.ticket(name, 200 * PAI) for name in NAMES))
    town.block(*(town.ticket(name, stake) for name, stake in more.items()))
    chosen = {one.account for one in choose(town.state)}
    tickets = {town.state.live_ticket(account(name), SUPERVISOR): name for name in NAMES}
    last = tickets[max(ticket for ticket in tickets if ticket)]
    assert chosen == {account(name) for name in (*NAMES, "rich") if name != last}
    town.until(10)
    assert [one.account for one in town.generation.candidates] == sorted(chosen)


def test_one_is_in_office_until_there_are_four() -> None:
    """Without listed founders the first one is; a third changes nothing, with a fourth it is the four's turn."""
    town = Town(msgspec.structs.replace(founded_by(4), supervisors=()))
    town.block(town.ticket(NAMES[0]))
    assert _members(town) == {NAMES[0]}
    town.block(*(town.ticket(name) for name in NAMES[1:3]))
    town.until(20)
    assert town.state.generation is None
    town.block(town.ticket(NAMES[3]))
    town.until(30)
    assert _members(town) == {NAMES[0]}
    town.make_committee(*NAMES[:4])
    assert _members(town) == {*NAMES[:4]}
    assert town.committee.epoch == 1


def test_the_lone_ones_leaving_ends_what_was_in_the_making() -> None:
    """Another epoch has begun then; the next one tries again."""
    town = Town(msgspec.structs.replace(founded_by(4), supervisors=()))
    town.block(*(town.ticket(name) for name in NAMES[:5]))
    town.until(10)
    town.block(*town.deals(*NAMES[:5]))
    (lone,) = _members(town)
    town.block(town.release(lone))
    assert town.state.generation is None
    assert len(town.committee.members) == 1
    assert [town.state.deals(epoch) for epoch in range(3)] == [{}] * 3
    town.until(20)
    assert len(town.generation.candidates) == 4


def test_a_branch_knows_nothing_of_another_one() -> None:
    """A reorganisation in the middle: what was said on one branch counts on the other, if both began alike."""
    town = begun(4)
    other = town.fork()
    town.block(*town.deals(*NAMES[:2]))
    other.block()
    # The same deals, word by word: the key is the same on both.
    other.block(*town.deals(*NAMES[:2]))
    for branch in (town, other):
        branch.block(*branch.deals(*NAMES[2:4]))
        branch.confirmed()
        branch.until(11)
    assert town.committee == other.committee


def test_a_deal_for_other_candidates_is_of_no_use() -> None:
    """On a branch where somebody else is chosen, or where it began later, it is another key generation."""
    town = in_office(4)
    town.until(18)
    town.block(town.ticket(NAMES[4]))
    other = town.fork()
    town.block()
    deal = town.deal(NAMES[0])
    other.block(other.ticket(NAMES[5], 100 * PAI))
    assert _refused(other, deal) == "generation"
    assert town.generation.id[:8] == other.generation.id[:8]
    assert town.generation.id != other.generation.id


def _sent(town: Town, name: str, body: Body, ahead: int = 0, fee: int = 0) -> Transaction:
    sequence = town.state.account(account(name)).sequence + ahead
    return sign_transaction(key(name), town.genesis.network, sequence, fee, body)


def _begun(town: Town) -> Draft:
    draft = town.state.child()
    begin_block(town.genesis, draft, town.state.clock.time_ms + 1000, is_founding=True)
    return draft


def test_candidates_pay_nothing_and_come_first() -> None:
    """Others pay for their place, and wait behind them."""
    town = begun(4)
    pool = Mempool(town.genesis)
    pool.add(_sent(town, NAMES[9], Transfer(account(NAMES[8]), 1), fee=10**6), town.state, _NOW_MS)
    deal = _sent(town, *town.deal(NAMES[0]))
    pool.add(deal, town.state, _NOW_MS)
    assert pool.select(_begun(town), 10**6)[0] == deal
    with pytest.raises(InvalidTransaction, match="is no supervisor"):
        pool.add(_sent(town, NAMES[9], town.deal(NAMES[0])[1]), town.state, _NOW_MS)


def test_what_waits_for_its_step_is_kept_and_what_is_over_is_dropped() -> None:
    """A node that is a block behind does not lose what comes early."""
    town = begun(4)
    pool = Mempool(town.genesis)
    town.block(*town.deals(*NAMES[:4]))
    complaint = _sent(town, *town.complaint(NAMES[0], NAMES[1]))
    pool.add(complaint, town.state, _NOW_MS)
    assert pool.select(_begun(town), 10**6) == []
    assert complaint.id in pool
    pool.drop_steps(7)
    assert complaint.id in pool
    pool.drop_steps(8)
    assert complaint.id not in pool
    town.until(8)
    with pytest.raises(InvalidTransaction, match=r"^step: "):
        pool.add(complaint, town.state, _NOW_MS)
    far = Complaint((1000).to_bytes(8) + bytes(24), 1)
    with pytest.raises(InvalidTransaction, match=r"^step: "):
        pool.add(_sent(town, NAMES[0], far), town.state, _NOW_MS)


@st.composite
def _bodies(draw: st.DrawFn, town: Town) -> Said:
    """Draw who says what, well or not."""
    name, other = draw(st.sampled_from(NAMES[:6])), draw(st.sampled_from(NAMES[:4]))
    generation = town.state.generation
    ids = [bytes(32), (town.height + 1).to_bytes(8) + bytes(24), b"\xff" * 32]
    identifier = draw(st.sampled_from([*ids, generation.id] if generation else ids))
    number = draw(st.integers(0, 255) | st.integers(0, 5))
    choices: list[Body] = [
        Complaint(identifier, number),
        Confirm(identifier),
        Answer(identifier, number, draw(st.binary(min_size=32, max_size=32))),
        Deal(identifier, (), ()),
    ]
    live = town.state.live_ticket(account(name), SUPERVISOR)
    choices.append(Release(live) if live else town.ticket(name)[1])
    if generation is not None and generation.place(account(other)) is not None:
        if generation.place(account(name)) is not None:
            honest = [town.deal(name)[1], town.complaint(name, other)[1]]
            honest += [town.confirms(name)[0][1]] * 3
            choices += [*honest * 3, town.answer(name, other)[1], town.wrong_deal(name, other)[1]]
        choices.append(town.deal(other)[1])
    return name, draw(st.sampled_from(choices))


def _taken(town: Town, said: list[Said]) -> list[Said]:
    """Return what of this a block can have."""
    taken: list[Said] = []
    for one in said:
        try:
            town.fork().block(*taken, one)
        except InvalidTransaction:
            continue
        taken.append(one)
    return taken


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(data=st.data())
def test_whatever_is_said_breaks_nothing(data: st.DataObject) -> None:
    """Only our errors; no coins come or go; who is in office has a key that its own members can sign with."""
    town = data.draw(st.sampled_from([4, 5]).map(begun))
    owned = coins(town.state)
    for _ in range(data.draw(st.integers(1, 16))):
        said = [data.draw(_bodies(town)) for _ in range(data.draw(st.integers(0, 4)))]
        town.block(*_taken(town, said))
        assert coins(town.state) == owned
    generation = town.state.generation
    if generation is not None:
        town.until(generation.height + 7)
        town.block(*_taken(town, town.confirms(*NAMES[:5])))
        town.until(generation.height + 10)
    if town.state.committee_in_office is not None:
        members = sorted(_members(town))
        assert len(members) >= 4
        shares = [name for name in members if town.share(name) is not None]
        if len(shares) >= town.committee.threshold:
            assert _signs(town, *shares)
    for epoch in range(town.state.next_epoch):
        is_kept = town.state.get(generation_key(epoch)) is not None
        assert is_kept == (epoch == town.state.next_epoch - 1)
