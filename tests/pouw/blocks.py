"""A small network for tests: one supervisor, one miner, and blocks with real proofs; only nobody trained."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.candidate import assemble, mine_founding
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.examination import Examination
from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.mining import allowed_draws, spec_of
from pocqueue.pouw.chain.records import MINER, SUPERVISOR
from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.chain.validate import validate
from pocqueue.pouw.errors import InvalidBlock
from pocqueue.pouw.slots.certificate import membership
from pocqueue.pouw.slots.draws import base_nonce, draws
from pocqueue.pouw.wire.blocks import Block, Header, Trained
from pocqueue.pouw.wire.hashes import ZERO, merkle_root
from pocqueue.pouw.wire.slots import Certificate, Iteration, SlotRecord
from pocqueue.pouw.wire.transactions import Body, Faucet, Transaction
from tests.pouw.support import (
    GENESIS as FREE,
    account,
    certify,
    group_key,
    key,
    signed,
    ticket,
    transfer,
)

_replace = msgspec.structs.replace
#: `dev`, with every second draw a block.
GENESIS = _replace(
    FREE,
    name="test",
    parameters=_replace(FREE.parameters, first_target=(1 << 255).to_bytes(32, "big")),
)
START_MS = GENESIS.time_ms + 1000
FILLER = GENESIS.filler_task(0)


def sent(name: str, sequence: int, body: Body, fee: int = 0) -> Transaction:
    """Return a name's transaction on this network."""
    return signed(name, body, sequence, fee, GENESIS.network)


def paid(sequence: int, to: str, amount: int = PAI, fee: int = 0) -> Transaction:
    """Return a transfer by the miner, whose next sequence is 2 after block 1."""
    return sent("miner", sequence, transfer(to, amount), fee)


def first_transactions() -> tuple[Transaction, ...]:
    """Return what makes "supervisor" and "miner" what they are called."""
    return tuple(
        sent(name, sequence, body)
        for name, role in (("supervisor", SUPERVISOR), ("miner", MINER))
        for sequence, body in enumerate(bodies(role))
    )


def bodies(role: int) -> tuple[Body, Body]:
    """Return what an account without coins gets a ticket by."""
    return Faucet(), ticket(role)


def waiting(tip: Position, transactions: Sequence[Transaction]) -> Mempool:
    """Return a mempool with these in it."""
    mempool = Mempool(GENESIS)
    for transaction in transactions:
        mempool.add(transaction, tip.state, START_MS)
    return mempool


@functools.cache
def founding_block() -> Block:
    """Return block 1, after which blocks are trained. Made once: it takes some hashing."""
    with ChainStore(None, GENESIS) as store:
        return founding(Chain(GENESIS, store).tip)


def founded(store: ChainStore) -> Chain:
    """Return a chain with block 1 in it."""
    chain = Chain(GENESIS, store)
    chain.add(founding_block(), START_MS)
    return chain


def trained(
    tip: Position,
    transactions: Sequence[Transaction] = (),
    *,
    slot: int = 9,
    miner: str = "miner",
    header: dict[str, Any] | None = None,
    **proof: Any,
) -> Block:
    """Return a block on a position that keeps all rules, but for the fields that are given.

    Args:
        tip: what it is built on.
        transactions: good there.
        slot: in which it is mined.
        miner: whose block it is.
        header: fields of the header, from before its miner commits to it.
        proof: as `won` has it.
    """
    time_ms = tip.header.time_ms + GENESIS.parameters.block_ms
    mempool = waiting(tip, transactions)
    blank, chosen = assemble(GENESIS, tip, mempool, account(miner), time_ms, is_founding=False)
    assert len(chosen) == len(transactions)
    blank = _replace(blank, **{"task": FILLER, "slot": slot, **(header or {})})
    nonce, trained_for = won(tip, blank, miner, **proof)
    return Block(completed(blank, nonce, trained_for), chosen, trained_for)


def completed(header: Header, nonce: bytes, proof: Trained) -> Header:
    """Return the header with what is known after its slot."""
    return _replace(
        header,
        message=proof.winner.iteration.id,
        certificate=proof.winner.signed.certificate.id,
        nonce=nonce,
    )


