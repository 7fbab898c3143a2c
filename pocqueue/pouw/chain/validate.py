"""The rules of a block, in the order in which they are checked: cheap ones first, the first wrong one names the error.

Each is a function named for its rule. It returns what it found in a sentence, or raises `Broken` with what is wrong.
Two things stand elsewhere: that a block is canonical and its parent known (`wire.codec`, `chain`), and the rule
``re-execution``, which takes a trainer (`training.reexecute`) and comes last.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from pocqueue.pouw.chain.apply import apply_block
from pocqueue.pouw.chain.difficulty import FOUNDING_GAP_MS, FOUNDING_TARGET, next_target
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.mining import allowed_draws, lanes_of, spec_of
from pocqueue.pouw.chain.records import SUPERVISOR
from pocqueue.pouw.chain.signatures import verify
from pocqueue.pouw.chain.state import Draft, State
from pocqueue.pouw.chain.tickets import is_founding_allowed
from pocqueue.pouw.errors import InvalidBlock, InvalidTransaction, SlotError
from pocqueue.pouw.slots.certificate import verify_signed
from pocqueue.pouw.slots.draws import base_nonce, is_allowed
from pocqueue.pouw.wire.blocks import MAX_BLOCK_BYTES, Block, Founding, Header, Trained
from pocqueue.pouw.wire.hashes import ZERO, root_of_path
from pocqueue.pouw.wire.slots import Membership

#: How far a block's time may be ahead of the clock of whoever checks it.
MAX_AHEAD_MS: Final = 10_000


class Broken(Exception):
    """A rule is broken; the message says by which value, and what is allowed."""


class Check(NamedTuple):
    """What came of one rule."""

    rule: str  #: its short name
    is_kept: bool
    finding: str  #: a sentence


@dataclass(frozen=True)
class Examination:
    """A block, and all that it is judged by."""

    genesis: Genesis
    block: Block
    parent: Header
    state: State  #: after the parent
    times: Sequence[int]  #: `time_ms` of the parent and the blocks before it, 11 at most
    now_ms: int

    @property
    def header(self) -> Header:
        """Return the block's header."""
        return self.block.header

    @cached_property
    def draft(self) -> Draft:
        """Return the state after the block.

        Raises:
            InvalidTransaction: one of its transactions has no place there.
        """
        draft = self.state.child()
        apply_block(
            self.genesis,
            draft,
            self.header,
            self.block.transactions,
            is_founding=isinstance(self.block.proof, Founding),
        )
        return draft

    @cached_property
    def after(self) -> State:
        """Return the state after the block, which does not change any more."""
        return self.draft.seal()

    @property
    def proof(self) -> Trained:
        """Return the proof of a trained block."""
        assert isinstance(self.block.proof, Trained)
        return self.block.proof


def limits(x: Examination) -> str:
    """Bytes of the block, and the network that it is of."""
    if x.block.size > MAX_BLOCK_BYTES:
        raise Broken(f"it has {x.block.size:,} bytes; allowed: {MAX_BLOCK_BYTES:,}.")
    if x.header.network != x.genesis.network:
        raise Broken(
            f"it is of network {_hex(x.header.network)}, not of {_hex(x.genesis.network)}."
        )
    return f"{x.block.size:,} bytes, {len(x.block.transactions)} transactions."


def height(x: Examination) -> str:
    """One above its parent's."""
    if x.header.height != x.parent.height + 1:
        raise Broken(f"it says {x.header.height}, and its parent's is {x.parent.height}.")
    return f"{x.header.height}, one above its parent's."


def target(x: Examination) -> str:
    """What the chain up to the parent says: half of all ids are below 2^255."""
    due = next_target(x.genesis.parameters, x.state.clock)
    if isinstance(x.block.proof, Founding):
        due = FOUNDING_TARGET
    if x.header.target != due:
        raise Broken(f"it says {_hex(x.header.target)}, and {_hex(due)} is due.")
    return f"{_hex(due)}…, as is due."


