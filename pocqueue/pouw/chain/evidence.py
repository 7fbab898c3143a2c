"""Rules of evidence: what shows that somebody broke the rules, and what that costs.

An offence is one slot of a lane, or one word of a member in one ballot. Each costs one ticket, once: its whole stake,
also while it is on its way back. A fifth is the finder's, the rest goes to the pot of the task that was harmed; if there
is none that is open, it is nobody's any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.records import (
    MINER,
    SUPERVISOR,
    SUPPLY,
    Slash,
    TicketRecord,
    live_key,
    slash_key,
    task_key,
    ticket_key,
    unbonding_key,
)
from pocqueue.pouw.chain.refusals import fault, refusal
from pocqueue.pouw.chain.reputation import FAULT, note
from pocqueue.pouw.chain.signatures import is_account, verify
from pocqueue.pouw.chain.state import Draft, State
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.evidence import Fault, TwoMessages, TwoProposals, TwoVotes
from pocqueue.pouw.wire.hashes import tagged
from pocqueue.pouw.wire.slots import Iteration
from pocqueue.pouw.wire.statements import statement_digest
from pocqueue.pouw.wire.transactions import Evidence, Transaction
from pocqueue.pouw.wire.votes import ProposalHead, Vote

#: Percent of a stake that its finder gets.
FINDER_SHARE = 20
#: What an offence adds to `Reputation.bad`, in hundredths.
BLAME = FAULT


class Offence(NamedTuple):
    """What was done: the same whoever finds it, and in whichever way."""

    account: bytes  #: whose it is
    digest: bytes  #: of what it was done in
    roles: tuple[int, ...]  #: of the ticket that it costs, the first that there is one of
    ticket: bytes | None = None  #: that ticket and no other
    task: bytes | None = None  #: that was harmed


def check_evidence(genesis: Genesis, evidence: Evidence) -> None:
    """Return if this may be evidence at some state of the chain.

    What is false twice is not looked for in words that a member of a committee has signed: whose they are, the state
    says. Of a miner's it is, after everything that costs nothing.

    Raises:
        InvalidTransaction: ``evidence``: it shows nothing, at whatever state.
    """
    found = evidence.fault
    if isinstance(found, Fault):
        return
    first, second = found.first, found.second
    if _place(first) != _place(second):
        raise fault("evidence", "they are of different places, and do not contradict each other.")
    if _content(first) == _content(second):
        raise fault("evidence", "both say the same, and nothing contradicts it.")
    if _network(first) != genesis.network:
        raise fault("evidence", f"it is of another network than {genesis.name}.")
    if isinstance(found, TwoMessages):
        _check_messages(found)


def punish(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Take a stake, and pay whoever has found that it is forfeit.

    Raises:
        InvalidTransaction: ``evidence``, ``committee`` or ``account``: it does not show what it says; ``offence``: it
            is paid for; ``ticket``: there is no stake to take.
    """
    body = transaction.body
    assert isinstance(body, Evidence)
    offence = offence_of(draft, body)
    key = slash_key(offence.account, offence.digest)
    if draft.get(key) is not None:
        raise refusal("offence", f"{offence.account.hex()} has paid for that already.")
    ticket = _forfeit(draft, offence)
    if ticket is None:
        raise refusal("ticket", f"{offence.account.hex()} has no stake for that any more.")
    if isinstance(body.fault, Fault):
        _check_office(draft, body.fault)
    _verify(genesis, draft, body.fault, offence.account)
    finder = body.fault.finder if isinstance(body.fault, Fault) else transaction.sender
    record = draft.ticket(ticket)
    assert record is not None, ticket.hex()
    _take(draft, ticket, record)
    # Who is caught gets nothing for finding itself; with another account it can, and loses four fifths.
    bounty = 0 if finder == offence.account else record.stake * FINDER_SHARE // 100
    draft.credit(finder, bounty)
    task = _give(draft, offence.task, record.stake - bounty)
    note(draft, offence.account, bad=BLAME)
    draft.put(
        key,
        Slash(
            ticket=ticket,
            role=record.role,
            stake=record.stake,
            finder=finder,
            bounty=bounty,
            task=task,
            height=draft.clock.height,
            transaction=transaction.id,
        ),
    )


def verify_again(genesis: Genesis, state: State | Draft, evidence: Evidence) -> None:
    """Return if evidence shows what it did when a block took it, whoever is in office now.

    Raises:
        InvalidTransaction: as `check_evidence` and `punish`.
    """
    check_evidence(genesis, evidence)
    _verify(genesis, state, evidence.fault, offence_of(state, evidence).account)


def is_due(state: State | Draft, evidence: Evidence) -> bool:
    """Say whether what this is evidence of is not paid for yet, and there is a stake to pay it with.

    Signatures are not looked at.
    """
    try:
        offence = offence_of(state, evidence)
    except InvalidTransaction:
        return False
    is_paid = state.get(slash_key(offence.account, offence.digest)) is not None
    return not is_paid and _forfeit(state, offence) is not None


def offence_of(state: State | Draft, evidence: Evidence) -> Offence:
    """Return what evidence is of; whether it shows that is not looked at.

    Raises:
        InvalidTransaction: ``evidence``: nobody had that seat in a committee.
    """
    match evidence.fault:
        case Fault(task=task, slot=slot, miner=miner, lane=lane):
            return _of_lane(miner, task, slot, lane)
        case TwoMessages(first=first):
            return _of_lane(first.miner, first.task, first.slot, first.lane)
        case TwoVotes(first=vote):
            return _of_member(state, vote.epoch, vote.member, _place(vote))
        case TwoProposals(first=head):
            return _of_member(state, head.certificate.epoch, head.member, _place(head))


