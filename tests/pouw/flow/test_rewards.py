"""What a block brings an account."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.flow.rewards import rewards_of
from pocqueue.pouw.wire.transactions import Evidence
from tests.pouw.offences import found_false
from tests.pouw.support import GENESIS, account, after, founded, signed


def test_a_bounty_is_earned_in_the_block_of_its_evidence() -> None:
    """By the finder alone, and not again in the next block."""
    before = founded("finder", "other")
    shown = signed("other", Evidence(found_false()), 1)
    state = after(before, shown, miner="supervisor")

    def earned(name: str, height: int, *transactions: Any) -> int:
        header = SimpleNamespace(height=height, miner=account("supervisor"))
        block = SimpleNamespace(header=header, transactions=transactions, proof=None)
        return rewards_of(GENESIS, before, state, cast(Any, block), account(name))

    height = state.clock.height
    assert earned("finder", height, shown) == 20 * PAI
    assert earned("other", height, shown) == 0
    assert earned("finder", height) == 0
    again = signed("other", Evidence(found_false(slot=10)), 2)
    assert earned("finder", height + 1, again) == 0