def time(x: Examination) -> str:
    """Later than the median of the last 11 blocks, and not ahead of the clock."""
    median = statistics.median_high(x.times)
    if x.header.time_ms <= median:
        raise Broken(
            f"{x.header.time_ms} is not later than {median}, the median of the last blocks."
        )
    ahead_ms = x.header.time_ms - x.now_ms
    if ahead_ms > MAX_AHEAD_MS:
        raise Broken(f"it is {ahead_ms} ms ahead of this clock; allowed: {MAX_AHEAD_MS}.")
    return f"{x.header.time_ms - median} ms after the median of the last blocks."


def founding(x: Examination) -> str:
    """A plain block is made only while nobody could make another one, and by its miner."""
    if not is_founding_allowed(x.state):
        raise Broken("a committee is in office and miners are there; allowed: trained blocks.")
    gap_ms = x.header.time_ms - x.parent.time_ms
    if gap_ms < FOUNDING_GAP_MS:
        raise Broken(f"it comes {gap_ms} ms after its parent; allowed: {FOUNDING_GAP_MS} and more.")
    header = x.header
    blanks = (header.task, header.message, header.certificate, header.slot, header.lane)
    if blanks != (ZERO, ZERO, ZERO, 0, 0):
        raise Broken("it names a slot; allowed: zeros for task, slot, lane, message, certificate.")
    assert isinstance(x.block.proof, Founding)
    if not verify(header.miner, header.id, x.block.proof.signature):
        raise Broken(f"the signature is not that of its miner {header.miner.hex()}.")
    return "nobody can make a trained block yet; signed by its miner."


def certificates(x: Examination) -> str:
    """Two slots in a row, each certified by the committee of its epoch."""
    office = x.state.office
    if office is None or office.ticket is None:
        raise Broken("no committee is in office; allowed: founding blocks.")
    for member in (x.proof.committed, x.proof.winner):
        certificate = member.signed.certificate
        committee = x.state.committee(certificate.epoch)
        # The one before may still have certified the slot in which its successor came into office.
        if certificate.network != x.genesis.network:
            raise Broken(f"slot {certificate.slot} is of network {_hex(certificate.network)}.")
        if committee is None or certificate.epoch < office.epoch - 1:
            raise Broken(
                f"slot {certificate.slot} is of epoch {certificate.epoch}, and {office.epoch} is on."
            )
        try:
            verify_signed(member.signed, committee)
        except SlotError as exc:
            raise Broken(f"slot {certificate.slot}: {exc}") from None
    before, now = (member.signed.certificate for member in (x.proof.committed, x.proof.winner))
    follows = (now.task, now.slot) == (before.task, before.slot + 1) and now.epoch >= before.epoch
    if now.previous != before.id or not follows:
        raise Broken(
            f"the certificate of slot {now.slot} does not follow on that of {before.slot}."
        )
    if (x.header.certificate, x.header.task, x.header.slot) != (now.id, now.task, now.slot):
        raise Broken("the certificate is not the one that the header names.")
    return f"slots {before.slot} and {now.slot}, signed by the committee of epoch {now.epoch}."


def messages(x: Examination) -> str:
    """Both messages are in their certified slots, and the second is the one that the header names."""
    for member in (x.proof.committed, x.proof.winner):
        _check_member(member)
    if x.header.message != x.proof.winner.iteration.id:
        raise Broken("the winner's message is not the one that the header names.")
    count = x.proof.winner.signed.certificate.count
    return f"each under the Merkle root of its slot, the second one of {count}."


def miner(x: Examination) -> str:
    """Both messages are of the header's miner and lane, which has a live ticket for it."""
    header = x.header
    for member in (x.proof.committed, x.proof.winner):
        if member.iteration.order != (header.miner, header.lane):
            raise Broken("a message is of another miner or lane than the header's.")
    lanes = lanes_of(x.state, header.miner)
    if lanes == 0:
        raise Broken(f"{header.miner.hex()} has no live ticket of a miner or supervisor.")
    if header.lane >= lanes:
        raise Broken(f"lane {header.lane} of {lanes} that the stake of its miner allows.")
    return f"{header.miner.hex()}, lane {header.lane} of {lanes}."


def task(x: Examination) -> str:
    """It is the network's own task, or a client's that is not over."""
    record = x.state.task(x.header.task)
    if record is not None and record.outcome is not None:
        raise Broken(f"{_hex(x.header.task)} was over at height {record.outcome.height}.")
    return "the network's own." if record is None else f"{record.name!r} of a client."


