"""Rules of tickets: stakes for roles, and how they become free again."""

from __future__ import annotations

import re

import msgspec

from pocqueue.pouw.chain.amounts import PAI, text
from pocqueue.pouw.chain.genesis import Genesis, Parameters
from pocqueue.pouw.chain.records import (
    MINER,
    SUPERVISOR,
    TicketRecord,
    live_key,
    ticket_key,
    unbonding_key,
)
from pocqueue.pouw.chain.refusals import fault, refusal
from pocqueue.pouw.chain.state import Draft, State
from pocqueue.pouw.committee.sealing import is_seal_key
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.transactions import ROLES, Release, TakeTicket, Transaction

#: A stake gives a lane for each so many PAI, one at least and MAX_LANES at most.
LANE_STAKE = 100 * PAI
MAX_LANES = 16
#: Without a block for so many times what one takes the miners are taken for gone.
_STALE_BLOCKS = 30

_ADDRESS = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,249}:([1-9][0-9]{0,4})")


def num_lanes(stake: int) -> int:
    """Return how many lanes a stake (µPAI) gives; they are numbered from 0."""
    return min(max(stake // LANE_STAKE, 1), MAX_LANES)


def is_founding_allowed(parameters: Parameters, state: State | Draft, time_ms: int) -> bool:
    """Say whether a founding block of this time may follow.

    Nobody is in office, or nobody has a miner's ticket; or those that have one are gone, by the time without a block.
    """
    is_stale = time_ms - state.clock.time_ms > _STALE_BLOCKS * parameters.block_ms
    return is_stale or state.committee_in_office is None or not state.has_live(MINER)


def check_ticket(parameters: Parameters, account: bytes, ticket: TakeTicket) -> None:
    """Return if an account could take this ticket.

    Its preferences are bytes here, and whoever reads them parses them: what a parser gives up on depends on its
    version and on its caller's stack, and all nodes have to say the same.

    Raises:
        InvalidTransaction: none could.
    """
    if ticket.role >= len(parameters.minimum_stakes):
        raise fault("role", f"there is no ticket of role {ticket.role}.")
    role, least = ROLES[ticket.role], parameters.minimum_stakes[ticket.role]
    if ticket.stake < least:
        raise fault("stake", f"{text(ticket.stake)}; allowed for a {role}: at least {text(least)}.")
    address = _ADDRESS.fullmatch(ticket.address)
    if ticket.address and not (address and int(address[1]) < 65536):
        raise fault("address", f"{ticket.address!r}; allowed: host:port, or nothing.")
    has_key = ticket.group_key is not None or ticket.possession is not None
    # Anybody may have one: a miner's seeds the noise of private tasks.
    if (has_key or ticket.role == SUPERVISOR) and not (
        ticket.group_key
        and ticket.possession
        and bls.verify_possession(ticket.group_key, account, ticket.possession)
    ):
        raise fault(
            "group-key",
            f"a {role}'s ticket has no BLS key with its account's proof of the secret.",
        )
    if ticket.role != SUPERVISOR:
        if ticket.seal_key:
            raise fault("seal-key", f"a {role} has none; only a supervisor has.")
        return
    if ticket.seal_key is None or not is_seal_key(ticket.seal_key):
        raise fault("seal-key", "a supervisor's ticket has no X25519 key that gives a secret.")


def take_ticket(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Give the sender a live ticket; its stake is part of what the transaction takes from the balance."""
    body = transaction.body
    assert isinstance(body, TakeTicket)
    live = draft.live_ticket(transaction.sender, body.role)
    if live is not None:
        raise refusal(
            "ticket",
            f"its sender is a {ROLES[body.role]} with {live.hex()} already; give that back first.",
        )
    draft.put(
        ticket_key(transaction.id),
        TicketRecord(
            account=transaction.sender,
            role=body.role,
            stake=body.stake,
            preferences=body.preferences,
            address=body.address,
            group_key=body.group_key,
            height=draft.clock.height,
            seal_key=body.seal_key,
        ),
    )
    draft.put(live_key(body.role, transaction.sender), transaction.id)


def release_ticket(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """End a ticket of the sender; its stake is free some blocks later."""
    assert isinstance(transaction.body, Release)
    ticket = transaction.body.ticket
    record = draft.ticket(ticket)
    if record is None or record.account != transaction.sender or record.free_at is not None:
        raise refusal("ticket", f"{ticket.hex()} is no live ticket of its sender.")
    free_at = draft.clock.height + genesis.parameters.unbonding_blocks
    draft.put(ticket_key(ticket), msgspec.structs.replace(record, free_at=free_at))
    draft.put(live_key(record.role, record.account), None)
    draft.put(unbonding_key(free_at, ticket), b"")


def free_stakes(parameters: Parameters, draft: Draft, height: int) -> None:
    """Give back the stakes that are free at this height; those of members in office are put off.

    A member stays in office without a live ticket, and what it says there has to be able to cost it something.
    """
    office = draft.committee_in_office
    for key, _ in draft.scan(unbonding_key(height)):
        ticket = key[-32:]
        record = draft.ticket(ticket)
        assert record is not None, ticket.hex()
        if office is not None and ticket in office.tickets:
            put_off(draft, ticket, height + parameters.unbonding_blocks)
            continue
        draft.credit(record.account, record.stake)
        draft.put(ticket_key(ticket), None)
        draft.put(key, None)


def put_off(draft: Draft, ticket: bytes, height: int) -> None:
    """Let a stake that is on its way back be free at a height, if it would be earlier."""
    record = draft.ticket(ticket)
    if record is None or record.free_at is None or record.free_at >= height:
        return
    draft.put(unbonding_key(record.free_at, ticket), None)
    draft.put(unbonding_key(height, ticket), b"")
    draft.put(ticket_key(ticket), msgspec.structs.replace(record, free_at=height))
