"""The mempool: the best paying wait in front, nobody fills it for nothing, and reorganisations lose nothing."""

from __future__ import annotations

import msgspec
import pytest

from pocqueue.pouw.chain import mempool
from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.apply import begin_block
from pocqueue.pouw.chain.mempool import LIFETIME_MS, MAX_AHEAD, Mempool
from pocqueue.pouw.chain.records import EVALUATOR, MINER
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.wire.transactions import Faucet, Release, Result, Transaction
from tests.pouw.support import (
    GENESIS,
    account,
    after,
    closed,
    founded,
    funded,
    order,
    signed,
    ticket,
    transfer,
)

LARGE = 1_000_000


def _pool(state: State, *transactions: Transaction) -> Mempool:
    pool = Mempool(GENESIS)
    for transaction in transactions:
        assert pool.add(transaction, state, 0)
    return pool


def _select(pool: Mempool, state: State, max_bytes: int = LARGE) -> list[Transaction]:
    draft = state.child()
    begin_block(GENESIS, draft, state.clock.time_ms + 1000, is_founding=True)
    return pool.select(draft, max_bytes)


def test_the_best_paying_are_first_but_in_their_senders_order() -> None:
    """A cheap one in front holds back what its sender pays more for."""
    a1 = signed("a", transfer("c"), 1, fee=10)
    a2 = signed("a", transfer("c"), 2, fee=900)
    b1 = signed("b", transfer("c"), 1, fee=500)
    c0 = signed("c", Faucet(), 0)
    state = funded("a", "b")
    pool = _pool(state, a2, a1, c0, b1)
    assert _select(pool, state) == [b1, a1, a2, c0]
    assert _select(pool, state, b1.size + a1.size) == [b1, a1]
    assert (len(pool), pool.size_bytes) == (4, sum(each.size for each in pool))


def test_equal_fees_wait_in_line() -> None:
    """First come, first served."""
    state = funded("a", "b", "c")
    line = [signed(name, transfer("d"), 1, fee=5) for name in "cab"]
    sizes = {each.size for each in line}
    assert len(sizes) == 1
    assert _select(_pool(state, *line), state) == line


def test_the_same_one_is_there_once() -> None:
    """Whoever sends it again is not at fault."""
    state = funded("a")
    one = signed("a", transfer("b"), 1)
    pool = _pool(state, one)
    assert not pool.add(one, state, 5)
    assert one.id in pool
    assert pool.get(one.id) == one


@pytest.mark.parametrize("fee", [100, 109])
def test_a_replacement_pays_a_tenth_more(fee: int) -> None:
    """Else whoever waits could send everybody new ones for nothing."""
    state = funded("a")
    old, better = signed("a", transfer("b"), 1, fee=100), signed("a", transfer("c"), 1, fee=110)
    pool = _pool(state, old)
    with pytest.raises(InvalidTransaction, match=r"replacement: .* 10 % higher"):
        pool.add(signed("a", transfer("c"), 1, fee=fee), state, 0)
    assert pool.add(better, state, 0)
    assert list(pool) == [better]
    assert pool.size_bytes == better.size


def test_nothing_is_no_better_than_nothing() -> None:
    """A tenth more than no fee is a fee."""
    state = funded("a")
    pool = _pool(state, signed("a", transfer("b"), 1))
    with pytest.raises(InvalidTransaction, match="replacement"):
        pool.add(signed("a", transfer("c"), 1), state, 0)
    assert pool.add(signed("a", transfer("c"), 1, fee=1), state, 0)


@pytest.mark.parametrize(
    ("transaction", "rule", "is_fault"),
    [
        (signed("a", transfer("b"), 0), "sequence", False),
        (signed("a", transfer("b"), 1 + MAX_AHEAD), "sequence", False),
        (signed("a", transfer("b", 2000 * PAI + 1), 1), "balance", False),
        (signed("x", transfer("b"), 0), "balance", False),
        (signed("a", transfer("b"), 1, network=bytes(32)), "network", True),
        (signed("a", ticket(MINER, 1), 1), "stake", True),
    ],
)
def test_what_is_not_taken_in(transaction: Transaction, rule: str, is_fault: bool) -> None:
    """And whether its sender is to blame."""
    pool = Mempool(GENESIS)
    with pytest.raises(InvalidTransaction) as refused:
        pool.add(transaction, funded("a"), 0)
    assert (refused.value.rule, refused.value.is_fault, len(pool)) == (rule, is_fault, 0)


