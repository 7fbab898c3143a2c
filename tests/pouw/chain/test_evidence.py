"""Evidence: what shows an offence and what does not, and where the stake goes."""

from __future__ import annotations

import msgspec
import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.apply import check_transaction
from pocqueue.pouw.chain.records import (
    MINER,
    OFFICE,
    SUPERVISOR,
    Committee,
    Office,
    committee_key,
)
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.wire.evidence import Fault, TwoMessages, TwoProposals, TwoVotes
from pocqueue.pouw.wire.statements import statement_digest
from pocqueue.pouw.wire.transactions import Evidence, Release
from pocqueue.pouw.wire.votes import PRECOMMIT
from tests.pouw.offences import found_false, message, proposal, vote
from tests.pouw.support import (
    GENESIS,
    account,
    after,
    closed,
    coins,
    founded,
    group_key,
    order,
    signed,
    ticket,
)

_Shown = Fault | TwoMessages | TwoVotes | TwoProposals

TWO_MESSAGES = TwoMessages(message(), message(loss=1))
TWO_VOTES = TwoVotes(vote(), vote(value=b"v" * 32))
TWO_PROPOSALS = TwoProposals(proposal(), proposal(count=1))
UNBONDING = GENESIS.parameters.unbonding_blocks


@pytest.fixture(scope="module")
def state() -> State:
    """ "supervisor" is in office in epoch 0, "miner" mines, "finder" has coins; each stake is 100."""
    return founded("finder")


def _shown(state: State, shown: _Shown, sequence: int = 1, by: str = "finder") -> State:
    return after(state, signed(by, Evidence(shown), sequence))


def _refused(state: State, shown: _Shown, rule: str, sequence: int = 1) -> None:
    with pytest.raises(InvalidTransaction) as caught:
        _shown(state, shown, sequence)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("shown", "culprit", "role"),
    [
        (found_false(), "miner", MINER),
        (TWO_MESSAGES, "miner", MINER),
        (TWO_VOTES, "supervisor", SUPERVISOR),
        (TwoVotes(vote(kind=PRECOMMIT), vote(kind=PRECOMMIT, value=b"v" * 32)), "supervisor", SUPERVISOR),
        (TWO_PROPOSALS, "supervisor", SUPERVISOR),
        (TwoProposals(proposal(), proposal(valid_ballot=0)), "supervisor", SUPERVISOR),
    ],
    ids=["fault", "messages", "prevotes", "precommits", "proposals", "proposals by valid ballot"],
)  # fmt: skip
def test_an_offence_costs_the_whole_stake_once(
    state: State, shown: _Shown, culprit: str, role: int
) -> None:
    """A fifth is the finder's, the rest is burnt; nothing can be shown twice."""
    lost = state.live_ticket(account(culprit), role)
    assert lost is not None
    left = _shown(state, shown)
    assert left.live_ticket(account(culprit), role) is None
    assert left.ticket(lost) is None
    assert left.account(account("finder")).balance == 2020 * PAI
    assert left.supply.issued == state.supply.issued - 80 * PAI == coins(left)
    assert left.reputation(account(culprit)).bad == 2000
    [slash] = left.slashes(account(culprit))[account(culprit)]
    assert (slash.ticket, slash.role, slash.stake) == (lost, role, 100 * PAI)
    assert (slash.finder, slash.bounty, slash.task) == (account("finder"), 20 * PAI, None)
    _refused(left, shown, "offence", 2)


def test_a_second_offence_finds_no_second_stake_to_take(state: State) -> None:
    """The ticket is gone, and whatever was done with it is paid for."""
    left = _shown(state, TWO_MESSAGES)
    _refused(left, found_false(slot=10), "ticket", 2)


def test_a_false_message_and_a_second_one_of_its_slot_are_one_offence(state: State) -> None:
    """Also where the account has taken another ticket meanwhile."""
    left = after(_shown(state, TWO_MESSAGES), signed("miner", ticket(MINER), 2))
    _refused(left, found_false(), "offence", 2)
    assert _shown(left, found_false(slot=10), 2).live_ticket(account("miner"), MINER) is None


