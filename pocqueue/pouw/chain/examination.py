"""A block under examination: all that it is judged by, and what came of each rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pocqueue.pouw.chain.apply import apply_block
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.state import Draft, State
from pocqueue.pouw.wire.blocks import Block, Founding, Header, Trained


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


def short(value: bytes) -> str:
    return value[:8].hex()
