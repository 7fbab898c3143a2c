"""What a member of a committee works with, turn after turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.hearing import Hearing
from pocqueue.pouw.flow.open_slot import OpenSlot
from pocqueue.pouw.flow.proposals import Judge
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.wire.evidence import TwoProposals, TwoVotes


class MaySign(Protocol):
    """See `Readiness.may_sign`."""

    def __call__(self, *, is_alone: bool) -> Awaitable[bool]: ...


@dataclass(eq=False)
class Bench:
    """What a member works with, turn after turn."""

    core: Core
    slots: SlotFlow
    store: SlotStore
    hearing: Hearing
    judge: Judge
    open_slot: OpenSlot
    may_sign: MaySign
    #: Hears what shows that a member has contradicted itself.
    on_fault: Callable[[TwoVotes | TwoProposals], None]
    #: Epochs and places of members whose wrong shares were told of: one that gives more is no news.
    told: set[tuple[int, int]] = field(default_factory=set)