def _of_lane(miner: bytes, task: bytes, slot: int, lane: int) -> Offence:
    # A false message and a second one of the same slot are one offence.
    digest = tagged("offence", encode(("lane", task, slot, lane)))
    return Offence(miner, digest, (MINER, SUPERVISOR), task=task)


def _of_member(state: State | Draft, epoch: int, member: int, place: tuple[object, ...]) -> Offence:
    committee = state.committee(epoch)
    if committee is None or member >= len(committee.members):
        raise refusal("evidence", f"epoch {epoch} has no member {member}.")
    ticket = committee.tickets[member] if committee.tickets else None
    digest = tagged("offence", encode(place))
    return Offence(committee.members[member], digest, (SUPERVISOR,), ticket)


def _place(word: Iteration | Vote | ProposalHead) -> tuple[object, ...]:
    """Return where somebody may say one thing only."""
    match word:
        case Iteration():
            # A lane may begin slot 0 anew on another branch, before anything is final: only what follows one and
            # the same certificate cannot both be honest.
            return ("message", word.network, word.task, word.slot, *word.order, word.previous)
        case Vote():
            place = (word.network, word.epoch, word.turn, word.ballot, word.kind, word.member)
            return ("vote", *place)
        case ProposalHead(certificate=one):
            return ("proposal", one.network, one.epoch, one.turn, one.ballot, word.member)


def _content(word: Iteration | Vote | ProposalHead) -> bytes | None:
    """Return what was said there."""
    # A vote's share follows from its value: one that is wrong contradicts nothing.
    return word.value if isinstance(word, Vote) else word.id


def _network(word: Iteration | Vote | ProposalHead) -> bytes:
    return word.certificate.network if isinstance(word, ProposalHead) else word.network


def _check_messages(found: TwoMessages) -> None:
    if not found.first.slot:
        raise fault("evidence", "a lane may begin slot 0 anew on another branch of the chain.")
    for one in (found.first, found.second):
        if not verify(one.miner, one.id, one.signature):
            raise fault("evidence", f"a message is not by its miner {one.miner.hex()}.")


def _verify(
    genesis: Genesis,
    state: State | Draft,
    found: Fault | TwoMessages | TwoVotes | TwoProposals,
    culprit: bytes,
) -> None:
    """Return if signatures are whose they have to be. Last, as it costs most."""
    if isinstance(found, Fault):
        _verify_fault(genesis, state, found)
    elif not isinstance(found, TwoMessages):
        for word in (found.first, found.second):
            if not verify(culprit, word.id, word.signature):
                raise refusal("evidence", f"it is not signed by {culprit.hex()}.")


def _check_office(draft: Draft, found: Fault) -> None:
    office = draft.office
    # Those who left long ago have nothing to lose by what they sign.
    if office is None or not office.epoch - 1 <= found.epoch <= office.epoch:
        raise refusal("committee", f"epoch {found.epoch} is over, or has not begun.")


def _verify_fault(genesis: Genesis, state: State | Draft, found: Fault) -> None:
    committee, digest = state.committee(found.epoch), statement_digest(genesis.network, found)
    if committee is None or not bls.verify(committee.group_key, digest, found.signature):
        raise refusal("committee", f"the signature is not that of epoch {found.epoch}'s.")
    if not is_account(found.finder):
        raise refusal("account", f"{found.finder.hex()} is no account: nobody can have its key.")


def _forfeit(state: State | Draft, offence: Offence) -> bytes | None:
    """Return the ticket that an offence costs; None: there is none."""
    if offence.ticket is not None:
        return offence.ticket if state.ticket(offence.ticket) else None
    for role in offence.roles:
        owned = {ticket: stake for ticket, stake in _tickets(state, offence.account, role)}
        if owned:
            # Not the newest one: whoever is about to be caught could have taken that for little.
            return min(owned, key=lambda ticket: (-owned[ticket], ticket))
    return None


def _tickets(state: State | Draft, account: bytes, role: int) -> Iterator[tuple[bytes, int]]:
    """Yield an account's tickets of a role with their stakes: the live one, and those on their way back."""
    live = state.live_ticket(account, role)
    leaving = [key[-32:] for key, _ in state.scan(unbonding_key(0)[:1])]
    for ticket in [*([live] if live else []), *leaving]:
        record = state.ticket(ticket)
        if record is not None and (record.account, record.role) == (account, role):
            yield ticket, record.stake


def _take(draft: Draft, ticket: bytes, record: TicketRecord) -> None:
    draft.put(ticket_key(ticket), None)
    if record.free_at is None:
        draft.put(live_key(record.role, record.account), None)
    else:
        draft.put(unbonding_key(record.free_at, ticket), None)


def _give(draft: Draft, task: bytes | None, amount: int) -> bytes | None:
    """Put an amount into the pot of an open client's task, or out of the world; return which task it is."""
    record = None if task is None else draft.task(task)
    if task is None or record is None or record.outcome is not None:
        supply = draft.supply
        draft.put(SUPPLY, msgspec.structs.replace(supply, issued=supply.issued - amount))
        return None
    draft.put(task_key(task), msgspec.structs.replace(record, slashed=record.slashed + amount))
    return task