def test_a_stake_on_its_way_back_is_taken(state: State) -> None:
    """Up to the block before it is free; then there is nothing to take."""
    lost = state.live_ticket(account("miner"), MINER)
    assert lost is not None
    leaving = after(state, signed("miner", Release(lost), 2))
    for _ in range(UNBONDING - 2):
        leaving = after(leaving)
    left = _shown(leaving, found_false())
    assert left.ticket(lost) is None
    for _ in range(3):
        left = after(left)
    assert left.account(account("miner")).balance == 1900 * PAI
    assert coins(left) == left.supply.issued
    _refused(after(leaving), found_false(), "ticket")


def test_a_cheap_new_ticket_saves_no_old_one(state: State) -> None:
    """Of several the one with the highest stake is taken: that may be the one that was mined with."""
    first = state.live_ticket(account("miner"), MINER)
    assert first is not None
    richer = signed("miner", ticket(MINER, 500 * PAI), 3)
    cheaper = signed("miner", ticket(MINER, 100 * PAI), 5)
    state = after(state, signed("miner", Release(first), 2), richer)
    state = after(state, signed("miner", Release(richer.id), 4), cheaper)
    left = _shown(state, found_false())
    assert left.ticket(richer.id) is None
    assert left.live_ticket(account("miner"), MINER) == cheaper.id


def test_a_supervisor_that_mines_loses_its_ticket(state: State) -> None:
    """It has no miner's; somebody else is in office then, or nobody."""
    left = _shown(state, found_false("supervisor"))
    assert left.live_ticket(account("supervisor"), SUPERVISOR) is None
    assert left.committee_in_office is None


def test_a_member_loses_the_ticket_that_it_had_its_seat_by(state: State) -> None:
    """Not another one, which it took later."""
    old = state.live_ticket(account("supervisor"), SUPERVISOR)
    office = state.committee(0)
    assert old is not None
    assert office is not None
    draft = state.child()
    draft.put(committee_key(0), msgspec.structs.replace(office, tickets=(old,)))
    state = draft.seal()
    later = signed("supervisor", ticket(SUPERVISOR, 300 * PAI), 3)
    state = after(state, signed("supervisor", Release(old), 2), later)
    left = _shown(state, TWO_VOTES)
    assert left.ticket(old) is None
    assert left.live_ticket(account("supervisor"), SUPERVISOR) == later.id


def test_the_rest_is_an_open_tasks(state: State) -> None:
    """Of the one that was trained; it is in escrow with the reward."""
    ordered = signed("finder", order(), 1)
    state = after(state, ordered)
    left = _shown(state, found_false(task=ordered.id), 2)
    record = left.task(ordered.id)
    assert record is not None
    assert (record.slashed, record.escrow) == (80 * PAI, 135 * PAI)
    assert left.supply.issued == state.supply.issued == coins(left)
    [slash] = left.slashes()[account("miner")]
    assert slash.task == ordered.id


