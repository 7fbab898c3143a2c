"""Who is in office: rules of committees, of how one follows on another, and of the making of their keys.

Every `epoch_blocks` heights the 16 supervisors with the highest stakes are chosen, if they are four or more. If they
are others than those that the committee in office was chosen from, a key generation begins at that height B:

    B + 1 … B + 4    DEAL: each candidate commits itself to a polynomial, and seals each candidate's share of it
    B + 5, B + 6     COMPLAINT: a candidate says that a share is not the one that was committed to
    B + 7, B + 8     ANSWER: the dealer shows that share
    B + 5 … B + 8    CONFIRM: a candidate says that all its shares are good, or complained about
    after B + 8      who has not dealt, answered or confirmed is out, so that each member has its share. It begins anew
                     with the others then, if enough are left; else the old committee stays
    after B + 10     all candidates are in office; their key is the sum of all that they have dealt

A committee of several is followed by one of several alone: two or three would stand by nobody's fault, and one is
one. Its members stay until then, whatever becomes of their tickets. While there were never four, the supervisor with
the highest stake is in office alone, with the key of its ticket. A network whose genesis lists supervisors begins with
all of these, and with nobody before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.records import (
    OFFICE,
    SUPERVISOR,
    Candidate,
    Committee,
    KeyGeneration,
    Office,
    committee_key,
    complaint_key,
    confirmed_key,
    deal_key,
    generation_key,
)
from pocqueue.pouw.chain.refusals import fault, refusal
from pocqueue.pouw.chain.state import Draft, State
from pocqueue.pouw.chain.tickets import put_off
from pocqueue.pouw.committee.dealing import are_commitments, is_share, sum_of
from pocqueue.pouw.committee.quorum import quorum
from pocqueue.pouw.committee.sealing import SEALED_BYTES
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.transactions import (
    MAX_MEMBERS,
    Answer,
    Complaint,
    Confirm,
    Deal,
    Transaction,
)

#: Fewer than four tolerate nobody's fault.
MIN_MEMBERS = 4
#: Blocks in which each step's transactions are taken, one step after the other, and those before the office changes.
DEAL_BLOCKS, COMPLAINT_BLOCKS, ANSWER_BLOCKS, REST_BLOCKS = 4, 2, 2, 2
#: A committee still certifies blocks of so many heights after its successor has come into office: until all have heard
#: of that, and it is final.
HANDOVER_BLOCKS = 8
#: A transaction of a key generation that begins later than so many blocks from now is nobody's.
_MAX_AHEAD = 8

#: What is free for candidates, who may have staked all that they have.
Step = Deal | Complaint | Answer | Confirm
_LAST_STEP = DEAL_BLOCKS + COMPLAINT_BLOCKS + ANSWER_BLOCKS
#: The first and the last block of each step, from the one that began the generation.
_STEPS: dict[type[Step], tuple[int, int]] = {
    Deal: (1, DEAL_BLOCKS),
    Complaint: (DEAL_BLOCKS + 1, DEAL_BLOCKS + COMPLAINT_BLOCKS),
    Answer: (DEAL_BLOCKS + COMPLAINT_BLOCKS + 1, _LAST_STEP),
    Confirm: (DEAL_BLOCKS + 1, _LAST_STEP),
}


def is_founder(genesis: Genesis, state: State, account: bytes) -> bool:
    """Say whether an account may make founding blocks where such may be made: before the first committee those that
    the genesis lists, if it lists any, else every supervisor.
    """
    if state.office is None and genesis.supervisors:
        return account in genesis.supervisors
    return True


def due_step(generation: KeyGeneration, height: int) -> type[Step] | None:
    """Return which transactions of a key generation the block of a height takes, beside `Confirm`; None: none."""
    past = height - generation.height
    return next((step for step, (first, last) in _STEPS.items() if first <= past <= last), None)


def is_over(step: Step, height: int) -> bool:
    """Say whether no block of this height or above takes a transaction, on whichever branch."""
    return height > _begun(step) + _STEPS[type(step)][1]


def check_sender(state: State, transaction: Transaction) -> None:
    """Return if a transaction of a key generation is worth keeping: it costs its sender nothing.

    Raises:
        InvalidTransaction: its sender has nothing to say, or its time is over or far ahead.
    """
    step, height = transaction.body, state.clock.height + 1
    assert isinstance(step, Step)
    if state.live_ticket(transaction.sender, SUPERVISOR) is None and (
        state.generation is None or state.generation.place(transaction.sender) is None
    ):
        raise refusal("candidate", f"{transaction.sender.hex()} is no supervisor.")
    if is_over(step, height) or _begun(step) > height + _MAX_AHEAD:
        raise refusal("step", f"it is of a key generation of height {_begun(step)}.")


def check_deal(deal: Deal) -> None:
    """Return if some key generation could take what a candidate deals.

    Raises:
        InvalidTransaction: none could.
    """
    num_shares = len(deal.shares)
    if num_shares < MIN_MEMBERS or len(deal.commitments) != quorum(num_shares):
        raise fault(
            "deal",
            f"{len(deal.commitments)} commitments and {num_shares} shares; allowed: {MIN_MEMBERS} shares or more, and "
            "a commitment for each that makes a signature.",
        )
    if sorted(map(len, deal.shares)) != [0, *[SEALED_BYTES] * (num_shares - 1)]:
        raise fault(
            "deal", f"its shares have not {SEALED_BYTES} bytes each, the dealer's own none."
        )
    if not _are_commitments(deal.commitments, num_shares):
        raise fault("deal", "its commitments are no public keys, or promise a share that has none.")


def take_deal(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Keep what a candidate deals."""
    deal = transaction.body
    assert isinstance(deal, Deal)
    generation, place = _step(draft, transaction, deal)
    if len(deal.shares) != len(generation.candidates) or deal.shares[place]:
        raise refusal("deal", f"its shares are not those of {len(generation.candidates)} others.")
    key = deal_key(generation.epoch, place)
    if draft.get(key) is not None:
        raise refusal("deal", "its sender has dealt already.")
    draft.put(key, deal)


