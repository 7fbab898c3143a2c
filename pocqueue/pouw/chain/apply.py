"""What transactions and blocks do to the state, and which are good.

A transaction is checked by itself first (`check_transaction`), then against the state. One that is refused has
changed nothing. A block is three steps, so that whoever makes one and whoever checks one do the same:
`begin_block`, its transactions, `end_block`. No coin comes or goes but in `_faucet` and in the subsidy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from pocqueue.pouw.chain import closing, escrow, evidence, office, tickets
from pocqueue.pouw.chain.amounts import text
from pocqueue.pouw.chain.difficulty import next_clock
from pocqueue.pouw.chain.genesis import Genesis, Parameters
from pocqueue.pouw.chain.records import CLOCK, SUPPLY, account_key
from pocqueue.pouw.chain.refusals import fault, refusal
from pocqueue.pouw.chain.signatures import is_account, verify
from pocqueue.pouw.chain.state import Draft
from pocqueue.pouw.wire.blocks import Header
from pocqueue.pouw.wire.transactions import (
    MAX_TRANSACTION_BYTES,
    Answer,
    Close,
    Complaint,
    Confirm,
    Deal,
    Evidence,
    Faucet,
    OrderTask,
    Release,
    Result,
    Reveal,
    TakeTicket,
    Transaction,
    Transfer,
)

#: Percent of a subsidy; the rest is the pool's.
MINER_SHARE, COMMITTEE_SHARE = 80, 15


def check_transaction(genesis: Genesis, transaction: Transaction) -> None:
    """Return if some state of the chain could take this transaction: its envelope first, then its body.

    Raises:
        InvalidTransaction: none could; ``is_fault`` is True.
    """
    if transaction.size > MAX_TRANSACTION_BYTES:
        raise fault(
            "size", f"it has {transaction.size:,} bytes; allowed: {MAX_TRANSACTION_BYTES:,}."
        )
    if transaction.network != genesis.network:
        raise fault("network", f"it is for {transaction.network.hex()}, this is {genesis.name}.")
    is_free = isinstance(transaction.body, Faucet | office.Step)
    least = 0 if is_free else least_fee(genesis.parameters, transaction.size)
    if transaction.fee < least:
        raise fault(
            "fee",
            f"{text(transaction.fee)}; allowed for its {transaction.size:,} bytes: at least {text(least)}.",
        )
    if not verify(transaction.sender, transaction.id, transaction.signature):
        raise fault("signature", f"it is not that of {transaction.sender.hex()} for this content.")
    match transaction.body:
        case Transfer() as transfer:
            _check_transfer(transfer)
        case TakeTicket() as ticket:
            tickets.check_ticket(genesis.parameters, transaction.sender, ticket)
        case OrderTask() as order:
            escrow.check_order(genesis.parameters, order)
        case Close() as close:
            closing.check_close(close)
        case Result() as result:
            closing.check_result(result)
        case Evidence() as shown:
            evidence.check_evidence(genesis, shown)
        case Deal() as deal:
            office.check_deal(deal)
        case Faucet() if not genesis.parameters.faucet:
            raise fault("faucet", f"the network {genesis.name} has none.")
        case Release() | Faucet() | Reveal() | Complaint() | Answer() | Confirm():
            pass


def least_fee(parameters: Parameters, size: int) -> int:
    """Return what a transaction of so many bytes pays whoever mines it, at least, in µPAI.

    What the faucet gives is free, and what candidates say of the key in the making.
    """
    return parameters.fee + parameters.fee_per_kib * size // 1024


def spent(transaction: Transaction) -> int:
    """Return what a transaction takes from its sender's balance, in µPAI."""
    match transaction.body:
        case Transfer(amount=amount):
            return transaction.fee + amount
        case TakeTicket(stake=stake):
            return transaction.fee + stake
        case OrderTask(reward=reward, training_fee=training_fee):
            return transaction.fee + reward + training_fee
        case _:
            return transaction.fee


def income(genesis: Genesis, transaction: Transaction) -> int:
    """Return what a transaction brings its sender before it is paid for, in µPAI."""
    return genesis.parameters.faucet if isinstance(transaction.body, Faucet) else 0


