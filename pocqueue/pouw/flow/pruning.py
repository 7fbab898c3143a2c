"""What a node forgets of slots: maps and weights that no block above the anchor needs."""

from __future__ import annotations

from typing import Final

from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.slots.slot_store import KEPT_MAPS, SlotStore

#: A task without slots for so long before the anchor is over.
_OVER_MS: Final = 600_000


def prune(core: Core, store: SlotStore) -> None:
    """Forget what is that old. In the slots' thread."""
    chain, genesis = core.chain, core.genesis
    anchor, state = chain.anchor.header, chain.tip.state
    for task, newest in store.tasks().items():
        record, has_pay = state.task(task), not genesis.is_filler(task)
        # Ids of fillers are in the order of their generations.
        is_older = genesis.is_filler(anchor.task) and genesis.is_filler(task) and task < anchor.task
        if task == anchor.task:
            store.prune(task, anchor.slot - KEPT_MAPS, has_pay=has_pay)
        elif newest.time_ms < anchor.time_ms - _OVER_MS and (
            is_older or (record is not None and record.outcome is not None)
        ):
            store.prune(task, newest.slot + 2, has_pay=has_pay)
