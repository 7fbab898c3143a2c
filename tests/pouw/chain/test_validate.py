"""Every rule of a block but its proof's, broken one by one; the first wrong one names the error."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.records import (
    MINER,
)
from pocqueue.pouw.chain.validate import FOUNDING, TRAINED, checks, validate
from pocqueue.pouw.errors import BadEncoding, InvalidBlock
from pocqueue.pouw.wire.blocks import Block
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.transactions import Faucet
from tests.pouw.blocks import (
    START_MS,
    broken,
    examined,
    founding,
    paid,
    sent,
    trained,
)
from tests.pouw.support import ticket

_replace = msgspec.structs.replace


def test_a_good_block_keeps_all_of_them(tip: Position, root: Position) -> None:
    """Each with a sentence; with transactions and without, trained and founding."""
    block = trained(tip, [paid(2, "other"), paid(3, "supervisor", fee=1)])
    for x, rules in (
        (examined(block, tip), TRAINED),
        (examined(trained(tip), tip, ahead_ms=10_000), TRAINED),
        (examined(founding(root), root), FOUNDING),
    ):
        found = [*checks(x)]
        assert [check.rule for check in found] == [rule.__name__ for rule in rules]
        assert all(check.is_kept and check.finding.endswith(".") for check in found)
        assert validate(x).digest == x.header.state


@pytest.mark.parametrize(
    ("rule", "header"),
    [
        ("limits", {"network": b"n" * 32}),
        ("height", {"height": 3}),
        ("height", {"height": 1}),
        ("target", {"target": (2**255 + 1).to_bytes(32)}),
        ("target", {"target": (2**255 - 1).to_bytes(32)}),
        ("time", {"time_ms": START_MS}),
        ("miner", {"lane": 1}),
        ("state", {"state": b"s" * 32}),
        ("transactions", {"tx_root": b"t" * 32}),
    ],
)
def test_fields_of_the_header(tip: Position, rule: str, header: dict[str, Any]) -> None:
    """Its miner committed to the wrong field, so that nothing else is wrong."""
    assert broken(examined(trained(tip, header=header), tip)) == rule


def test_the_first_wrong_one_names_the_error(tip: Position) -> None:
    """A block with everything wrong, mended from the front."""
    wrong: dict[str, Any] = {
        "network": b"n" * 32,
        "height": 9,
        "target": b"\xff" * 32,
        "lane": 7,
        "time_ms": 5,
        "tx_root": ZERO[:31] + b"1",
        "state": ZERO,
    }
    named = []
    while wrong:
        named.append(broken(examined(trained(tip, header=wrong), tip)))
        wrong.pop(next(iter(wrong)))
    assert named == ["limits", "height", "target", "miner", "time", "transactions", "state"]


def test_a_block_may_not_be_ahead_of_the_clock(tip: Position, root: Position) -> None:
    """By more than ten seconds. As it may be good later, that is said of what somebody has worked for alone."""
    block, first = trained(tip), founding(root)
    assert broken(examined(block, tip, ahead_ms=10_001)) == "time"
    assert broken(examined(first, root, ahead_ms=10_001)) == "time"
    forged = _replace(block.proof.winner.iteration, signature=bytes(64))  # type: ignore[union-attr]
    spoiled = _replace(block.proof, winner=_replace(block.proof.winner, iteration=forged))  # type: ignore[union-attr]
    unsigned = _replace(first, proof=_replace(first.proof, signature=bytes(64)))
    for bad, on, rule in (
        (_replace(block, proof=spoiled), tip, "messages"),
        (unsigned, root, "founding"),
    ):
        assert broken(examined(bad, on, ahead_ms=10_001)) == rule


def test_time_is_after_the_median_and_not_after_the_parent(tip: Position) -> None:
    """A clock that is a little slow makes good blocks."""
    median = tip.times[-1] - 60_000
    slow = Position(tip.header, tip.state, None, 0, (*[median] * 6, *tip.times))
    block = trained(slow, header={"time_ms": median + 1})
    found = [check.rule for check in checks(examined(block, slow)) if not check.is_kept]
    assert found == ["state"]  # which has the time in it


def test_a_block_has_a_million_bytes_at_most(tip: Position) -> None:
    """Whatever is in it."""
    big = sent("other", 0, _replace(ticket(MINER), preferences=b" " * 2048))
    block = trained(tip)
    assert broken(examined(_replace(block, transactions=(big,) * 460), tip)) == "limits"


def test_the_id_is_below_the_target(tip: Position) -> None:
    """An allowed nonce is not enough."""
    assert broken(examined(trained(tip, must_win=False), tip)) == "work"


def test_transactions_are_good_where_they_stand(tip: Position) -> None:
    """Signed, in order, once, paid for; those of the header."""
    good = paid(2, "other")
    forged = _replace(good, signature=bytes(64))
    block = trained(tip, [good])
    for transactions in ((), (forged,), (good, good), (paid(2, "other", 2 * PAI),)):
        assert broken(examined(_replace(block, transactions=transactions), tip)) == "transactions"
    for wrong in (
        paid(3, "other"),
        paid(2, "other", 5000 * PAI),
        sent("miner", 2, Faucet()),
    ):
        x = examined(_rooted(tip, wrong), tip)
        assert broken(x) == "transactions"


def _rooted(tip: Position, transaction: Any) -> Block:
    """Return a block whose header names a transaction that cannot be applied."""
    header = {"tx_root": _replace(trained(tip), transactions=(transaction,)).computed_tx_root()}
    return _replace(trained(tip, header=header), transactions=(transaction,))


@pytest.fixture(scope="module")
def kept(tip: Position) -> tuple[Block, bytes]:
    """A good block with transactions, and its bytes."""
    block = trained(tip, [paid(2, "other"), paid(3, "supervisor", fee=1)])
    return block, encode(block)


@given(place=st.integers(0, 10_000), byte=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_block_has_one_spelling(
    tip: Position, kept: tuple[Block, bytes], place: int, byte: int
) -> None:
    """With any byte changed it is refused, or it is another block: nobody can give the same one other bytes."""
    block, data = kept
    changed = bytearray(data)
    changed[place % len(data)] ^= byte
    try:
        other = decode(bytes(changed), Block)
        validate(examined(other, tip, ahead_ms=other.header.time_ms - block.header.time_ms))
    except (BadEncoding, InvalidBlock):
        return
    assert other.id != block.id