def apply_transaction(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Do to the draft what a transaction orders.

    Args:
        draft: of a block that was begun; as it was if this raises.

    Raises:
        InvalidTransaction: it breaks a rule, or cannot be paid for.
    """
    check_transaction(genesis, transaction)
    account = draft.account(transaction.sender)
    if transaction.sequence != account.sequence:
        raise refusal(
            "sequence",
            f"it is number {transaction.sequence} of its sender, whose next one is {account.sequence}.",
        )
    cost, owned = spent(transaction), account.balance + income(genesis, transaction)
    if cost > owned:
        raise refusal("balance", f"it takes {text(cost)}, its sender has {text(owned)}.")
    _EFFECTS[type(transaction.body)](genesis, draft, transaction)
    # Read again: the effect may have given the sender something.
    account = draft.account(transaction.sender)
    draft.put(
        account_key(transaction.sender),
        msgspec.structs.replace(
            account, balance=account.balance - cost, sequence=account.sequence + 1
        ),
    )


def apply_block(
    genesis: Genesis,
    draft: Draft,
    header: Header,
    transactions: Sequence[Transaction],
    *,
    is_founding: bool,
) -> None:
    """Do to the draft of its parent's state what a block does.

    Raises:
        InvalidTransaction: one of its transactions is not good there.
    """
    begin_block(genesis, draft, header.time_ms, is_founding=is_founding)
    for transaction in transactions:
        apply_transaction(genesis, draft, transaction)
    end_block(genesis, draft, header.miner, transactions, is_founding=is_founding)


def begin_block(genesis: Genesis, draft: Draft, time_ms: int, *, is_founding: bool) -> None:
    """Do what is due at the height and time of a block on the draft's parent."""
    clock = next_clock(genesis.parameters, draft.clock, time_ms, is_founding=is_founding)
    draft.put(CLOCK, clock)
    closing.pay_due(draft, clock.height)
    closing.refund_late(genesis.parameters, draft, clock.time_ms)
    tickets.free_stakes(genesis.parameters, draft, clock.height)


def end_block(
    genesis: Genesis,
    draft: Draft,
    miner: bytes,
    transactions: Sequence[Transaction],
    *,
    is_founding: bool,
) -> None:
    """Pay for a block after its transactions, and say who is in office after it."""
    draft.credit(miner, sum(transaction.fee for transaction in transactions))
    if not is_founding:
        _subsidise(genesis, draft, miner)
    office.fill_office(genesis, draft)


def _subsidise(genesis: Genesis, draft: Draft, miner: bytes) -> None:
    parameters, supply = genesis.parameters, draft.supply
    subsidy = parameters.subsidy >> (draft.clock.height // parameters.halving_blocks)
    mined = subsidy * MINER_SHARE // 100
    draft.credit(miner, mined)
    shared = draft.share(draft.members, subsidy * COMMITTEE_SHARE // 100)
    draft.put(
        SUPPLY,
        msgspec.structs.replace(
            supply, issued=supply.issued + subsidy, pool=supply.pool + subsidy - mined - shared
        ),
    )


def _check_transfer(transfer: Transfer) -> None:
    if not transfer.amount:
        raise fault("amount", "a transfer of nothing; allowed: at least 0.000001 PAI.")
    if not is_account(transfer.to):
        raise fault("account", f"{transfer.to.hex()} is no account: nobody can have its key.")


def _transfer(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    assert isinstance(transaction.body, Transfer)
    draft.credit(transaction.body.to, transaction.body.amount)


def _faucet(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    account, supply = draft.account(transaction.sender), draft.supply
    if account.has_faucet:
        raise refusal("faucet", f"{transaction.sender.hex()} has taken from it already.")
    given = genesis.parameters.faucet
    draft.put(
        account_key(transaction.sender),
        msgspec.structs.replace(account, balance=account.balance + given, has_faucet=True),
    )
    draft.put(SUPPLY, msgspec.structs.replace(supply, issued=supply.issued + given))


#: What each kind of body does beside what it costs: it raises before it changes anything, or not at all.
_EFFECTS: dict[type, Callable[[Genesis, Draft, Transaction], None]] = {
    Transfer: _transfer,
    TakeTicket: tickets.take_ticket,
    Release: tickets.release_ticket,
    OrderTask: escrow.open_task,
    Close: closing.close_task,
    Reveal: closing.reveal,
    Result: closing.give_result,
    Faucet: _faucet,
    Evidence: evidence.punish,
    Deal: office.take_deal,
    Complaint: office.take_complaint,
    Answer: office.take_answer,
    Confirm: office.take_confirm,
}