def test_a_sender_pays_for_all_that_waits() -> None:
    """A balance is not promised twice; the faucet counts once."""
    pool = _pool(funded("a"), signed("a", transfer("b", 1999 * PAI), 1))
    with pytest.raises(InvalidTransaction, match="balance"):
        pool.add(signed("a", transfer("b", 2 * PAI), 2), funded("a"), 0)
    start = GENESIS.state
    pool = _pool(start, signed("n", Faucet(), 0), signed("n", ticket(MINER), 1))
    assert len(_select(pool, start)) == 2
    pool.add(signed("n", Faucet(), 2), start, 0)
    with pytest.raises(InvalidTransaction, match="balance"):
        pool.add(signed("n", transfer("b", 1901 * PAI), 3), start, 0)
    pool = _pool(funded("a"), signed("a", Faucet(), 2))
    with pytest.raises(InvalidTransaction, match="balance"):
        pool.add(signed("a", transfer("b", 2001 * PAI), 3), funded("a"), 0)


def test_the_next_sequence_is_after_what_waits() -> None:
    """Up to the first gap."""
    state = funded("a")
    pool = _pool(state, *(signed("a", transfer("b"), number) for number in (1, 2, 4)))
    assert pool.next_sequence(account("a"), state) == 3
    assert pool.next_sequence(account("b"), state) == 0


