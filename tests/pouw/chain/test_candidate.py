"""What a miner commits itself to, and what becomes of it; a supervisor's first blocks are in test_validate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocqueue.pouw.chain.candidate import Candidates
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.wire.blocks import Block, Header
from pocqueue.pouw.wire.transactions import Transaction
from tests.pouw.blocks import (
    FILLER,
    GENESIS,
    START_MS,
    completed,
    founded,
    paid,
    sent,
    trained,
    waiting,
    won,
)
from tests.pouw.support import account, transfer

_NOW_MS = START_MS + 60_000


@pytest.fixture
def chain() -> Iterator[Chain]:
    """With block 1."""
    with ChainStore(None, GENESIS) as store:
        yield founded(store)


@pytest.fixture
def candidates() -> Candidates:
    """The miner's."""
    return Candidates(GENESIS, account("miner"))


def _finished(chain: Chain, made: tuple[Header, tuple[Transaction, ...]]) -> Block:
    """Return the block of a candidate that has won."""
    header, transactions = made
    nonce, proof = won(chain.tip, header)
    return Block(completed(header, nonce, proof), transactions, proof)


def test_what_was_committed_to_can_be_mined(chain: Chain, candidates: Candidates) -> None:
    """A slot later, with the transactions of then, though others have come since."""
    mempool = waiting(chain.tip, [paid(2, "other", fee=7), paid(3, "one")])
    made = candidates.candidate(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    mempool.add(paid(4, "two"), chain.tip.state, _NOW_MS)
    _, later = candidates.candidate(chain.tip, mempool, FILLER, 10, 0, _NOW_MS + 1500)
    assert len(later) == 3
    block = _finished(chain, made)
    assert block.header.zero_nonce_hash == made[0].zero_nonce_hash
    assert block.header.time_ms == _NOW_MS
    assert [transaction.sequence for transaction in block.transactions] == [2, 3]
    assert chain.add(block, _NOW_MS).connected == (block,)


def test_it_stays_while_nothing_changes(chain: Chain, candidates: Candidates) -> None:
    """For a second; slots and lanes only put their own numbers in."""
    mempool = waiting(chain.tip, [paid(2, "other")])
    header, _ = candidates.candidate(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    same, same_transactions = candidates.candidate(chain.tip, mempool, FILLER, 9, 0, _NOW_MS + 900)
    assert same.zero_nonce_hash == header.zero_nonce_hash
    for task, slot, lane in ((FILLER, 10, 0), (FILLER, 9, 1), (b"t" * 32, 9, 0)):
        other, _ = candidates.candidate(chain.tip, mempool, task, slot, lane, _NOW_MS)
        assert (other.task, other.slot, other.lane) == (task, slot, lane)
        assert (other.state, other.time_ms) == (header.state, _NOW_MS)
        assert other.zero_nonce_hash != header.zero_nonce_hash
    assert candidates.known(chain.tip, FILLER, 9, 0, _NOW_MS + 999) == (header, same_transactions)
    assert candidates.known(chain.tip, FILLER, 9, 0, _NOW_MS + 1000) is None
    renewed, _ = candidates.candidate(chain.tip, mempool, FILLER, 9, 0, _NOW_MS + 1000)
    assert renewed.time_ms == _NOW_MS + 1000


def test_a_new_tip_makes_a_new_one(chain: Chain, candidates: Candidates) -> None:
    """On top of it, without what it has in it already; later than the median of times, however slow the clock is."""
    payment = paid(2, "other")
    mempool = waiting(chain.tip, [payment])
    candidates.candidate(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    block = trained(chain.tip, [payment])
    mempool.remove(chain.add(block, block.header.time_ms).connected[0].transactions)
    assert candidates.known(chain.tip, FILLER, 9, 0, _NOW_MS) is None
    made = candidates.candidate(chain.tip, mempool, FILLER, 9, 0, START_MS - 5000)
    header, transactions = made
    assert (header.parent, header.height, transactions) == (block.id, 3, ())
    assert header.time_ms == START_MS + 1
    assert chain.add(_finished(chain, made), _NOW_MS).tip_changed


def test_what_is_not_good_is_left_out(chain: Chain, candidates: Candidates) -> None:
    """A block has what the tip can take, best paying first, whatever the mempool took before."""
    mempool = Mempool(GENESIS)
    rich = sent("supervisor", 2, transfer("other"), fee=5)
    for transaction in (paid(2, "other"), paid(4, "other"), rich):  # there is no number 3
        mempool.add(transaction, chain.tip.state, _NOW_MS)
    made = candidates.candidate(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    assert made[1] == (rich, paid(2, "other"))
    assert chain.add(_finished(chain, made), _NOW_MS).tip_changed
