"""Every rule of a block, broken one by one; the first wrong one names the error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.candidate import assemble, mine_founding
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.examination import Examination
from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.records import (
    MINER,
    OFFICE,
    Office,
    Outcome,
    TaskRecord,
    committee_key,
    task_key,
)
from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.chain.validate import FOUNDING, TRAINED, checks, validate
from pocqueue.pouw.errors import BadEncoding, InvalidBlock
from pocqueue.pouw.slots.draws import base_nonce
from pocqueue.pouw.wire.blocks import Block, Founding, Trained
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.slots import Membership
from pocqueue.pouw.wire.transactions import Faucet
from tests.pouw.blocks import (
    FILLER,
    GENESIS,
    START_MS,
    first_transactions,
    founded,
    paid,
    sent,
    trained,
    waiting,
)
from tests.pouw.support import account, key, ticket

_replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def tip() -> Iterator[Position]:
    """Block 1: a supervisor is in office, and there is a miner."""
    with ChainStore(None, GENESIS) as store:
        yield founded(store).tip


@pytest.fixture(scope="module")
def root() -> Iterator[Position]:
    """Block 0: nobody is there."""
    with ChainStore(None, GENESIS) as store:
        yield Chain(GENESIS, store).tip


def _examined(block: Block, on: Position, ahead_ms: int = 0) -> Examination:
    """Return what a node that gets a block so long before its time has to look at."""
    now_ms = block.header.time_ms - ahead_ms
    return Examination(GENESIS, block, on.header, on.state, on.times, now_ms)


def _broken(x: Examination) -> str:
    """Return the rule that a block breaks first."""
    with pytest.raises(InvalidBlock) as caught:
        validate(x)
    assert str(caught.value).startswith(f"{caught.value.rule}: ")
    return caught.value.rule


def test_a_good_block_keeps_all_of_them(tip: Position, root: Position) -> None:
    """Each with a sentence; with transactions and without, trained and founding."""
    block = trained(tip, [paid(2, "other"), paid(3, "supervisor", fee=1)])
    for x, rules in (
        (_examined(block, tip), TRAINED),
        (_examined(trained(tip), tip, ahead_ms=10_000), TRAINED),
        (_examined(_founding(root), root), FOUNDING),
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
    assert _broken(_examined(trained(tip, header=header), tip)) == rule


def test_the_first_wrong_one_names_the_error(tip: Position) -> None:
    """A block with everything wrong, mended from the front."""
    wrong: dict[str, Any] = {
        "network": b"n" * 32,
        "height": 9,
        "target": b"\xff" * 32,
        "time_ms": 5,
        "lane": 7,
        "tx_root": ZERO[:31] + b"1",
        "state": ZERO,
    }
    named = []
    while wrong:
        named.append(_broken(_examined(trained(tip, header=wrong), tip)))
        wrong.pop(next(iter(wrong)))
    assert named == ["limits", "height", "target", "time", "miner", "transactions", "state"]


def test_a_block_may_not_be_ahead_of_the_clock(tip: Position) -> None:
    """By more than ten seconds."""
    block = trained(tip)
    assert _broken(_examined(block, tip, ahead_ms=10_001)) == "time"


def test_time_is_after_the_median_and_not_after_the_parent(tip: Position) -> None:
    """A clock that is a little slow makes good blocks."""
    median = tip.times[-1] - 60_000
    slow = Position(tip.header, tip.state, None, 0, (*[median] * 6, *tip.times))
    block = trained(slow, header={"time_ms": median + 1})
    found = [check.rule for check in checks(_examined(block, slow)) if not check.is_kept]
    assert found == ["state"]  # which has the time in it


def test_a_block_has_a_million_bytes_at_most(tip: Position) -> None:
    """Whatever is in it."""
    big = sent("other", 0, _replace(ticket(MINER), preferences=b" " * 2048))
    block = trained(tip)
    assert _broken(_examined(_replace(block, transactions=(big,) * 460), tip)) == "limits"


@pytest.mark.parametrize(
    "changed",
    [
        {"group": "forger"},
        {"certificate": {"epoch": 1}},
        {"before": {"epoch": 1}},
        {"certificate": {"network": b"n" * 32}},
        {"certificate": {"previous": b"x" * 32}},
        {"certificate": {"slot": 11}},
        {"before": {"slot": 7}},
        {"certificate": {"task": b"x" * 32}},
    ],
)
def test_certificates_are_the_committees(tip: Position, changed: dict[str, Any]) -> None:
    """Of its epoch's key, this network, two slots in a row."""
    assert _broken(_examined(trained(tip, **changed), tip)) == "certificates"


@pytest.mark.parametrize(
    ("before", "now", "is_good"),
    [(2, 2, True), (1, 2, True), (1, 1, True), (2, 1, False), (0, 0, False)],
)
def test_a_committee_hands_over(tip: Position, before: int, now: int, is_good: bool) -> None:
    """The one before may still be heard, an older one not; nobody goes back to the one before."""
    draft, committee = tip.state.child(), tip.state.committee(0)
    assert committee is not None
    for epoch in (1, 2):
        draft.put(committee_key(epoch), _replace(committee, epoch=epoch))
    draft.put(OFFICE, Office(2, b"t" * 32))
    on = Position(tip.header, draft.seal(), None, 0, tip.times)
    block = trained(on, before={"epoch": before}, certificate={"epoch": now})
    found = [check.rule for check in checks(_examined(block, on)) if not check.is_kept]
    assert found == ([] if is_good else ["certificates"])