def take_complaint(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Keep what a candidate says of a dealer."""
    complaint = transaction.body
    assert isinstance(complaint, Complaint)
    generation, place = _step(draft, transaction, complaint)
    dealer = complaint.dealer
    if dealer == place or draft.get(deal_key(generation.epoch, dealer)) is None:
        raise refusal("complaint", f"candidate {dealer} has dealt nothing to its sender.")
    key = complaint_key(generation.epoch, dealer, place)
    if draft.get(key) is not None:
        raise refusal("complaint", f"its sender has complained about candidate {dealer} already.")
    draft.put(key, b"")


def take_answer(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Keep the share that a dealer shows."""
    answer = transaction.body
    assert isinstance(answer, Answer)
    generation, place = _step(draft, transaction, answer)
    key = complaint_key(generation.epoch, place, answer.candidate)
    if draft.get(key) != b"":
        raise refusal("answer", f"candidate {answer.candidate} waits for none of its sender.")
    commitments = draft.deals(generation.epoch)[place].commitments
    if not is_share(commitments, answer.candidate + 1, answer.share):
        raise refusal("answer", "it is not the share that its sender has committed itself to.")
    draft.put(key, answer)


def take_confirm(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Keep that a candidate has its shares."""
    confirm = transaction.body
    assert isinstance(confirm, Confirm)
    generation, place = _step(draft, transaction, confirm)
    key = confirmed_key(generation.epoch, place)
    if draft.get(key) is not None:
        raise refusal("confirm", "its sender has confirmed its shares already.")
    draft.put(key, b"")


def qualified(state: State | Draft, generation: KeyGeneration) -> list[int]:
    """Return the places of the candidates that have dealt and have confirmed, and that no complaint stands against."""
    complaints = state.complaints(generation.epoch)
    out = {dealer for (dealer, _), answer in complaints.items() if answer is None}
    confirmed = state.confirmed(generation.epoch) - out
    return [place for place in state.deals(generation.epoch) if place in confirmed]


def fill_office(genesis: Genesis, draft: Draft) -> None:
    """Say who is in office after a block, and go on with the making of the next committee."""
    generation = draft.generation
    if generation is not None:
        past = draft.clock.height - generation.height
        if past == _LAST_STEP:
            _judge(draft, generation)
        elif past == _LAST_STEP + REST_BLOCKS:
            _hand_over(genesis, draft, generation)
    if not (genesis.supervisors or _are_several(draft)):
        _pass_on(draft)
    if draft.generation is None:
        chosen = _due(genesis, draft)
        if chosen:
            _begin(draft, chosen, tuple(one.ticket for one in chosen))


def choose(state: State | Draft) -> list[Candidate]:
    """Return the 16 supervisors with the highest stakes, ascending by account; equal ones by the smaller ticket."""
    supervisors = state.live_tickets(SUPERVISOR)
    ranked = sorted(supervisors, key=lambda ticket: (-supervisors[ticket].stake, ticket))
    return _candidates(state, ranked[:MAX_MEMBERS])


def _due(genesis: Genesis, draft: Draft) -> list[Candidate]:
    """Return of whom a committee is to be made now; of nobody: there is no reason to."""
    office = draft.office
    if office is None and genesis.supervisors:
        tickets = [draft.live_ticket(account, SUPERVISOR) for account in genesis.supervisors]
        return _candidates(draft, [t for t in tickets if t]) if all(tickets) else []
    if office is None or draft.clock.height % genesis.parameters.epoch_blocks:
        return []
    chosen, committee = choose(draft), draft.committee(office.epoch)
    assert committee is not None, office.epoch
    is_same = {one.ticket for one in chosen} == {*committee.chosen}
    return [] if is_same or len(chosen) < MIN_MEMBERS else chosen


def _candidates(state: State | Draft, tickets: Iterable[bytes]) -> list[Candidate]:
    found = []
    for ticket in tickets:
        record = state.ticket(ticket)
        assert record is not None, ticket.hex()
        assert record.seal_key is not None, ticket.hex()
        found.append(Candidate(record.account, ticket, record.seal_key))
    return sorted(found, key=lambda candidate: candidate.account)


def _begin(draft: Draft, candidates: list[Candidate], chosen: tuple[bytes, ...]) -> None:
    epoch = draft.next_epoch
    draft.put(
        generation_key(epoch),
        KeyGeneration(
            epoch=epoch,
            height=draft.clock.height,
            candidates=tuple(candidates),
            threshold=quorum(len(candidates)),
            chosen=chosen,
        ),
    )


def _judge(draft: Draft, generation: KeyGeneration) -> None:
    """Go on after the last answers: with all candidates, or anew with those that are left.

    Not with fewer dealers than candidates: the key would need as many shares as if all were there.
    """
    places = qualified(draft, generation)
    if len(places) == len(generation.candidates):
        return
    _forget(draft, generation.epoch)
    if len(places) >= max(generation.threshold, MIN_MEMBERS):
        _begin(draft, [generation.candidates[place] for place in places], generation.chosen)


def _hand_over(genesis: Genesis, draft: Draft, generation: KeyGeneration) -> None:
    """Put a committee in office whose key is made. Stakes of members that leave are not free at once."""
    deals = draft.deals(generation.epoch)
    numbers = range(1, len(generation.candidates) + 1)
    try:
        commitments = sum_of([deals[number - 1] for number in numbers])
        shares = tuple(bls.value_at(commitments, number) for number in numbers)
    except (
        SlotError
    ):  # somebody has made his part of the others': it needs those that know better to be away
        _forget(draft, generation.epoch)
        return
    if draft.office is not None:
        _forget(draft, draft.office.epoch)
    leaving = draft.committee_in_office
    for ticket in leaving.tickets if leaving else ():
        put_off(draft, ticket, draft.clock.height + genesis.parameters.unbonding_blocks)
    tickets = tuple(candidate.ticket for candidate in generation.candidates)
    committee = Committee(
        epoch=generation.epoch,
        members=tuple(candidate.account for candidate in generation.candidates),
        group_key=commitments[0],
        numbers=tuple(numbers),
        shares=shares,
        threshold=generation.threshold,
        tickets=tickets,
        chosen=generation.chosen,
    )
    draft.put(committee_key(generation.epoch), committee)
    _enter(draft, generation.epoch, tickets[0])


def _pass_on(draft: Draft) -> None:
    """Begin an epoch if the one supervisor in office has left, with the one that has the highest stake.

    Ties: the smaller id of the ticket. With no supervisor left nobody is in office. A committee in the making comes too
    late then: its epoch is another one's.
    """
    office = draft.office
    if office and office.ticket and _is_live(draft, office.ticket):
        return
    supervisors = draft.live_tickets(SUPERVISOR)
    if supervisors:
        ticket = min(supervisors, key=lambda ticket: (-supervisors[ticket].stake, ticket))
        record, epoch = supervisors[ticket], draft.next_epoch
        assert record.group_key is not None, ticket.hex()
        _forget(draft, epoch)
        draft.put(committee_key(epoch), Committee(epoch, (record.account,), record.group_key))
        _enter(draft, epoch, ticket)
    elif office and office.ticket:
        draft.put(OFFICE, Office(office.epoch, None, draft.clock.height))


def _enter(draft: Draft, epoch: int, ticket: bytes) -> None:
    """Put an epoch's committee in office. If nobody was, it certifies from where nobody was on."""
    office, height = draft.office, draft.clock.height
    if office is None or office.ticket is None:
        height = office.height if office else 0
    draft.put(OFFICE, Office(epoch, ticket, height))


def _forget(draft: Draft, epoch: int) -> None:
    """Forget how a committee was made, or was to be made."""
    if draft.generation_of(epoch) is None:
        return
    for prefix in (deal_key(epoch), complaint_key(epoch), confirmed_key(epoch)):
        for key, _ in draft.scan(prefix):
            draft.put(key, None)
    draft.put(generation_key(epoch), None)


def _step(draft: Draft, transaction: Transaction, step: Step) -> tuple[KeyGeneration, int]:
    """Return the key generation that a transaction is of, and its sender's place there, if it is due.

    Raises:
        InvalidTransaction: it is not; ``early``: a later block may take it.
    """
    generation, height = draft.generation, draft.clock.height
    first, last = _STEPS[type(step)]
    past = height - _begun(step)
    if past < first:
        raise refusal("early", f"it is due in block {_begun(step) + first}, this is {height}.")
    if generation is None or step.generation != generation.id:
        raise refusal("generation", f"there is no key generation {step.generation.hex()}.")
    if past > last:
        raise refusal("step", f"it was due up to block {_begun(step) + last}, this is {height}.")
    place = generation.place(transaction.sender)
    if place is None:
        raise refusal("candidate", f"{transaction.sender.hex()} is no candidate.")
    return generation, place


def _begun(step: Step) -> int:
    """Return the height at which a transaction's key generation began, as it says itself."""
    return int.from_bytes(step.generation[:8])


def _are_several(draft: Draft) -> bool:
    committee = draft.committee_in_office
    return committee is not None and len(committee.members) > 1


def _is_live(draft: Draft, ticket: bytes) -> bool:
    record = draft.ticket(ticket)
    return record is not None and record.free_at is None


@functools.lru_cache(maxsize=64)  # in the mempool, in candidates, in blocks
def _are_commitments(commitments: tuple[bytes, ...], num_candidates: int) -> bool:
    return are_commitments(commitments, num_candidates)
