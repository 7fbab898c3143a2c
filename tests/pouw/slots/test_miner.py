"""A lane says one thing a slot, goes on from the residual that counts, and finds the blocks that it drew."""

from __future__ import annotations

import pytest

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import NodeDataError, SlotError
from pocqueue.pouw.slots.draws import base_nonce, is_allowed
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.messages import check
from pocqueue.pouw.slots.miner import Candidate, LaneMiner, Work
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.training.iterate import iterate
from pocqueue.pouw.training.messages import Verdict
from pocqueue.pouw.training.models import Model, fixed_arithmetic
from pocqueue.pouw.training.reexecute import reexecute
from pocqueue.pouw.wire.blocks import Block, Header, Trained
from pocqueue.pouw.wire.hashes import root_of_path
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import SlotRecord
from tests.pouw.slots.support import KEYS, LANES, NETWORK, TASK, MadeUp, decided, grow, made_up

_EASY = b"\xff" * 32
_HARD = bytes(32)


def _candidate(slot: int, target: bytes = _EASY) -> Candidate:
    zero, (account, lane) = bytes(32), LANES[0]
    header = Header(
        *(1, NETWORK, 1, zero, zero, zero, 5, target, account, lane),
        *(TASK.id, slot, zero, zero, bytes(8)),
    )
    return Candidate(header, ())


def _said(
    miner: LaneMiner, work: Work | None, candidate: Candidate | None = None
) -> IterationWithMap:
    assert work is not None
    return miner.message(work, _made(work), 1, candidate, lambda _: None)


def _made(work: Work) -> MadeUp:
    return made_up(work.theta, b"%d" % work.slot)


def _residual(miner: LaneMiner) -> bytes | None:
    work = miner.work()
    assert work is not None
    return work.residual


def _certify(history: SlotHistory, *sent: IterationWithMap) -> SlotRecord:
    record = decided(history, *sent).slot.record
    history.add(history.check(record))
    return record


def test_a_message_is_one_that_everybody_takes() -> None:
    """Signed, for the open slot, after its certificate."""
    history = SlotHistory(TASK, NETWORK)
    grow(history, KEYS[1])
    sent = _said(LaneMiner(history, KEYS[0]), LaneMiner(history, KEYS[0]).work())
    check(sent, TASK, NETWORK, 1, 1)
    assert sent.iteration.previous == history.previous


def test_a_slot_has_one_message() -> None:
    """Another one is never made, and the first may be sent again while the slot is open."""
    history = SlotHistory(TASK, NETWORK)
    miner = LaneMiner(history, KEYS[0])
    work = miner.work()
    sent = _said(miner, work)
    assert (miner.work(), miner.current) == (None, sent)
    with pytest.raises(SlotError, match="sent: a message of slot 0 was made already"):
        _said(miner, work)
    again = LaneMiner(history, KEYS[0], sent=sent)
    assert (again.work(), again.current) == (None, sent)
    _certify(history, sent)
    assert miner.current is None


def test_a_message_that_is_not_on_disk_is_none() -> None:
    """The disk is full: nothing is to be sent, and the slot's work is due again."""
    miner = LaneMiner(SlotHistory(TASK, NETWORK), KEYS[0])
    work = miner.work()
    assert work is not None

    def write(_: IterationWithMap) -> None:
        raise NodeDataError("the disk is full")

    with pytest.raises(NodeDataError):
        miner.message(work, made_up(work.theta, b"seed"), 1, None, write)
    assert (miner.work(), miner.current) == (work, None)


def test_a_residual_counts_if_its_message_is_certified() -> None:
    """Else the one before stays; a new lap begins with none."""
    history = SlotHistory(TASK, NETWORK)
    miner = LaneMiner(history, KEYS[0])
    assert _residual(miner) is None
    work = miner.work()
    assert work is not None
    _certify(history, _said(miner, work))
    after = _made(work).residual
    assert _residual(miner) == after
    _said(miner, miner.work())
    grow(history, KEYS[1])
    assert _residual(miner) == after
    grow(history)
    assert _residual(miner) == after
    while history.next_slot < 7:
        grow(history)
    _certify(history, _said(miner, miner.work()))
    assert history.next_slot == 8
    assert _residual(miner) is None


@pytest.mark.parametrize("is_certified", [True, False])
def test_a_miner_restarted_within_a_lap_sits_it_out(is_certified: bool) -> None:
    """Its residual is lost: its map would be another than the one that is executed again."""
    history = SlotHistory(TASK, NETWORK)
    miner = LaneMiner(history, KEYS[0])
    _certify(history, _said(miner, miner.work()))
    second = _said(miner, miner.work())
    _certify(history, *[second] * is_certified)
    for sent in (None, second):
        assert LaneMiner(history, KEYS[0], sent=sent).work() is None
    while history.next_slot < 8:
        grow(history)
    assert _residual(LaneMiner(history, KEYS[0], sent=second)) is None


