"""What tests of the network of useful work are made of: keys, a genesis, signed transactions."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import msgspec

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.apply import apply_transaction, begin_block, end_block
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.records import MINER, SUPERVISOR
from pocqueue.pouw.chain.signatures import account_of, sign_transaction
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.chain.tasks import parse_requirements
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.slots import Certificate, SignedCertificate, beacon_digest
from pocqueue.pouw.wire.statements import UNSIGNED, statement_digest
from pocqueue.pouw.wire.transactions import (
    Body,
    Close,
    Faucet,
    OrderTask,
    TakeTicket,
    Transaction,
    Transfer,
)

#: The network as it is built in.
DEV = Genesis.dev()
#: The same where nothing costs a fee, so that a test of something else need not reckon with it.
GENESIS = msgspec.structs.replace(
    DEV, parameters=msgspec.structs.replace(DEV.parameters, fee=0, fee_per_kib=0, lap_fee=0)
)
DAY_MS = 86_400_000


@functools.cache
def key(name: str) -> SigningKey:
    """Return a key that is this name's for the whole run."""
    return SigningKey.generate()


def account(name: str) -> bytes:
    """Return the account of a name."""
    return account_of(key(name))


@functools.cache
def group_key(name: str) -> bls.SecretKey:
    """Return a BLS key that is always this name's."""
    return bls.SecretKey.from_seed(hashlib.sha256(name.encode()).digest())


@functools.cache
def dealer(name: str) -> Dealer:
    """Return what a name deals with, on `dev` without fees."""
    return Dealer(key(name), GENESIS.network)


def signed(
    name: str, body: Body, sequence: int = 0, fee: int = 0, network: bytes = GENESIS.network
) -> Transaction:
    """Return a transaction of a name's key."""
    return sign_transaction(key(name), network, sequence, fee, body)


def transfer(to: str, amount: int = PAI) -> Transfer:
    """Return the body that gives to a name."""
    return Transfer(account(to), amount)


def ticket(
    role: int = MINER,
    stake: int = 100 * PAI,
    group: str | None = None,
    of: str = "supervisor",
) -> TakeTicket:
    """Return the body of a ticket; a supervisor's has the BLS key of a name ("group" if none is given), proved for
    the account of another one, and that one's seal key."""
    if role != SUPERVISOR:
        return TakeTicket(role, stake, b"{}", "", None, None)
    secret = group_key(group or "group")
    possession = secret.prove_possession(account(of))
    seal = dealer(of).seal_key
    return TakeTicket(role, stake, b"{}", "", secret.public_key, possession, seal)


def order(
    reward: int = 50 * PAI,
    training_fee: int = 5 * PAI,
    deadline_ms: int = GENESIS.time_ms + DAY_MS,
    **requirements: object,
) -> OrderTask:
    """Return the body of a task on digits that wants an accuracy of 0.9, and whatever else is required."""
    wanted = {"architecture": "MLP", "min_accuracy": 0.9, **requirements}
    model = encode(parse_requirements(wanted, "digits"))
    return OrderTask(
        "task", "image_classification", "digits", model, reward, training_fee, deadline_ms
    )


def closed(
    task: bytes,
    work: dict[bytes, int],
    correct: int = 95,
    total: int = 100,
    majority: int = 10,
    group: str = "group",
    runs: int = 0,
    **changed: object,
) -> Close:
    """Return what a committee says of a task that was trained for 400 slots, with the signature of a name's BLS key.

    Args:
        task: its id.
        work: slots x parts by account, each of which has missed so many `runs`.
        correct, total, majority: the committee's count.
        group: whose signature.
        changed: fields of the statement.
    """
    done = tuple((who, number, runs) for who, number in sorted(work.items()))
    blank = Close(0, task, 0, 400, bytes(32), correct, total, majority, done, UNSIGNED)
    blank = msgspec.structs.replace(blank, **changed)
    signature = group_key(group).sign(statement_digest(GENESIS.network, blank))
    return msgspec.structs.replace(blank, signature=signature)


def after(
    state: State,
    *transactions: Transaction,
    miner: str = "miner",
    passed_ms: int = 10_000,
    is_founding: bool = True,
) -> State:
    """Return the state after a block with these transactions."""
    draft = state.child()
    begin_block(GENESIS, draft, state.clock.time_ms + passed_ms, is_founding=is_founding)
    for transaction in transactions:
        apply_transaction(GENESIS, draft, transaction)
    end_block(GENESIS, draft, account(miner), transactions, is_founding=is_founding)
    return draft.seal()


def funded(*names: str) -> State:
    """Return a state in which each name has taken from the faucet; its next sequence is 1."""
    return after(GENESIS.state, *(signed(name, Faucet()) for name in names))


def founded(*names: str) -> State:
    """Return a state in which "supervisor" is in office, "miner" mines, and names have taken from the faucet."""
    everybody: Sequence[str] = ("supervisor", "miner", *names)
    return after(
        funded(*everybody),
        signed("supervisor", ticket(SUPERVISOR), 1),
        signed("miner", ticket(MINER), 1),
    )


def coins(state: State) -> int:
    """Return all coins that there are in a state, µPAI: balances, stakes, escrow and pool; none is negative."""
    balances = [state.account(key[1:]).balance for key, _ in state.scan(b"a")]
    records = [state.ticket(key[1:]) for key, _ in state.scan(b"t")]
    escrow = [record.escrow for record in state.tasks().values()]
    stakes = [record.stake for record in records if record]
    amounts = [*balances, *stakes, *escrow, state.supply.pool]
    assert min(amounts) >= 0
    return sum(amounts)


def certify(secret: bls.SecretKey, certificate: Certificate) -> SignedCertificate:
    """Return a certificate with its signature and its slot's beacon, by a group key of one member."""
    place = (certificate.network, certificate.epoch, certificate.task, certificate.slot)
    return SignedCertificate(
        certificate, secret.sign(certificate.word), secret.sign(beacon_digest(*place))
    )