def _with(block: Block, member: str, **changed: Any) -> Block:
    """Return a block with something else in one of its proof's halves."""
    assert isinstance(block.proof, Trained)
    half = _replace(getattr(block.proof, member), **changed)
    return _replace(block, proof=_replace(block.proof, **{member: half}))


def _halves(block: Block) -> tuple[Membership, Membership]:
    assert isinstance(block.proof, Trained)
    return block.proof.committed, block.proof.winner


def test_signature_and_beacon_cannot_be_exchanged(tip: Position) -> None:
    """A beacon of another slot, a signature of another certificate, the point at infinity."""
    block = trained(tip)
    committed, winner = _halves(block)
    for member, changed in (
        ("winner", {"beacon": committed.signed.beacon}),
        ("winner", {"signature": winner.signed.beacon}),
        ("committed", {"signature": winner.signed.signature}),
        ("committed", {"beacon": b"\xc0" + bytes(95)}),
    ):
        half = committed if member == "committed" else winner
        forged = _with(block, member, signed=_replace(half.signed, **changed))
        assert _broken(_examined(forged, tip)) == "certificates"
    named = _replace(block, header=_replace(block.header, certificate=b"c" * 32))
    assert _broken(_examined(named, tip)) == "certificates"


def test_without_anybody_in_office_nothing_is_certified(root: Position) -> None:
    """So only founding blocks can be made."""
    assert _broken(_examined(trained(root), root)) == "certificates"


def test_messages_are_those_of_their_slots(tip: Position) -> None:
    """Under the root, of this slot, signed, and the one that the header names."""
    block = trained(tip)
    committed, winner = _halves(block)
    assert _broken(_examined(trained(tip, certificate={"root": b"r" * 32}), tip)) == "messages"
    assert _broken(_examined(trained(tip, before={"count": 2}), tip)) == "messages"
    assert (
        _broken(_examined(trained(tip, winner={"slot": 10}, certificate={"slot": 9}), tip))
        == "messages"
    )
    assert (
        _broken(_examined(trained(tip, committed={"slot": 7}, before={"slot": 8}), tip))
        == "messages"
    )
    assert _broken(_examined(trained(tip, winner={"signature": bytes(64)}), tip)) == "messages"
    for forged in (
        _with(block, "winner", path=(ZERO,)),
        _with(block, "winner", index=1),
        _with(block, "committed", iteration=winner.iteration),
        _with(block, "winner", iteration=_replace(winner.iteration, parts=2)),
        _with(block, "committed", iteration=_replace(committed.iteration, signature=bytes(64))),
        _replace(block, header=_replace(block.header, message=b"m" * 32)),
    ):
        assert _broken(_examined(forged, tip)) == "messages"


def test_the_miner_has_a_ticket(tip: Position) -> None:
    """A live one, and both messages are its own."""
    assert _broken(_examined(trained(tip, miner="other"), tip)) == "miner"
    mine, theirs = trained(tip), trained(tip, miner="other")
    stolen = _replace(theirs, header=_replace(theirs.header, miner=account("miner")))
    assert _broken(_examined(stolen, tip)) == "miner"
    assert _broken(_examined(_replace(mine, header=_replace(mine.header, lane=1)), tip)) == "miner"
    # A supervisor's ticket mines as well.
    assert validate(_examined(trained(tip, miner="supervisor"), tip))


def test_the_task_is_not_over(tip: Position) -> None:
    """A client's that was settled is not trained on; its own spec counts while it is open."""
    record = TaskRecord(
        *(account("other"), "mine", "image_classification", "digits"),
        msgspec.msgpack.encode(_replace(GENESIS.filler, batch_size=32)),
        *(1, 1, START_MS, 1),
    )
    for outcome, broken in ((None, None), (Outcome(2, 1, 2, 3, 4), "task")):
        draft = tip.state.child()
        draft.put(task_key(b"k" * 32), _replace(record, outcome=outcome))
        on = Position(tip.header, draft.seal(), None, 0, tip.times)
        x = _examined(trained(on, header={"task": b"k" * 32}), on)
        found = [check.rule for check in checks(x) if not check.is_kept]
        assert found == ([broken] if broken else [])


def test_the_header_is_the_one_committed_to(tip: Position) -> None:
    """In the slot before; whatever else the message says."""
    other = {"commitment": trained(tip, slot=8).header.zero_nonce_hash}
    assert _broken(_examined(trained(tip, committed=other), tip)) == "commitment"
    later = trained(tip)
    assert (
        _broken(
            _examined(
                _replace(later, header=_replace(later.header, time_ms=later.header.time_ms + 1)),
                tip,
            )
        )
        == "commitment"
    )


