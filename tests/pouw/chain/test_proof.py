"""Every rule of a proof, broken one by one: founding blocks, certificates, messages, commitment, draws."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pocqueue.pouw.chain.candidate import assemble, mine_founding
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.records import (
    CLOCK,
    OFFICE,
    Office,
    Outcome,
    TaskRecord,
    committee_key,
    task_key,
)
from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.chain.validate import checks, validate
from pocqueue.pouw.slots.draws import base_nonce
from pocqueue.pouw.wire.blocks import Block, Founding, Trained
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.slots import Membership
from tests.pouw.blocks import (
    FILLER,
    GENESIS,
    START_MS,
    broken,
    examined,
    first_transactions,
    founding,
    trained,
    waiting,
)
from tests.pouw.support import account, key

_replace = msgspec.structs.replace


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
    assert broken(examined(trained(tip, **changed), tip)) == "certificates"


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
    draft.put(OFFICE, Office(2, b"t" * 32, height=1))
    on = Position(tip.header, draft.seal(), None, 0, tip.times)
    block = trained(
        on,
        before={"epoch": before, "anchor_height": 0},
        certificate={"epoch": now, "anchor_height": 1},
    )
    found = [check.rule for check in checks(examined(block, on)) if not check.is_kept]
    assert found == ([] if is_good else ["certificates"])


@pytest.mark.parametrize(
    ("epoch", "anchor", "height", "is_good"),
    [(2, 1, 40, True), (2, 0, 40, False), (1, 0, 9, True), (1, 5, 9, True), (1, 0, 10, False)],
)
def test_a_committee_has_a_term(
    tip: Position, epoch: int, anchor: int, height: int, is_good: bool
) -> None:
    """In office from block 1 on by what it says is final; out of office eight blocks after its successor came."""
    draft, committee = tip.state.child(), tip.state.committee(0)
    assert committee is not None
    for each in (1, 2):
        draft.put(committee_key(each), _replace(committee, epoch=each))
    draft.put(OFFICE, Office(2, b"t" * 32, height=1))
    draft.put(CLOCK, _replace(draft.clock, height=height - 1))
    parent = _replace(tip.header, height=height - 1)
    on = Position(parent, draft.seal(), None, 0, tip.times)
    block = trained(
        on,
        before={"epoch": epoch, "anchor_height": 0},
        certificate={"epoch": epoch, "anchor_height": anchor},
    )
    found = [check.rule for check in checks(examined(block, on)) if not check.is_kept]
    assert found == ([] if is_good else ["certificates"])


@pytest.mark.parametrize(("before", "now", "is_good"), [(0, 0, True), (0, 3, True), (3, 3, False)])
def test_a_committee_ends_itself(tip: Position, before: int, now: int, is_good: bool) -> None:
    """Its last slot is the one that says that its successor's first block, 3, is final: its keys make none after that."""
    draft, committee = tip.state.child(), tip.state.committee(0)
    assert committee is not None
    draft.put(committee_key(1), _replace(committee, epoch=1))
    draft.put(OFFICE, Office(1, b"t" * 32, height=3))
    on = Position(tip.header, draft.seal(), None, 0, tip.times)
    block = trained(
        on, before={"anchor_height": before}, certificate={"anchor_height": now, "epoch": 0}
    )
    found = [check.rule for check in checks(examined(block, on)) if not check.is_kept]
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
        assert broken(examined(forged, tip)) == "certificates"
    named = _replace(block, header=_replace(block.header, certificate=b"c" * 32))
    assert broken(examined(named, tip)) == "certificates"


def test_without_anybody_in_office_nothing_is_certified(root: Position) -> None:
    """So only founding blocks can be made."""
    assert broken(examined(trained(root), root)) == "certificates"


def test_messages_are_those_of_their_slots(tip: Position) -> None:
    """Under the root, of this slot, signed, and the one that the header names."""
    block = trained(tip)
    committed, winner = _halves(block)
    assert broken(examined(trained(tip, certificate={"root": b"r" * 32}), tip)) == "messages"
    assert broken(examined(trained(tip, before={"count": 2}), tip)) == "messages"
    assert (
        broken(examined(trained(tip, winner={"slot": 10}, certificate={"slot": 9}), tip))
        == "messages"
    )
    assert (
        broken(examined(trained(tip, committed={"slot": 7}, before={"slot": 8}), tip)) == "messages"
    )
    assert broken(examined(trained(tip, winner={"signature": bytes(64)}), tip)) == "messages"
    for forged in (
        _with(block, "winner", path=(ZERO,)),
        _with(block, "winner", index=1),
        _with(block, "committed", iteration=winner.iteration),
        _with(block, "winner", iteration=_replace(winner.iteration, parts=2)),
        _with(block, "committed", iteration=_replace(committed.iteration, signature=bytes(64))),
        _replace(block, header=_replace(block.header, message=b"m" * 32)),
    ):
        assert broken(examined(forged, tip)) == "messages"


