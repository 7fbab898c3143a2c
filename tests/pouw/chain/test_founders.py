"""Four supervisors that found a network: real founding blocks on real chains, up to their committee in office."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocqueue.pouw.chain.candidate import mine_founding
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.signatures import sign_transaction
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.errors import InvalidBlock
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.blocks import Block
from tests.pouw.generations import NAMES, Said, Town, founded_by
from tests.pouw.support import account, key

_GENESIS = founded_by(4)
_NOW_MS = _GENESIS.time_ms + 60_000


@pytest.fixture
def chain() -> Iterator[Chain]:
    """The network of four before anybody has said anything."""
    with ChainStore(None, _GENESIS) as store:
        yield Chain(_GENESIS, store)


def _town(chain: Chain) -> Town:
    return Town(_GENESIS, chain.tip.state)


def _mined(chain: Chain, *said: Said, by: str = NAMES[0], on: bytes | None = None) -> Block:
    """Return a founding block on a block of the chain, the tip if none is given, with this in it."""
    tip = chain.tip if on is None else chain._tree.get(on)
    assert tip is not None
    pool, sequences = Mempool(_GENESIS), dict[str, int]()
    for name, body in said:
        sequence = sequences.get(name, tip.state.account(account(name)).sequence)
        one = sign_transaction(key(name), _GENESIS.network, sequence, 0, body)
        pool.add(one, tip.state, _NOW_MS)
        sequences[name] = sequence + 1
    block = mine_founding(_GENESIS, tip, pool, key(by), _NOW_MS)
    assert block is not None
    assert len(block.transactions) == len(said)
    return block


def _extend(chain: Chain, *said: Said, by: str = NAMES[0], on: bytes | None = None) -> Block:
    block = _mined(chain, *said, by=by, on=on)
    chain.add(block, block.header.time_ms)
    return block


def _begin(chain: Chain) -> None:
    town = _town(chain)
    _extend(chain, *(town.ticket(name) for name in NAMES[:4]))


def test_founders_make_empty_blocks_while_their_key_is_in_the_making(chain: Chain) -> None:
    """Its steps are counted in blocks; before and after it there is none without a transaction."""
    tip, nothing = chain.tip, Mempool(_GENESIS)
    assert mine_founding(_GENESIS, tip, nothing, key(NAMES[0]), _NOW_MS) is None
    _begin(chain)
    _extend(chain, *_town(chain).deals(*NAMES[:4]))
    for number in range(9):
        assert chain.tip.state.office is None
        said = _town(chain).confirms(*NAMES[:4]) if chain.tip.height == 5 else []
        _extend(chain, *said, by=NAMES[number % 4])
    assert chain.tip.height == 11
    town = _town(chain)
    assert len(town.committee.members) == 4
    assert bls.verify(town.committee.group_key, b"d" * 32, town.signed_by(NAMES[:3], b"d" * 32))
    assert mine_founding(_GENESIS, chain.tip, nothing, key(NAMES[0]), _NOW_MS) is None


def test_nobody_else_founds(chain: Chain) -> None:
    """Another supervisor may have a ticket, but it makes no block before the founders are in office."""
    _begin(chain)
    _extend(chain, _town(chain).ticket(NAMES[4]))
    block = _mined(chain, by=NAMES[4])
    with pytest.raises(InvalidBlock, match=r"^founding: .* none of the supervisors that found"):
        chain.add(block, block.header.time_ms)


def test_the_chain_turns_in_the_middle_of_a_key_generation(chain: Chain) -> None:
    """What was dealt on the branch that is left is dealt again on the other; the key is made of what stands there."""
    _begin(chain)
    begun, town = chain.tip.id, _town(chain)
    deals = town.deals(*NAMES[:4])
    left = [_extend(chain, *deals[:2]), _extend(chain, deals[2])]
    assert chain.tip.id == left[-1].id
    other = _extend(chain, on=begun, by=NAMES[3])
    other = _extend(chain, deals[3], on=other.id, by=NAMES[3])
    other = _extend(chain, deals[0], on=other.id, by=NAMES[3])
    assert chain.tip.id == other.id
    assert sorted(chain.tip.state.deals(0)) == [0, 3]
    _extend(chain, deals[1], deals[2])
    while chain.tip.state.office is None:
        _extend(chain, *(_town(chain).confirms(*NAMES[:4]) if chain.tip.height == 7 else ()))
    town = _town(chain)
    assert chain.tip.height == 11
    assert bls.verify(town.committee.group_key, b"d" * 32, town.signed_by(NAMES[1:4], b"d" * 32))
