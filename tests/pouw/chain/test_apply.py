"""Transactions and blocks: coins are kept, rules are named, and what is refused has changed nothing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.apply import (
    apply_block,
    apply_transaction,
    begin_block,
    check_transaction,
    end_block,
    income,
    spent,
)
from pocqueue.pouw.chain.records import EVALUATOR, MINER, SUPERVISOR, VERIFIER
from pocqueue.pouw.chain.state import Draft, State
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.transactions import (
    Body,
    Faucet,
    Release,
    Result,
    Reveal,
    Transaction,
    Transfer,
)
from tests.pouw.support import (
    DEV,
    GENESIS,
    account,
    after,
    closed,
    coins,
    founded,
    funded,
    key,
    order,
    signed,
    ticket,
    transfer,
)

PARAMETERS = GENESIS.parameters
WITHOUT_FAUCET = msgspec.structs.replace(
    GENESIS, parameters=msgspec.structs.replace(PARAMETERS, faucet=0)
)


def _begun(state: State) -> Draft:
    draft = state.child()
    begin_block(GENESIS, draft, state.clock.time_ms + 1000, is_founding=True)
    return draft


def test_a_transfer_moves_coins() -> None:
    """From the sender to the receiver, the fee to whoever makes the block; the sequence counts."""
    state = after(funded("a"), signed("a", transfer("b", 7 * PAI), 1, fee=3), miner="c")
    assert [state.account(account(name)).balance for name in "abc"] == [
        1993 * PAI - 3,
        7 * PAI,
        3,
    ]
    assert state.account(account("a")).sequence == 2


def test_a_transfer_to_oneself_costs_the_fee() -> None:
    """And makes no coins."""
    state = after(funded("a"), signed("a", transfer("a", 2000 * PAI - 5), 1, fee=5), miner="c")
    assert state.account(account("a")).balance == 2000 * PAI - 5
    assert coins(state) == 2000 * PAI


def test_the_faucet_gives_once() -> None:
    """It may pay for its own fee; another network has none."""
    state = after(GENESIS.state, signed("a", Faucet(), 0, fee=2), miner="c")
    assert state.account(account("a")).balance == 2000 * PAI - 2
    with pytest.raises(InvalidTransaction, match=r"faucet: .* already"):
        after(state, signed("a", Faucet(), 1))
    elsewhere = signed("a", Faucet(), network=WITHOUT_FAUCET.network)
    with pytest.raises(InvalidTransaction, match="faucet: the network dev has none") as refused:
        check_transaction(WITHOUT_FAUCET, elsewhere)
    assert refused.value.is_fault


@pytest.mark.parametrize(
    ("transaction", "rule"),
    [
        (signed("a", transfer("b"), 1, network=bytes(32)), "network"),
        (msgspec.structs.replace(signed("a", transfer("b"), 1), fee=1), "signature"),
        (msgspec.structs.replace(signed("a", transfer("b"), 1), signature=bytes(64)), "signature"),
        (msgspec.structs.replace(signed("a", transfer("b"), 1), sender=account("b")), "signature"),
        (msgspec.structs.replace(signed("a", transfer("b"), 1), sender=bytes(33)), "signature"),
        (signed("a", transfer("b", 0), 1), "amount"),
        (signed("a", Transfer(b"\x02" + (5).to_bytes(32, "big"), 1), 1), "account"),
    ],
)
def test_what_no_state_makes_good_is_a_fault(transaction: Transaction, rule: str) -> None:
    """Whoever passes it on did not look."""
    draft = _begun(funded("a", "b"))
    before = draft.diff()
    with pytest.raises(InvalidTransaction) as refused:
        apply_transaction(GENESIS, draft, transaction)
    assert (refused.value.rule, refused.value.is_fault) == (rule, True)
    assert draft.diff() == before


def test_a_transaction_has_a_limit() -> None:
    """32 KiB: bodies of the format are shorter, but for the ends of tasks of crowds."""
    work = {bytes([2]) + number.to_bytes(32, "big"): 2**62 for number in range(1000)}
    large = Transaction(1, GENESIS.network, account("a"), 0, 0, closed(ZERO, work), bytes(64))
    with pytest.raises(InvalidTransaction, match=r"size: it has .* allowed: 32,768"):
        check_transaction(GENESIS, large)


def test_a_flood_costs_something() -> None:
    """On `dev` 100 µPAI and 25 a KiB, whatever the body; only what the faucet gives is free."""
    work = {account(f"m{number}"): 1 for number in range(60)}
    for body in (transfer("b"), ticket(MINER), Release(ZERO), closed(ZERO, work)):
        offers = [signed("a", body, 1, fee, DEV.network) for fee in range(100, 180)]
        # Its fee is among its bytes.
        place = next(at for at, one in enumerate(offers) if one.fee >= 100 + 25 * one.size // 1024)
        check_transaction(DEV, offers[place])
        with pytest.raises(
            InvalidTransaction, match=r"^fee: .* bytes: at least 0\.0001"
        ) as refused:
            check_transaction(DEV, offers[place - 1])
        assert refused.value.is_fault
    check_transaction(DEV, signed("a", Faucet(), 0, 0, DEV.network))


@pytest.mark.parametrize(
    ("transaction", "rule"),
    [
        (signed("a", transfer("b"), 0), "sequence"),
        (signed("a", transfer("b"), 2), "sequence"),
        (signed("a", transfer("b", 2000 * PAI), 1, fee=1), "balance"),
        (signed("a", ticket(MINER, 2001 * PAI), 1), "balance"),
        (signed("a", transfer("b", 1), 1, fee=2**63 - 1), "balance"),
        (signed("x", transfer("b", 1)), "balance"),
        (signed("a", Release(ZERO), 1), "ticket"),
    ],
)
def test_what_this_state_does_not_take(transaction: Transaction, rule: str) -> None:
    """Another could, so nobody is at fault; and nothing has changed."""
    draft = _begun(funded("a"))
    before = draft.diff()
    with pytest.raises(InvalidTransaction) as refused:
        apply_transaction(GENESIS, draft, transaction)
    assert (refused.value.rule, refused.value.is_fault) == (rule, False)
    assert draft.diff() == before


def test_a_transaction_counts_once() -> None:
    """Replayed in the same block or a later one, it is refused."""
    paid = signed("a", transfer("b"), 1)
    with pytest.raises(InvalidTransaction, match="sequence"):
        after(funded("a"), paid, paid)
    with pytest.raises(InvalidTransaction, match="sequence"):
        after(after(funded("a"), paid), paid)


def test_the_same_coins_cannot_be_spent_twice() -> None:
    """Two orders for one sequence: whichever is first, the other is not."""
    one, other = (signed("a", transfer(to, 1500 * PAI), 1) for to in "bc")
    for first, second in ((one, other), (other, one)):
        with pytest.raises(InvalidTransaction, match="sequence"):
            after(funded("a"), first, second)


def test_a_subsidy_is_shared() -> None:
    """80 % to the miner, 15 % to the committee, 5 % to the pool; founding blocks have none."""
    before = founded()
    state = after(before, is_founding=False)
    gained = [
        state.account(account(name)).balance - before.account(account(name)).balance
        for name in ("miner", "supervisor")
    ]
    assert gained == [40 * PAI, 7_500_000]
    assert state.supply.pool == 2_500_000
    assert state.supply.issued == before.supply.issued + 50 * PAI
    assert after(before).supply == before.supply


def test_a_subsidy_halves() -> None:
    """And is nothing in the end."""
    start = founded()
    for height, subsidy in ((210_000, 25 * PAI), (420_000, 12_500_000), (210_000 * 63, 0)):
        clock = msgspec.structs.replace(start.clock, height=height - 1)
        draft = start.child()
        draft.put(b"h", clock)
        state = after(draft.seal(), is_founding=False)
        assert state.supply.issued - start.supply.issued == subsidy
        assert coins(state) == state.supply.issued


def test_a_block_is_what_its_maker_did() -> None:
    """The steps of whoever makes it lead to the same digest as `apply_block` of whoever checks it."""
    state = founded("a")
    transactions = [signed("a", transfer("b"), 1, fee=9), signed("a", order(), 2)]
    made = after(state, *transactions, is_founding=False)
    header = msgspec.structs.replace(
        GENESIS.header, time_ms=made.clock.time_ms, miner=account("miner"), state=made.digest
    )
    draft = state.child()
    apply_block(GENESIS, draft, header, transactions, is_founding=False)
    assert draft.digest == header.state


NAMES = ("supervisor", "miner", "a", "b")


@st.composite
def _orders(draw: st.DrawFn) -> tuple[str, str, int, int, int]:
    """Draw who does what: kind, an amount around what accounts have, a fee, and which of several."""
    kinds = st.sampled_from(
        ["close", "reveal", "result", "order", "release", "ticket", "transfer", "faucet"]
    )
    amounts = st.sampled_from([100 * PAI, 250 * PAI, 33, 700 * PAI, 0, 2**62])
    return (
        draw(st.sampled_from(NAMES)),
        draw(kinds),
        draw(amounts),
        draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 2**62])),
        draw(st.integers(0, 11)),
    )


def _body(state: Draft, name: str, kind: str, amount: int, which: int) -> Body:
    """Return a body that may or may not be good: about something that is there, if there is anything."""
    held = [each[1:] for each, _ in state.scan(b"t")] or [ZERO]
    tasks = [each[1:] for each, _ in state.scan(b"k")] or [ZERO]
    match kind:
        case "transfer":
            return transfer(NAMES[which % len(NAMES)], amount)
        case "ticket":
            role = (MINER, SUPERVISOR, VERIFIER, EVALUATOR)[which % 4]
            return ticket(role, amount, of=name)
        case "release":
            return Release(held[which % len(held)])
        case "order":
            deadline_ms = state.clock.time_ms + which * 60_000 - 60_000
            hidden = {"test_hash": "cd" * 32} if which % 2 else {}
            return order(amount, amount // 3, deadline_ms, **hidden)
        case "close":
            work = {account(name): which // 2 for name in NAMES[: which % 4]}
            reason = max(0, which - 8)
            task = tasks[which % len(tasks)]
            return closed(task, work, correct=which * 9, slots=amount % 900, reason=reason)
        case "reveal":
            return Reveal(tasks[which % len(tasks)])
        case "result":
            return Result(tasks[which % len(tasks)], which * 9, 100, 10)
        case _:
            return Faucet()


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(_orders(), min_size=3, max_size=8), st.booleans(), st.integers(1, 900_000)
        ),
        min_size=3,
        max_size=6,
    )
)
def test_no_coin_comes_or_goes(
    blocks: list[tuple[list[tuple[str, str, int, int, int]], bool, int]],
) -> None:
    """Balances, stakes, escrow and pool are what was issued, after any blocks; what is refused changes nothing."""
    orders_of_a = (order(), order(test_hash="ab" * 32))
    state = after(
        founded("a", "b"),
        *(signed("a", body, number) for number, body in enumerate(orders_of_a, 1)),
        signed("b", ticket(EVALUATOR, 100 * PAI), 1),
    )
    for orders, is_founding, passed_ms in blocks:
        draft, taken = state.child(), []
        begin_block(GENESIS, draft, state.clock.time_ms + passed_ms, is_founding=is_founding)
        for name, kind, amount, fee, which in orders:
            body = _body(draft, name, kind, amount, which)
            sequence = draft.account(account(name)).sequence
            transaction = signed(name, body, sequence, fee)
            before = draft.diff(), draft.account(account(name)).balance
            try:
                apply_transaction(GENESIS, draft, transaction)
            except InvalidTransaction:
                assert draft.diff() == before[0]
            else:
                taken.append(transaction)
                assert spent(transaction) <= before[1] + income(GENESIS, transaction)
        end_block(GENESIS, draft, account("miner"), taken, is_founding=is_founding)
        state = draft.seal()
        assert coins(state) == state.supply.issued
    # Long after all deadlines nothing is in escrow.
    for _ in range(8):
        state = after(state, passed_ms=10**10)
    assert not state.open_tasks()
    assert not state.closed_tasks()
    assert sum(record.escrow for record in state.tasks().values()) == 0
    assert coins(state) == state.supply.issued


def test_keys_are_what_accounts_are() -> None:
    """The account of a key is its public point."""
    assert account("a").hex() == key("a").public_hex