@pytest.mark.parametrize(("parts", "draw"), [(1, -1), (1, 16), (2, 32), (8, 128)])
def test_a_nonce_is_one_of_the_draws(tip: Position, parts: int, draw: int) -> None:
    """`dev` gives one a KiB of samples: 16 for 64 digits."""
    block = trained(tip, winner={"parts": parts})
    _, winner = _halves(block)
    iteration = winner.iteration
    base = base_nonce(iteration.weights_end, iteration.map_hash, winner.signed.beacon)
    for number, expected in ((draw, "draw"), (0, None), (16 * parts - 1, None)):
        nonce = ((base + number) % 2**64).to_bytes(8, "little")
        drawn = _replace(block, header=_replace(block.header, nonce=nonce))
        found = [check.rule for check in checks(_examined(drawn, tip)) if not check.is_kept]
        assert found == ([expected] if expected else []) or found == ["work"]


def test_the_id_is_below_the_target(tip: Position) -> None:
    """An allowed nonce is not enough."""
    assert _broken(_examined(trained(tip, must_win=False), tip)) == "work"


def test_transactions_are_good_where_they_stand(tip: Position) -> None:
    """Signed, in order, once, paid for; those of the header."""
    good = paid(2, "other")
    forged = _replace(good, signature=bytes(64))
    block = trained(tip, [good])
    for transactions in ((), (forged,), (good, good), (paid(2, "other", 2 * PAI),)):
        assert _broken(_examined(_replace(block, transactions=transactions), tip)) == "transactions"
    for wrong in (
        paid(3, "other"),
        paid(2, "other", 5000 * PAI),
        sent("miner", 2, Faucet()),
    ):
        x = _examined(_rooted(tip, wrong), tip)
        assert _broken(x) == "transactions"


def _rooted(tip: Position, transaction: Any) -> Block:
    """Return a block whose header names a transaction that cannot be applied."""
    header = {"tx_root": _replace(trained(tip), transactions=(transaction,)).computed_tx_root()}
    return _replace(trained(tip, header=header), transactions=(transaction,))


def _founding(on: Position, miner: str = "supervisor") -> Block:
    mempool = waiting(on, first_transactions())
    block = mine_founding(GENESIS, on, mempool, key(miner), START_MS)
    assert block is not None
    return block


def _unmined(on: Position, **changed: Any) -> Block:
    """Return a founding block with a good signature and no work in it."""
    miner, time_ms = account("supervisor"), on.header.time_ms + 500
    header, _ = assemble(GENESIS, on, waiting(on, ()), miner, time_ms, is_founding=True)
    header = _replace(header, **changed)
    return Block(header, (), Founding(sign(key("supervisor"), header.id)))


@pytest.mark.parametrize(
    "changed",
    [
        {"time_ms": GENESIS.time_ms + 499},
        {"task": FILLER},
        {"slot": 1},
        {"lane": 1},
        {"message": b"m" * 32},
        {"certificate": b"c" * 32},
    ],
)
def test_founding_blocks_are_plain(root: Position, changed: dict[str, Any]) -> None:
    """Half a second apart, and about no slot."""
    assert _broken(_examined(_unmined(root, **changed), root)) == "founding"


def test_a_founding_block_is_its_miners(root: Position) -> None:
    """Signed, with 2^16 hashes, by somebody who is a supervisor at its end."""
    unmined = _unmined(root)
    assert _broken(_examined(unmined, root)) == "work"
    unsigned = _replace(unmined, proof=Founding(sign(key("other"), unmined.id)))
    assert _broken(_examined(unsigned, root)) == "founding"
    hard = _unmined(root, target=GENESIS.parameters.first_target)
    assert _broken(_examined(hard, root)) == "target"
    assert _broken(_examined(_founding(root, "other"), root)) == "supervisor"


def test_founding_is_over_when_somebody_can_train(tip: Position) -> None:
    """A committee and a miner are there."""
    assert _broken(_examined(_unmined(tip), tip)) == "founding"


def test_a_founding_block_may_follow_while_there_is_no_miner(root: Position) -> None:
    """A supervisor in office is not enough to train with."""
    with ChainStore(None, GENESIS) as store:
        chain = Chain(GENESIS, store)
        first, miners = first_transactions()[:2], first_transactions()[2:]
        alone = mine_founding(GENESIS, root, waiting(root, first), key("supervisor"), START_MS)
        assert alone is not None
        chain.add(alone, START_MS)
        tip = chain.tip
        block = mine_founding(GENESIS, tip, waiting(tip, miners), key("supervisor"), START_MS)
        assert block is not None
        assert block.header.time_ms == alone.header.time_ms + 500
        assert chain.add(block, START_MS).connected == (block,)


def test_a_founding_block_is_made_for_transactions(root: Position) -> None:
    """None of them: no block."""
    assert mine_founding(GENESIS, root, waiting(root, ()), key("supervisor"), START_MS) is None


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
        validate(_examined(other, tip, ahead_ms=other.header.time_ms - block.header.time_ms))
    except (BadEncoding, InvalidBlock):
        return
    assert other.id != block.id