def won(
    tip: Position,
    header: Header,
    miner: str = "miner",
    *,
    group: str = "group",
    committed: dict[str, Any] | None = None,
    winner: dict[str, Any] | None = None,
    before: dict[str, Any] | None = None,
    certificate: dict[str, Any] | None = None,
    must_win: bool = True,
) -> tuple[bytes, Trained]:
    """Return the nonce that a header is mined by, and the proof of it.

    Args:
        tip: what it is built on.
        header: as its miner commits to it.
        miner: whose block it is.
        group: whose key signs certificates and beacons.
        committed: fields of the message of the slot before.
        winner: fields of the message of its slot.
        before: fields of the certificate of the slot before.
        certificate: fields of its slot's certificate.
        must_win: False: its id is not below the target.
    """
    commitment = {"commitment": header.zero_nonce_hash, **(committed or {})}
    first = _message(miner, header, header.slot - 1, b"p" * 32, commitment)
    first_record = _record(group, first, before or {})
    previous = first_record.signed.certificate.id
    spec = spec_of(GENESIS, tip.state, header.task)
    for attempt in range(1000):
        another = {"weights_end": attempt.to_bytes(32, "big"), **(winner or {})}
        second = _message(miner, header, header.slot, previous, another)
        record = _record(group, second, certificate or {})
        proof = Trained(membership(first, first_record), membership(second, record))
        base = base_nonce(second.weights_end, second.map_hash, record.signed.beacon)
        for nonce in draws(base, allowed_draws(GENESIS, spec, second.parts, second.entries)):
            if completed(header, nonce, proof).meets_target == must_win:
                return nonce, proof
    raise AssertionError("no draw of a thousand slots was good")


def _message(
    miner: str, header: Header, slot: int, previous: bytes, changed: dict[str, Any]
) -> Iteration:
    fields: dict[str, Any] = {
        "version": 1,
        "network": GENESIS.network,
        "task": header.task,
        "slot": slot,
        "miner": account(miner),
        "lane": header.lane,
        "parts": 1,
        "map_hash": ZERO,
        "entries": 1000,
        "weights_end": ZERO,
        "loss": 0,
        "previous": previous,
        "commitment": ZERO,
        "signature": bytes(64),
    }
    message = Iteration(**{**fields, **changed})
    if "signature" in changed:
        return message
    return _replace(message, signature=sign(key(miner), message.id))


def _record(group: str, message: Iteration, changed: dict[str, Any]) -> SlotRecord:
    """Return the slot of one message, certified."""
    fields: dict[str, Any] = {
        "network": GENESIS.network,
        "epoch": 0,
        "turn": message.slot,
        "parent": ZERO,
        "task": message.task,
        "slot": message.slot,
        "ballot": 0,
        "previous": message.previous,
        "root": merkle_root([message.id]),
        "count": 1,
        "theta": ZERO,
        "anchor": GENESIS.header_id,
        "anchor_height": 0,
        "time_ms": START_MS + message.slot * GENESIS.parameters.slot_ms,
    }
    return SlotRecord(
        certify(group_key(group), Certificate(**{**fields, **changed})), (message.id,)
    )


def examined(block: Block, on: Position, ahead_ms: int = 0) -> Examination:
    """Return what a node that gets a block so long before its time has to look at."""
    now_ms = block.header.time_ms - ahead_ms
    return Examination(GENESIS, block, on.header, on.state, on.times, now_ms)


def broken(x: Examination) -> str:
    """Return the rule that a block breaks first."""
    with pytest.raises(InvalidBlock) as caught:
        validate(x)
    assert str(caught.value).startswith(f"{caught.value.rule}: ")
    return caught.value.rule


def founding(on: Position, miner: str = "supervisor") -> Block:
    """Return a founding block by a name, with all first transactions in it."""
    mempool = waiting(on, first_transactions())
    block = mine_founding(GENESIS, on, mempool, key(miner), START_MS)
    assert block is not None
    return block
