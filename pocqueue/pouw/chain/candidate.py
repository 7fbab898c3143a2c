"""Blocks in the making: what a miner commits itself to a slot ahead, and a supervisor's first ones."""

from __future__ import annotations

import hashlib
import statistics
from typing import Final, NamedTuple

import msgspec

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.apply import begin_block, end_block
from pocqueue.pouw.chain.difficulty import FOUNDING_GAP_MS, FOUNDING_TARGET, next_target
from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.signatures import account_of, sign
from pocqueue.pouw.wire.blocks import MAX_BLOCK_BYTES, Block, Founding, Header
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.hashes import ZERO, begun, merkle_root
from pocqueue.pouw.wire.transactions import Release, Transaction

#: A candidate is made anew after so long, with the clock's time and the transactions that came in.
REFRESH_MS: Final = 1000
#: Bytes of a block that are kept for its header and proof.
_HEAD_BYTES: Final = 8000
#: After so many a founding block is given up, one in nine million.
MAX_HASHES: Final = 1 << 20


class _Made(NamedTuple):
    tip: bytes
    until_ms: int
    header: Header
    transactions: tuple[Transaction, ...]


class Candidates:
    """The blocks that one account may mine. For the thread that has the mempool.

    Args:
        genesis: the network.
        account: the miner's.
    """

    def __init__(self, genesis: Genesis, account: bytes) -> None:
        self._genesis = genesis
        self._account = account
        self._made: _Made | None = None

    def candidate(
        self, tip: Position, mempool: Mempool, task: bytes, slot: int, lane: int, now_ms: int
    ) -> tuple[Header, tuple[Transaction, ...]]:
        """Return the block that this account may mine in a slot, as far as it is known before the slot.

        The header's `zero_nonce_hash` is what the message of the slot before commits to.

        Args:
            tip: what it is built on.
            mempool: where its transactions are from.
            task: id of the task.
            slot: in which it would be mined.
            lane: of the account.
            now_ms: the clock.
        """
        known = self.known(tip, task, slot, lane, now_ms)
        if known is None:
            time_ms = max(now_ms, _earliest_ms(tip))
            header, transactions = assemble(
                self._genesis, tip, mempool, self._account, time_ms, is_founding=False
            )
            self._made = _Made(tip.id, now_ms + REFRESH_MS, header, transactions)
            known = _placed(header, task, slot, lane), transactions
        return known

    def known(
        self, tip: Position, task: bytes, slot: int, lane: int, now_ms: int
    ) -> tuple[Header, tuple[Transaction, ...]] | None:
        """Return the same, from any thread, if it need not be made anew; None: it does."""
        made = self._made
        if made is None or made.tip != tip.id or not now_ms < made.until_ms:
            return None
        return _placed(made.header, task, slot, lane), made.transactions


def mine_founding(
    genesis: Genesis, tip: Position, mempool: Mempool, key: SigningKey, now_ms: int
) -> Block | None:
    """Make a founding block; for a thread: it takes 65,536 hashes on average, some 0.07 s.

    Args:
        genesis: the network.
        tip: what it is built on; `tickets.is_founding_allowed` of its state.
        mempool: where its transactions are from.
        key: of a supervisor, whose ticket is live or waits in the mempool.
        now_ms: the clock; its time is later if the tip's is not long enough ago.

    Returns:
        The block; None: there is nothing to put into it and no committee in the making, whose steps are counted in
        blocks; or the account gives its own ticket back in it, or none of `MAX_HASHES` was good.
    """
    time_ms = max(now_ms, _earliest_ms(tip), tip.header.time_ms + FOUNDING_GAP_MS)
    header, transactions = assemble(
        genesis, tip, mempool, account_of(key), time_ms, is_founding=True
    )
    # The nonce is what the header's bytes end with: all before it is hashed once.
    head = begun("header", encode(header)[: -len(header.nonce)])
    if any(_gives_up(transaction, header.miner) for transaction in transactions):
        return None  # whoever makes a founding block is a supervisor after it
    is_due = transactions or tip.state.generation is not None
    for number in range(MAX_HASHES if is_due else 0):
        nonce = number.to_bytes(8, "little")
        inner = head.copy()
        inner.update(nonce)
        if hashlib.sha256(inner.digest()).digest() < FOUNDING_TARGET:
            header = msgspec.structs.replace(header, nonce=nonce)
            return Block(header, transactions, Founding(sign(key, header.id)))
    return None


def _placed(header: Header, task: bytes, slot: int, lane: int) -> Header:
    return msgspec.structs.replace(header, task=task, slot=slot, lane=lane)


def _gives_up(transaction: Transaction, account: bytes) -> bool:
    return transaction.sender == account and isinstance(transaction.body, Release)


def assemble(
    genesis: Genesis,
    tip: Position,
    mempool: Mempool,
    account: bytes,
    time_ms: int,
    *,
    is_founding: bool,
) -> tuple[Header, tuple[Transaction, ...]]:
    """Return a block on the tip with what pays best: its transactions, and its header before it is mined.

    Args:
        genesis: the network.
        tip: what it is built on.
        mempool: where its transactions are from; it drops what will never be good.
        account: the miner's.
        time_ms: of the block.
        is_founding: it is to be a founding block.
    """
    draft = tip.state.child()
    begin_block(genesis, draft, time_ms, is_founding=is_founding)
    transactions = tuple(mempool.select(draft, MAX_BLOCK_BYTES - _HEAD_BYTES))
    end_block(genesis, draft, account, transactions, is_founding=is_founding)
    target = next_target(genesis.parameters, tip.state.clock)
    header = Header(
        version=1,
        network=genesis.network,
        height=tip.height + 1,
        parent=tip.id,
        tx_root=merkle_root([transaction.id for transaction in transactions]),
        state=draft.digest,
        time_ms=time_ms,
        target=FOUNDING_TARGET if is_founding else target,
        miner=account,
        lane=0,
        task=ZERO,
        slot=0,
        message=ZERO,
        certificate=ZERO,
        nonce=bytes(8),
    )
    return header, transactions


def _earliest_ms(tip: Position) -> int:
    return statistics.median_high(tip.times) + 1