def test_the_miner_has_a_ticket(tip: Position) -> None:
    """A live one, and both messages are its own."""
    assert broken(examined(trained(tip, miner="other"), tip)) == "miner"
    mine, theirs = trained(tip), trained(tip, miner="other")
    stolen = _replace(theirs, header=_replace(theirs.header, miner=account("miner")))
    assert broken(examined(stolen, tip)) == "miner"
    assert broken(examined(_replace(mine, header=_replace(mine.header, lane=1)), tip)) == "miner"
    # A supervisor's ticket mines as well.
    assert validate(examined(trained(tip, miner="supervisor"), tip))


def test_the_task_is_not_over(tip: Position) -> None:
    """A client's that was settled is not trained on; its own spec counts while it is open."""
    record = TaskRecord(
        *(account("other"), "mine", "image_classification", "digits"),
        msgspec.msgpack.encode(_replace(GENESIS.filler, batch_size=32)),
        *(1, 1, START_MS, 1),
    )
    for outcome, expected in ((None, []), (Outcome(2, 0, 1, 2, 3, 4), ["task"])):
        draft = tip.state.child()
        draft.put(task_key(b"k" * 32), _replace(record, outcome=outcome))
        on = Position(tip.header, draft.seal(), None, 0, tip.times)
        x = examined(trained(on, header={"task": b"k" * 32}), on)
        found = [check.rule for check in checks(x) if not check.is_kept]
        assert found == expected
    # On a chain that does not have its order nobody trains it, whatever a committee has certified of it.
    assert broken(examined(trained(on, header={"task": b"k" * 32}), tip)) == "task"


def test_the_header_is_the_one_committed_to(tip: Position) -> None:
    """In the slot before; whatever else the message says."""
    other = {"commitment": trained(tip, slot=8).header.zero_nonce_hash}
    assert broken(examined(trained(tip, committed=other), tip)) == "commitment"
    later = trained(tip)
    assert (
        broken(
            examined(
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
    for number, is_refused in ((draw, True), (0, False), (16 * parts - 1, False)):
        nonce = ((base + number) % 2**64).to_bytes(8, "little")
        drawn = _replace(block, header=_replace(block.header, nonce=nonce))
        found = [check.rule for check in checks(examined(drawn, tip)) if not check.is_kept]
        assert ("draw" in found) == is_refused


@pytest.mark.parametrize(("entries", "is_refused"), [(5, True), (6, False)])
def test_a_map_of_few_entries_draws_little(tip: Position, entries: int, is_refused: bool) -> None:
    """One nonce for each of them, whatever its samples would allow: work that moved nothing is none."""
    block = trained(tip, winner={"entries": entries})
    _, winner = _halves(block)
    iteration = winner.iteration
    base = base_nonce(iteration.weights_end, iteration.map_hash, winner.signed.beacon)
    drawn = _replace(block.header, nonce=((base + 5) % 2**64).to_bytes(8, "little"))
    found = [
        check.rule
        for check in checks(examined(_replace(block, header=drawn), tip))
        if not check.is_kept
    ]
    assert ("draw" in found) == is_refused


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
    assert broken(examined(_unmined(root, **changed), root)) == "founding"


def test_a_founding_block_is_its_miners(root: Position) -> None:
    """Signed, with 2^16 hashes, by somebody who is a supervisor at its end."""
    unmined = _unmined(root)
    assert broken(examined(unmined, root)) == "work"
    unsigned = _replace(unmined, proof=Founding(sign(key("other"), unmined.id)))
    assert broken(examined(unsigned, root)) == "founding"
    hard = _unmined(root, target=GENESIS.parameters.first_target)
    assert broken(examined(hard, root)) == "target"
    assert broken(examined(founding(root, "other"), root)) == "supervisor"


def test_founding_is_over_when_somebody_can_train(tip: Position) -> None:
    """A committee and a miner are there."""
    assert broken(examined(_unmined(tip), tip)) == "founding"


def test_founding_is_allowed_again_when_nobody_trains(tip: Position) -> None:
    """By the time of the header: one that comes long after its parent lacks its hashes only."""
    late = {"time_ms": tip.header.time_ms + 30 * GENESIS.parameters.block_ms}
    assert broken(examined(_unmined(tip, **late), tip)) == "founding"
    late["time_ms"] += 1
    assert broken(examined(_unmined(tip, **late), tip)) == "work"


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
