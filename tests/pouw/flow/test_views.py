"""What there is to see of a node costs little, and stays right while the chain turns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pocqueue.pouw.chain.records import Outcome, TaskRecord
from pocqueue.pouw.flow.views import Views


def _record(total: int) -> TaskRecord:
    outcome = Outcome(height=1, correct=0, total=total, quality=0, paid=0)
    return TaskRecord(
        client=b"c" * 33,
        name="mine",
        task_type="image_classification",
        data="digits",
        requirements=b"",
        reward=1,
        training_fee=0,
        deadline_ms=0,
        height=1,
        outcome=outcome,
    )


class _Made:
    """A chain's state that counts how often its tasks are read."""

    def __init__(self) -> None:
        self.num_read = 0

    def tasks(self) -> dict[bytes, TaskRecord]:
        """Return two that were settled and one that was refunded."""
        self.num_read += 1
        return {bytes([at]): _record(total) for at, total in enumerate((10, 10, 0))}


def _views(state: _Made, block: Any = None) -> Views:
    async def in_chain(work: Any, *args: Any) -> Any:
        return work(*args)

    tip = SimpleNamespace(id=b"tip", state=state)
    core: Any = SimpleNamespace(
        config=SimpleNamespace(enable_production_features=False),
        chain=SimpleNamespace(tip=tip, block_at=lambda _height: block),
        in_chain=in_chain,
    )
    no: Any = None
    return Views(core, no, no, no, no, no, no)


def test_tasks_are_counted_once_a_tip() -> None:
    """However often a node is asked how it stands."""
    state = _Made()
    views = _views(state)
    assert [views._ended() for _ in range(5)] == [(2, 1)] * 5
    assert state.num_read == 1
    views._core.chain.tip.id = b"next"  # type: ignore[misc]
    assert views._ended() == (2, 1)
    assert state.num_read == 2


async def test_payouts_of_a_block_that_is_another_one_now_are_none() -> None:
    """The chain has turned since the task's record was read."""
    views = _views(_Made(), SimpleNamespace(transactions=()))
    assert await views._payouts(b"t" * 32, _record(10), 1) == []
