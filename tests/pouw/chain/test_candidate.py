"""What a miner commits itself to, and what becomes of it; a supervisor's first blocks are in test_validate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocqueue.pouw.chain.candidate import Candidates
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.store import ChainStore
from tests.pouw.blocks import FILLER, GENESIS, START_MS, founded, paid, sent, trained, waiting, won
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


def test_what_was_committed_to_can_be_mined(chain: Chain, candidates: Candidates) -> None:
    """A slot later, with the transactions of then, though others have come since."""
    mempool = waiting(chain.tip, [paid(2, "other", fee=7), paid(3, "one")])
    header = candidates.header(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    mempool.add(paid(4, "two"), chain.tip.state, _NOW_MS)
    later = candidates.header(chain.tip, mempool, FILLER, 10, 0, _NOW_MS + 1500)
    assert later.tx_root != header.tx_root
    block = candidates.block(header, *won(chain.tip, header))
    assert block is not None
    assert block.header.zero_nonce_hash == header.zero_nonce_hash
    assert block.header.time_ms == _NOW_MS
    assert [transaction.sequence for transaction in block.transactions] == [2, 3]
    assert chain.add(block, _NOW_MS).connected == (block,)


def test_it_stays_while_nothing_changes(chain: Chain, candidates: Candidates) -> None:
    """For a second; slots and lanes only put their own numbers in."""
    mempool = waiting(chain.tip, [paid(2, "other")])
    header = candidates.header(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    same = candidates.header(chain.tip, mempool, FILLER, 9, 0, _NOW_MS + 900)
    assert same.zero_nonce_hash == header.zero_nonce_hash
    for other in (
        candidates.header(chain.tip, mempool, FILLER, 10, 0, _NOW_MS),
        candidates.header(chain.tip, mempool, FILLER, 9, 1, _NOW_MS),
        candidates.header(chain.tip, mempool, b"t" * 32, 9, 0, _NOW_MS),
    ):
        assert (other.state, other.time_ms) == (header.state, _NOW_MS)
        assert other.zero_nonce_hash != header.zero_nonce_hash
    renewed = candidates.header(chain.tip, mempool, FILLER, 9, 0, _NOW_MS + 1000)
    assert renewed.time_ms == _NOW_MS + 1000


def test_a_new_tip_makes_a_new_one(chain: Chain, candidates: Candidates) -> None:
    """On top of it, without what it has in it already; later than the median of times, however slow the clock is."""
    payment = paid(2, "other")
    mempool = waiting(chain.tip, [payment])
    candidates.header(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    block = trained(chain.tip, [payment])
    mempool.remove(chain.add(block, block.header.time_ms).connected[0].transactions)
    header = candidates.header(chain.tip, mempool, FILLER, 9, 0, START_MS - 5000)
    assert (header.parent, header.height, header.tx_root) == (block.id, 3, bytes(32))
    assert header.time_ms == START_MS + 1
    assert candidates.block(header, *won(chain.tip, header)) is not None


def test_a_forgotten_one_cannot_be_finished(chain: Chain, candidates: Candidates) -> None:
    """Transactions of the last sixteen are kept."""
    mempool = waiting(chain.tip, [paid(2, "other")])
    first = candidates.header(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    for number in range(16):
        mempool.add(paid(3 + number, "other"), chain.tip.state, _NOW_MS)
        candidates.header(chain.tip, mempool, FILLER, 9, 0, _NOW_MS + 1000 * (number + 1))
    assert candidates.block(first, *won(chain.tip, first)) is None


def test_what_is_not_good_is_left_out(chain: Chain, candidates: Candidates) -> None:
    """A block has what the tip can take, whatever the mempool took before."""
    mempool = Mempool(GENESIS)
    mempool.add(paid(2, "other"), chain.tip.state, _NOW_MS)
    mempool.add(paid(4, "other"), chain.tip.state, _NOW_MS)  # there is no number 3
    mempool.add(sent("supervisor", 2, transfer("other"), fee=5), chain.tip.state, _NOW_MS)
    header = candidates.header(chain.tip, mempool, FILLER, 9, 0, _NOW_MS)
    block = candidates.block(header, *won(chain.tip, header))
    assert block is not None
    assert len(block.transactions) == 2
    assert chain.add(block, _NOW_MS).tip_changed
