"""What a member proposes of the open slot."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pocqueue.pouw.committee.turn import Turn
from pocqueue.pouw.flow.open_slot import OpenSlot
from pocqueue.pouw.slots.history import Lane
from pocqueue.pouw.slots.task import LAP, Noise
from pocqueue.pouw.wire.slots import SlotRecord
from tests.pouw.flow.parts import parts

_TASK = b"t" * 32
_MINERS = (b"g" * 33, b"h" * 33)


class _Leader:
    """A leader of every turn; two miners have a message in each slot.

    Args:
        open_slot: of its node.
        noise: of the task; None: it is not private.
    """

    def __init__(self, open_slot: OpenSlot, noise: Noise | None) -> None:
        self._slot, self._noise, self.open_slot = 0, noise, open_slot
        setattr(open_slot, "_collector", self._collector)  # noqa: B010 - it is another one here

    async def proposed(self, turn: int, slot: int) -> list[bytes]:
        """Return the ids of what it proposes."""
        self._slot = slot
        about = cast(Turn, SimpleNamespace(number=turn, committee=SimpleNamespace(epoch=0)))
        self._certificate = SimpleNamespace(task=_TASK, slot=slot, turn=turn)
        value = await self.open_slot.value(about, cast(Any, None), None)
        return [message.iteration.id for message in value.messages]

    def certify(self, turn: int, *ids: bytes) -> None:
        """End a turn with these messages."""
        signed = SimpleNamespace(certificate=SimpleNamespace(turn=turn))
        self.open_slot.certified(cast(SlotRecord, SimpleNamespace(signed=signed, ids=ids)))

    async def _collector(self) -> tuple[Any, Any]:
        history = SimpleNamespace(
            task=SimpleNamespace(id=_TASK, noise=self._noise, num_weights=1),
            next_slot=self._slot,
            num_kept=len(_MINERS),
        )
        return history, SimpleNamespace(value=self._value)

    def _value(self, *args: Any) -> Any:
        takes_part: Callable[[Lane], bool] = args[-1]
        iterations = [
            SimpleNamespace(order=(miner, 0), id=miner[:1])
            for miner in _MINERS
            if takes_part((miner, 0))
        ]
        messages = [SimpleNamespace(iteration=one) for one in iterations]
        return SimpleNamespace(certificate=self._certificate, messages=messages)


@pytest.mark.parametrize("noise", [None, Noise(1.0, 1.0, 4)])
async def test_what_others_may_not_have_been_shown_is_not_proposed_again_for_a_lap(
    noise: Noise | None,
) -> None:
    """The noise of a private task's message may have come to some members alone; of others nothing is left out."""
    async with parts() as node:

        async def limits(_task: bytes, _slot: int) -> dict[bytes, int]:
            return dict.fromkeys(_MINERS, 1)

        lanes = cast(Any, SimpleNamespace(limits=limits))
        node.core.is_shown = lambda _history, _slot, _lane: True
        leader = _Leader(OpenSlot(node.core, node.slots, cast(Any, None), lanes), noise)
        both, good = [b"g", b"h"], [b"g"]
        assert await leader.proposed(0, 0) == both
        leader.certify(0, *both)
        assert await leader.proposed(1, 1) == both
        leader.certify(1, *good)
        assert await leader.proposed(5, 5) == (good if noise else both)
        leader.certify(5, *good)
        assert await leader.proposed(LAP + 1, LAP + 1) == both
        # In a later ballot of the same turn nobody knows which of them it was.
        assert await leader.proposed(LAP + 1, LAP + 1) == ([] if noise else both)