def test_a_miner_restarted_before_anything_of_a_lap_was_certified_goes_on() -> None:
    """What it sent for the open slot it sends again; later ones begin at zero."""
    history = SlotHistory(TASK, NETWORK)
    miner = LaneMiner(history, KEYS[0])
    lost = _said(miner, miner.work())
    again = LaneMiner(history, KEYS[0], sent=lost)
    assert (again.work(), again.current) == (None, lost)
    grow(history, KEYS[1])
    assert _residual(again) is None


def _mined(
    history: SlotHistory, target: bytes = _EASY, *, skip: int | None = None
) -> list[Block | None]:
    """Return what two slots give, of which one may be without the miner's message."""
    miner, blocks = LaneMiner(history, KEYS[0]), []
    for slot in (0, 1):
        sent = _said(miner, miner.work(), _candidate(slot + 1, target))
        record = _certify(history, *[sent] * (skip != slot))
        blocks.append(miner.certified(record, lambda parts, entries: 16 * parts))
    return blocks


def test_a_draw_below_the_target_makes_a_block() -> None:
    """With both messages proved, the block that was committed to, and a nonce of the beacon."""
    history = SlotHistory(TASK, NETWORK)
    nothing, block = _mined(history)
    assert nothing is None
    assert block is not None
    assert isinstance(block.proof, Trained)
    for proof in (block.proof.committed, block.proof.winner):
        root = root_of_path(proof.iteration.id, proof.index, 1, proof.path)
        assert root == proof.signed.certificate.root
    committed, winner = block.proof.committed.iteration, block.proof.winner.iteration
    assert (committed.slot, winner.slot, block.header.slot) == (0, 1, 1)
    assert (
        committed.commitment == block.header.zero_nonce_hash == _candidate(1).header.zero_nonce_hash
    )
    assert history.signed is not None
    base = base_nonce(winner.weights_end, winner.map_hash, history.signed.beacon)
    assert is_allowed(block.header.nonce, base, 1)
    assert (block.header.message, block.header.certificate) == (winner.id, history.previous)


@pytest.mark.parametrize(
    ("target", "skip"), [(_HARD, None), (_EASY, 0), (_EASY, 1)], ids=["target", "first", "second"]
)
def test_no_block_without_luck_and_both_messages(target: bytes, skip: int | None) -> None:
    """The commitment's message has to be certified as well as the winner's."""
    assert _mined(SlotHistory(TASK, NETWORK), target, skip=skip) == [None, None]


def test_a_block_is_of_the_slot_that_was_committed_to() -> None:
    """Not of a later one, if this lane did not hear of the slot between."""
    history = SlotHistory(TASK, NETWORK)
    miner = LaneMiner(history, KEYS[0])
    assert (
        miner.certified(_certify(history, _said(miner, miner.work(), _candidate(1))), min) is None
    )
    grow(history, KEYS[1])
    record = _certify(history, _said(miner, miner.work(), _candidate(3)))
    assert miner.certified(record, lambda parts, entries: 16) is None


def test_a_message_without_a_candidate_commits_to_nothing() -> None:
    """It is work all the same."""
    history = SlotHistory(TASK, NETWORK)
    miner = LaneMiner(history, KEYS[0])
    sent = _said(miner, miner.work())
    assert sent.iteration.commitment == bytes(32)
    assert miner.certified(_certify(history, sent), lambda parts, entries: 16) is None


def test_another_key_is_another_lane() -> None:
    """Of which nothing is known here, so that it begins at zero."""
    history = SlotHistory(TASK, NETWORK)
    miner = LaneMiner(history, KEYS[0])
    _certify(history, _said(miner, miner.work()))
    assert _residual(LaneMiner(history, SigningKey.generate())) is None


def test_what_a_lane_says_can_be_executed_again() -> None:
    """Though it was restarted in its first lap, and some of its messages were not certified."""
    with fixed_arithmetic():
        task = TaskSpec(b"r" * 32, "MLP", (32,), "digits", 32, 0.3, 0.02)
        model, history = Model(task), SlotHistory(task, NETWORK)
        miner = LaneMiner(history, KEYS[0])
        for slot in range(20):
            work = miner.work()
            if slot in (5, 6, 7):
                assert work is None
                _certify(history)
                continue
            assert work is not None
            assert (work.residual is None) == (slot in (0, 8, 9, 16))
            account, lane = miner.lane
            done = iterate(
                *(model, work.theta, work.residual), slot=slot, miner=account, lane=lane, parts=2
            )
            sent = miner.message(work, done, 2, None, lambda _: None)
            is_certified = slot not in (2, 8, 11)
            _certify(history, *[sent] * is_certified)
            if is_certified:
                lap = history.lap(slot, miner.lane)
                verdict = reexecute(model, lap, miner=account, lane=lane, published=done.map)
                assert verdict == Verdict(0, sent.iteration.entries, 1.0, True, done.weights_end)
            if slot == 4:
                miner = LaneMiner(history, KEYS[0], sent=sent)