def commitment(x: Examination) -> str:
    """The message of the slot before has the hash of this header, from before anybody knew its draws."""
    committed = x.proof.committed.iteration.commitment
    if committed != x.header.zero_nonce_hash:
        raise Broken(f"its miner committed itself to another header, {_hex(committed)}.")
    return f"made in slot {x.proof.committed.iteration.slot}, before its beacon was known."


def draw(x: Examination) -> str:
    """The nonce is one of those that this iteration may draw."""
    winner = x.proof.winner
    iteration, spec = winner.iteration, spec_of(x.genesis, x.state, x.header.task)
    count = allowed_draws(x.genesis, spec, iteration.parts)
    base = base_nonce(iteration.weights_end, iteration.map_hash, winner.signed.beacon)
    if not is_allowed(x.header.nonce, base, count):
        raise Broken(f"nonce {x.header.nonce.hex()} is none of the {count} that it may draw.")
    return f"one of the {count} nonces that its work allows."


def work(x: Examination) -> str:
    """The id is below the target."""
    if not x.header.meets_target:
        raise Broken(f"{_hex(x.header.id)} is not below the target {_hex(x.header.target)}.")
    return f"{_hex(x.header.id)}… is below the target."


def transactions(x: Examination) -> str:
    """They are those of the header's root, and each is good where it stands."""
    if x.block.computed_tx_root() != x.header.tx_root:
        raise Broken("they are not those of the header's root.")
    try:
        _ = x.draft
    except InvalidTransaction as exc:
        raise Broken(str(exc)) from None
    return f"{len(x.block.transactions)}, each signed, in its sender's order and paid for."


def state(x: Examination) -> str:
    """The header has the digest of the state after the block."""
    if x.header.state != x.after.digest:
        raise Broken(f"it says {_hex(x.header.state)}, and {_hex(x.after.digest)} comes out.")
    return f"{_hex(x.after.digest)}…, {len(x.after.diff)} records changed."


def supervisor(x: Examination) -> str:
    """Whoever makes a founding block is a supervisor, at the latest by this block."""
    if x.after.live_ticket(x.header.miner, SUPERVISOR) is None:
        raise Broken(f"{x.header.miner.hex()} has no live ticket of a supervisor.")
    return f"{x.header.miner.hex()} has a ticket of a supervisor."


def _check_member(member: Membership) -> None:
    iteration, certificate = member.iteration, member.signed.certificate
    own = (iteration.network, iteration.task, iteration.slot, iteration.previous)
    if own != (certificate.network, certificate.task, certificate.slot, certificate.previous):
        raise Broken(f"a message of slot {iteration.slot} stands with another slot's certificate.")
    root = root_of_path(iteration.id, member.index, certificate.count, member.path)
    if root != certificate.root:
        raise Broken(
            f"message {_hex(iteration.id)} is none of slot {certificate.slot}'s {certificate.count}."
        )
    # Its id is certified; but with any signature in it the block would have as many spellings.
    if not verify(iteration.miner, iteration.id, iteration.signature):
        raise Broken(f"the signature of message {_hex(iteration.id)} is not its miner's.")


def _hex(value: bytes) -> str:
    return value[:8].hex()


Rule = Callable[[Examination], str]
TRAINED: tuple[Rule, ...] = (
    *(limits, height, target, time),
    *(certificates, messages, miner, task, commitment, draw),
    *(work, transactions, state),
)
FOUNDING: tuple[Rule, ...] = (
    *(limits, height, target, time),
    founding,
    *(work, transactions, state, supervisor),
)


def checks(x: Examination) -> Iterator[Check]:
    """Yield what comes of each rule, up to the first that is broken."""
    for rule in FOUNDING if isinstance(x.block.proof, Founding) else TRAINED:
        name = rule.__name__
        try:
            yield Check(name, True, rule(x))
        except Broken as exc:
            yield Check(name, False, str(exc))
            return


def validate(x: Examination) -> State:
    """Return the state after a block that keeps all rules of this module.

    Raises:
        InvalidBlock: of the first rule that it breaks.
    """
    for check in checks(x):
        if not check.is_kept:
            raise InvalidBlock(check.rule, check.finding)
    return x.after
