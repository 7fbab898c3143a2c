"""A small network for tests: one supervisor, one miner, and blocks with real proofs; only nobody trained."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import msgspec

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.candidate import assemble, mine_founding
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.mining import allowed_draws, spec_of
from pocqueue.pouw.chain.records import MINER, SUPERVISOR
from pocqueue.pouw.chain.signatures import account_of, sign
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.slots import bls
from pocqueue.pouw.slots.certificate import certify, membership
from pocqueue.pouw.slots.draws import base_nonce, draws
from pocqueue.pouw.wire.blocks import Block, Header, Trained
from pocqueue.pouw.wire.hashes import ZERO, merkle_root
from pocqueue.pouw.wire.slots import Certificate, Iteration, SlotRecord
from pocqueue.pouw.wire.transactions import Body, Faucet, TakeTicket, Transaction, Transfer

_replace = msgspec.structs.replace
PAI = 1_000_000
#: `dev`, with every second draw a block.
GENESIS = _replace(
    Genesis.dev(),
    name="test",
    parameters=_replace(Genesis.dev().parameters, first_target=(1 << 255).to_bytes(32, "big")),
)
START_MS = GENESIS.time_ms + 1000
FILLER = GENESIS.filler_task(0)
SUPERVISOR_KEY, MINER_KEY = SigningKey.generate(), SigningKey.generate()
GROUP = bls.SecretKey.from_seed(b"a group of one".ljust(32))


def signed(key: SigningKey, sequence: int, body: Body, fee: int = 0) -> Transaction:
    """Return an account's transaction."""
    blank = Transaction(1, GENESIS.network, account_of(key), sequence, fee, body, bytes(64))
    return _replace(blank, signature=sign(key, blank.id))


def transfer(sequence: int, to: SigningKey, pai: int = 1, fee: int = 0) -> Transaction:
    """Return a transfer by the miner, whose next sequence is 2 after `founding_blocks`."""
    return signed(MINER_KEY, sequence, Transfer(account_of(to), pai * PAI), fee)


def ticket(role: int, stake: int = 100) -> TakeTicket:
    """Return a ticket's body; a supervisor's is for the group of one."""
    keys = (GROUP.public_key, GROUP.prove_possession()) if role == SUPERVISOR else (None, None)
    return TakeTicket(role, stake * PAI, b"{}", "", *keys)


def first_transactions() -> tuple[Transaction, ...]:
    """Return what makes the two a supervisor and a miner."""
    found = []
    for key, role in ((SUPERVISOR_KEY, SUPERVISOR), (MINER_KEY, MINER)):
        found += [signed(key, 0, Faucet()), signed(key, 1, ticket(role))]
    return tuple(found)


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
        tip = Chain(GENESIS, store).tip
        mempool = waiting(tip, first_transactions())
        block = mine_founding(GENESIS, tip, mempool, SUPERVISOR_KEY, START_MS)
    assert block is not None
    return block


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
    key: SigningKey = MINER_KEY,
    group: bls.SecretKey = GROUP,
    header: dict[str, Any] | None = None,
    committed: dict[str, Any] | None = None,
    winner: dict[str, Any] | None = None,
    before: dict[str, Any] | None = None,
    certificate: dict[str, Any] | None = None,
    must_win: bool = True,
) -> Block:
    """Return a block on a position that keeps all rules, but for the fields that are given.

    Args:
        tip: what it is built on.
        transactions: good there.
        slot: in which it is mined.
        key: the miner's.
        group: that signs certificates and beacons.
        header: fields of the header, from before its miner commits to it.
        committed: fields of the message of the slot before.
        winner: fields of the message of its slot.
        before: fields of the certificate of the slot before.
        certificate: fields of its slot's certificate.
        must_win: False: its id is above the target, by the first draw.
    """
    time_ms = tip.header.time_ms + GENESIS.parameters.block_ms
    blank, chosen = assemble(
        GENESIS, tip, waiting(tip, transactions), account_of(key), time_ms, is_founding=False
    )
    assert len(chosen) == len(transactions)
    blank = _replace(blank, **{"task": FILLER, "slot": slot, **(header or {})})
    first = _message(
        key, blank, slot - 1, b"p" * 32, {"commitment": blank.zero_nonce_hash, **(committed or {})}
    )
    first_record = _record(group, first, before or {})
    spec = spec_of(GENESIS, tip.state, blank.task)
    previous = first_record.signed.certificate.id
    for attempt in range(1000):
        weights_end = attempt.to_bytes(32, "big")
        second = _message(
            key, blank, slot, previous, {"weights_end": weights_end, **(winner or {})}
        )
        record = _record(group, second, certificate or {})
        proof = Trained(membership(first, first_record), membership(second, record))
        beacon = record.signed.beacon
        base = base_nonce(second.weights_end, second.map_hash, beacon)
        for nonce in draws(base, allowed_draws(GENESIS, spec, second.parts)):
            found = _replace(
                blank, message=second.id, certificate=record.signed.certificate.id, nonce=nonce
            )
            if found.meets_target == must_win:
                return Block(found, chosen, proof)
    raise AssertionError("no draw of a thousand slots was good")


def _message(
    key: SigningKey, header: Header, slot: int, previous: bytes, changed: dict[str, Any]
) -> Iteration:
    fields: dict[str, Any] = {
        "version": 1,
        "network": GENESIS.network,
        "task": header.task,
        "slot": slot,
        "miner": account_of(key),
        "lane": header.lane,
        "parts": 1,
        "map_hash": ZERO,
        "entries": 0,
        "weights_end": ZERO,
        "loss": 0,
        "previous": previous,
        "commitment": ZERO,
        "signature": bytes(64),
    }
    message = Iteration(**{**fields, **changed})
    return message if "signature" in changed else _replace(message, signature=sign(key, message.id))


def _record(group: bls.SecretKey, message: Iteration, changed: dict[str, Any]) -> SlotRecord:
    """Return the slot of one message, certified."""
    fields: dict[str, Any] = {
        "network": GENESIS.network,
        "epoch": 0,
        "task": message.task,
        "slot": message.slot,
        "ballot": 0,
        "previous": message.previous,
        "root": merkle_root([message.id]),
        "count": 1,
        "theta": ZERO,
        "anchor": GENESIS.header_id,
        "anchor_height": 0,
        "time_ms": header_time(message.slot),
    }
    return SlotRecord(certify(group, Certificate(**{**fields, **changed})), (message.id,))


def header_time(slot: int) -> int:
    """Return the time of a slot's certificate."""
    return START_MS + slot * GENESIS.parameters.slot_ms
