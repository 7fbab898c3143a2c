"""The rules of a block, in the order in which they are checked: cheap ones first, the first wrong one names the error.

Each is a function named for its rule, here or in `proof`. It returns what it found in a sentence, or raises `Broken`
with what is wrong. `time` may hold later and is held against nobody, so it comes after what only work gives. Two things
stand elsewhere: that a block is canonical and its parent known (`wire.codec`, `chain`), and the rule ``re-execution``,
which takes a trainer (`training.reexecute`) and comes last.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Final

from pocqueue.pouw.chain import proof
from pocqueue.pouw.chain.difficulty import FOUNDING_TARGET, next_target
from pocqueue.pouw.chain.examination import Broken, Check, Examination, short
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.errors import InvalidBlock, InvalidTransaction
from pocqueue.pouw.wire.blocks import MAX_BLOCK_BYTES, Founding

#: How far a block's time may be ahead of the clock of whoever checks it.
MAX_AHEAD_MS: Final = 10_000


def limits(x: Examination) -> str:
    """Bytes of the block, and the network that it is of."""
    if x.block.size > MAX_BLOCK_BYTES:
        raise Broken(f"it has {x.block.size:,} bytes; allowed: {MAX_BLOCK_BYTES:,}.")
    if x.header.network != x.genesis.network:
        raise Broken(
            f"it is of network {short(x.header.network)}, not of {short(x.genesis.network)}."
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
        raise Broken(f"it says {short(x.header.target)}, and {short(due)} is due.")
    return f"{short(due)}…, as is due."


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


def work(x: Examination) -> str:
    """The id is below the target."""
    if not x.header.meets_target:
        raise Broken(f"{short(x.header.id)} is not below the target {short(x.header.target)}.")
    return f"{short(x.header.id)}… is below the target."


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
        raise Broken(f"it says {short(x.header.state)}, and {short(x.after.digest)} comes out.")
    return f"{short(x.after.digest)}…, {len(x.after.diff)} records changed."


Rule = Callable[[Examination], str]
TRAINED: tuple[Rule, ...] = (
    *(limits, height, target),
    *(proof.certificates, proof.messages, proof.miner, proof.task, proof.commitment, proof.draw),
    *(time, work, transactions, state),
)
FOUNDING: tuple[Rule, ...] = (
    *(limits, height, target),
    proof.founding,
    *(work, transactions, state),
    proof.supervisor,
    time,
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