def test_a_cheat_with_an_order_of_its_own_gets_nothing_of_its_stake_back(state: State) -> None:
    """Neither for the work that it has certified there, nor as the client."""
    state = after(state, ordered := signed("finder", order(), 1))
    state = _shown(state, found_false(task=ordered.id), 2)
    close = closed(ordered.id, {account("miner"): 7})
    before = state = after(state, signed("supervisor", close, 2))
    for _ in range(GENESIS.parameters.result_blocks + 1):
        state = after(state)
    gains = {
        name: state.account(account(name)).balance - before.account(account(name)).balance
        for name in ("miner", "supervisor", "finder")
    }
    # The reward and the fee are 55, the stake's rest is 80; nobody else has worked, and nobody has evaluated.
    share = (55 + 80) * PAI // 5
    assert gains == {"miner": 0, "supervisor": share, "finder": 55 * PAI * 75 // 100}
    assert coins(state) == state.supply.issued


@pytest.mark.parametrize("shown", [found_false(finder="miner"), TWO_MESSAGES])
def test_who_finds_itself_is_not_paid_for_it(state: State, shown: _Shown) -> None:
    """All of its stake is gone."""
    left = _shown(state, shown, 2, by="miner")
    mined = left.account(account("miner")).balance
    assert mined == state.account(account("miner")).balance
    assert left.supply.issued == state.supply.issued - 100 * PAI == coins(left)


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (TwoMessages(message(), message()), "both say the same"),
        (TwoVotes(vote(), vote()), "both say the same"),
        (
            TwoVotes(
                vote(kind=PRECOMMIT, value=bytes(32), share=bytes(96)),
                vote(kind=PRECOMMIT, value=bytes(32), share=b"s" * 96),
            ),
            "both say the same",
        ),
        (TwoProposals(proposal(), proposal()), "both say the same"),
        (TwoMessages(message(), message(slot=10)), "different places"),
        (TwoMessages(message(), message(lane=1)), "different places"),
        (TwoMessages(message(), message("other")), "different places"),
        (TwoMessages(message(), message(previous=b"q" * 32)), "different places"),
        (TwoMessages(message(), message(task=GENESIS.filler_task(1))), "different places"),
        (TwoMessages(message(slot=0), message(slot=0, loss=1)), "slot 0"),
        (TwoMessages(message(), message(loss=1, by="other")), "not by its miner"),
        (TwoMessages(message(network=bytes(32)), message(network=bytes(32), loss=1)), "network"),
        (TwoVotes(vote(), vote(ballot=1, value=b"v" * 32)), "different places"),
        (TwoVotes(vote(), vote(turn=6)), "different places"),
        (TwoVotes(vote(), vote(kind=PRECOMMIT)), "different places"),
        (TwoVotes(vote(), vote(member=1)), "different places"),
        (TwoVotes(vote(network=bytes(32)), vote(network=bytes(32), value=bytes(32))), "network"),
        (TwoProposals(proposal(), proposal(ballot=1)), "different places"),
        (TwoProposals(proposal(), proposal(epoch=1)), "different places"),
    ],
)  # fmt: skip
def test_what_shows_nothing_is_its_senders_fault(shown: _Shown, why: str) -> None:
    """Before anything of the state is looked at."""
    with pytest.raises(InvalidTransaction, match=why) as caught:
        check_transaction(GENESIS, signed("finder", Evidence(shown)))
    assert caught.value.rule == "evidence"
    assert caught.value.is_fault


@pytest.mark.parametrize(
    ("shown", "rule"),
    [
        (TwoVotes(vote(), vote("other", value=bytes(32))), "evidence"),
        (TwoVotes(vote(member=1), vote(member=1, value=bytes(32))), "evidence"),
        (TwoVotes(vote(epoch=7), vote(epoch=7, value=bytes(32))), "evidence"),
        (TwoProposals(proposal("other"), proposal("other", count=1)), "evidence"),
        (found_false(group="other"), "committee"),
        (found_false(epoch=1), "committee"),
        (msgspec.structs.replace(found_false(), slot=10), "committee"),
        (msgspec.structs.replace(found_false(), finder=account("other")), "committee"),
        (msgspec.structs.replace(found_false(), signature=bytes(96)), "committee"),
        (found_false("nobody"), "ticket"),
        (TwoMessages(message("nobody"), message("nobody", loss=1)), "ticket"),
    ],
)
def test_what_the_state_does_not_bear_out_is_refused(
    state: State, shown: _Shown, rule: str
) -> None:
    """Signatures that are not whose they have to be, seats that nobody has, stakes that are not there."""
    _refused(state, shown, rule)


def test_a_finder_that_nobody_can_be_is_refused(state: State) -> None:
    """Its share would be lost."""
    blank = msgspec.structs.replace(found_false(), finder=b"\x02" + b"\xff" * 32)
    signature = group_key("group").sign(statement_digest(GENESIS.network, blank))
    _refused(state, msgspec.structs.replace(blank, signature=signature), "account")


def test_a_committee_that_left_long_ago_accuses_nobody(state: State) -> None:
    """The one before the present one may: it has just signed."""
    office = state.committee(0)
    assert office is not None
    draft = state.child()
    for epoch in (1, 2):
        draft.put(committee_key(epoch), Committee(epoch, office.members, office.group_key))
    assert state.office is not None
    draft.put(OFFICE, Office(2, state.office.ticket))
    state = draft.seal()
    _refused(state, found_false(), "committee")
    assert _shown(state, found_false(epoch=1)).live_ticket(account("miner"), MINER) is None