def test_a_full_pool_drops_the_cheapest(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what follows it of its sender; who pays no more than that is not taken in."""
    monkeypatch.setattr(mempool, "MAX_TRANSACTIONS", 4)
    state = funded("a", "b", "c")
    cheap, behind = signed("a", transfer("d"), 1, fee=200), signed("a", transfer("d"), 2, fee=900)
    rest = [signed("b", transfer("d"), number, fee=400) for number in (1, 2)]
    pool = _pool(state, cheap, behind, *rest)
    with pytest.raises(InvalidTransaction, match="full"):
        pool.add(signed("c", transfer("d"), 1, fee=200), state, 0)
    assert len(pool) == 4
    dear = signed("c", transfer("d"), 1, fee=300)
    assert pool.add(dear, state, 0)
    assert set(pool) == {*rest, dear}
    assert pool.size_bytes == sum(each.size for each in pool)


def test_bytes_are_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One large one may drop several."""
    state = funded("a", "b")
    small = [signed("a", transfer("d"), number, fee=1) for number in range(1, 6)]
    monkeypatch.setattr(mempool, "MAX_BYTES", sum(each.size for each in small))
    pool = _pool(state, *small)
    assert pool.add(signed("b", transfer("d"), 1, fee=9000), state, 0)
    assert pool.size_bytes <= mempool.MAX_BYTES
    assert small[-1] not in set(pool)


def test_what_does_not_fit_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is refused in the end would have emptied the pool of all that is cheaper."""
    state = funded("a", "b", "c")
    cheap = [signed("a", transfer("d"), number, fee=1) for number in range(1, 4)]
    dear = [signed("b", transfer("d"), number, fee=9000) for number in range(1, 4)]
    monkeypatch.setattr(mempool, "MAX_BYTES", sum(each.size for each in (*cheap, *dear)))
    pool = _pool(state, *cheap, *dear)
    large = msgspec.structs.replace(ticket(MINER), preferences=b"." * 2000)
    for _ in range(2):
        with pytest.raises(InvalidTransaction, match="full"):
            pool.add(signed("c", large, 1, fee=5000), state, 0)
        assert set(pool) == {*cheap, *dear}
    # They are still those that go first.
    assert pool.add(late := signed("c", transfer("d"), 1, fee=5000), state, 0)
    assert {*dear, late} <= set(pool)
    assert cheap[-1] not in set(pool)


def test_a_flood_is_seen_through_before_signatures_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be paid, or comes out of turn, takes no curve: anybody can send it for nothing."""
    looked_at: list[Transaction] = []
    monkeypatch.setattr(
        mempool, "check_transaction", lambda _, transaction: looked_at.append(transaction)
    )
    state, pool = funded("a"), Mempool(GENESIS)
    for transaction in (signed("x", transfer("b"), 0), signed("a", transfer("b"), 0)):
        with pytest.raises(InvalidTransaction):
            pool.add(transaction, state, 0)
    assert not looked_at
    assert pool.add(good := signed("a", transfer("b"), 1), state, 0)
    assert looked_at == [good]


def test_many_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gone does not pile up behind the scenes."""
    monkeypatch.setattr(mempool, "MAX_TRANSACTIONS", 3)
    state = funded("a")
    pool = Mempool(GENESIS)
    for fee in range(1, 30):
        pool.add(signed("a", transfer("b"), 1, fee=2**fee), state, 0)
    assert len(pool) == 1
    assert len(pool._cheapest) <= 10


def test_nothing_waits_for_ever() -> None:
    """Two hours, from when it came."""
    state = funded("a", "b")
    pool = _pool(state, signed("a", transfer("c"), 1))
    young = signed("b", transfer("c"), 1)
    pool.add(young, state, 5)
    pool.expire(LIFETIME_MS - 1)
    assert len(pool) == 2
    pool.expire(LIFETIME_MS)
    assert list(pool) == [young]


def test_what_is_in_a_block_leaves_with_its_rivals() -> None:
    """And what is not good any more does not keep others out."""
    state = funded("a", "b")
    mined = signed("a", transfer("c"), 1)
    pool = _pool(state, signed("a", transfer("b"), 1), later := signed("a", transfer("b"), 2))
    pool.remove([mined])
    assert list(pool) == [later]
    assert _select(pool, after(state, mined)) == [later]


def test_a_reorganisation_brings_back_what_is_still_good() -> None:
    """From blocks that lost: not what the winner has as well, nor what its sender has spent otherwise."""
    start = funded("a", "b", "c")
    both, spent, lost = (signed(name, transfer("d"), 1) for name in "abc")
    pool = Mempool(GENESIS)
    won = [both, signed("b", transfer("e"), 1)]
    tip = after(start, *won)
    pool.remove(won)
    pool.readd([both, spent, lost], tip, 0)
    assert list(pool) == [lost]


def test_what_will_never_be_good_is_dropped() -> None:
    """A result that nobody waits for would stay for two hours; what cannot be paid yet does stay."""
    state = founded("a", "b")
    early = signed("a", Result(bytes(32), 1, 2, 1), 1)
    rich = signed("b", transfer("c", 2000 * PAI), 1)
    pool = _pool(state, early, rich)
    poorer = after(state, signed("b", ticket(MINER), 1))
    assert _select(pool, state) == [rich]
    assert list(pool) == [rich]
    assert _select(pool, poorer) == []
    assert list(pool) == [rich]


def test_what_no_block_takes_is_not_passed_on() -> None:
    """It would cost its sender nothing: an end of a task that the committee did not sign, somebody else's ticket."""
    state = founded("a")
    miners = state.live_ticket(account("miner"), MINER)
    assert miners is not None
    pool = Mempool(GENESIS)
    for body in (closed(bytes(32), {}), Release(miners)):
        with pytest.raises(InvalidTransaction) as refused:
            pool.add(signed("a", body, 1), state, 0)
        assert (refused.value.rule, refused.value.is_fault) in {("task", False), ("ticket", False)}
    assert len(pool) == 0
    later = signed("a", Release(miners), 2)
    assert pool.add(later, state, 0)  # what is before it may make it good
    pool.retry(state, 0)
    assert list(pool) == [later]
    pool.retry(after(state, signed("a", transfer("b"), 1)), 0)
    assert len(pool) == 0


def test_a_new_block_shows_what_is_useless_now() -> None:
    """Also to a node that makes no blocks; what was ahead of its chain is good by then."""
    state = founded("client", "e1")
    ordered = signed("client", order(), 1)
    state = after(state, ordered, signed("e1", ticket(EVALUATOR, 50 * PAI), 1))
    ahead = signed("e1", Result(ordered.id, 95, 100, 10), 2)
    useless = signed("client", Result(bytes(32), 1, 2, 1), 2)
    pool = _pool(state, ahead, useless)
    tip = after(state, signed("supervisor", closed(ordered.id, {}), 2))
    pool.retry(tip, tip.clock.time_ms + 1000)
    assert list(pool) == [ahead]
