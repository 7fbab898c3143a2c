"""Audits stand behind everything else that the trainer has to do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from pocqueue.pouw.flow.audit import MAX_LOOKED_AT, Audits, Choice
from pocqueue.pouw.flow.core import Tasks
from pocqueue.pouw.security import SecuritySystem
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.slots import Iteration


def _made_up(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


async def test_an_audit_waits_until_the_trainer_has_nothing_else_to_do() -> None:
    """Mining and blocks are not behind it; once they are done it goes on."""
    asked, trained_over = asyncio.Event(), asyncio.Event()

    class Trainer:
        is_busy = True

        @property
        def is_idle(self) -> bool:
            asked.set()
            return not self.is_busy

    async def train_over(_iteration: Iteration) -> None:
        assert not trainer.is_busy
        trained_over.set()

    trainer, tasks = Trainer(), Tasks("[node]")
    audits = Audits(
        _made_up(trainer=trainer, name="[node]"), _made_up(train_over=train_over), tasks
    )
    try:
        audits.begin(Choice(cast(Iteration, _made_up(slot=1)), 0.0))
        async with asyncio.timeout(60):
            await asked.wait()
            asked.clear()
            await asked.wait()
            assert not trained_over.is_set()
            trainer.is_busy = False
            await trained_over.wait()
    finally:
        await tasks.close()


def test_a_slot_of_many_messages_is_looked_at_in_part(monkeypatch: Any) -> None:
    """No more of them than memory and time allow, whoever sends so many."""
    system, looked_at = SecuritySystem("node"), list[int]()

    def scores(maps: list[Any], _num_weights: int) -> list[float]:
        looked_at.append(len(maps))
        return [0.0] * len(maps)

    monkeypatch.setattr(system["gradient_detector"], "scores", scores)
    core = _made_up(security=system, account=b"node")
    audits = Audits(core, cast(Any, None), cast(Any, None))
    messages = [
        _made_up(map=b"", iteration=_made_up(id=bytes([number]), miner=b"m"))
        for number in range(MAX_LOOKED_AT + 1)
    ]
    record = _made_up(signed=_made_up(beacon=b"beacon"))
    advance = _made_up(slot=_made_up(messages=tuple(messages), record=record))
    task = cast(TaskSpec, _made_up(num_weights=100, cap=64))
    assert audits.choose(task, advance) is not None
    assert looked_at == [MAX_LOOKED_AT]
