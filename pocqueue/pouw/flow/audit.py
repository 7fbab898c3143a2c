"""Looks at the messages of certified slots, not only at those that win blocks.

A message is trained over if it stands far from what the others of its slot say, or if the slot's beacon, which its
miner did not know, chooses it: one of eight. What comes of it is told, and nothing else follows here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from random import SystemRandom
from typing import NamedTuple

from pocqueue.pouw.errors import ChainError, InvalidBlock, TrainingError
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.core import Core, Tasks
from pocqueue.pouw.slots.history import Advance
from pocqueue.pouw.slots.maps import decode_map
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.slots import Iteration

#: One of so many messages is chosen by the beacon.
ONE_OF = 8
#: Messages of a slot that are looked at; of more, so many drawn by lot.
MAX_LOOKED_AT = 64
#: The trainer is asked this often whether it has nothing else to do, and for so long.
_LOOK_S, _PATIENCE_S = 0.02, 30.0

_random = SystemRandom()
_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """What is to be trained over, and why."""

    iteration: Iteration
    score: float


class Audits:
    """Audits of a node, one at a time; what comes while one goes on is left to others.

    Args:
        core, blocks: of the node.
        tasks: where they are awaited.
    """

    def __init__(self, core: Core, blocks: BlockFlow, tasks: Tasks) -> None:
        self._core, self._blocks, self._tasks = core, blocks, tasks
        self._is_busy = False
        #: How many messages were trained over.
        self.num_done = 0

    def choose(self, task: TaskSpec, advance: Advance) -> Choice | None:
        """Return the message of a slot that is most worth it; None: none is, or an audit goes on. In a thread."""
        security, messages = self._core.security, advance.slot.messages
        if security is None or self._is_busy:
            return None
        if len(messages) > MAX_LOOKED_AT:
            messages = tuple(_random.sample(messages, MAX_LOOKED_AT))
        detector = security["gradient_detector"]
        maps = [decode_map(one.map, task.num_weights, task.cap) for one in messages]
        scores = detector.scores(maps, task.num_weights)
        beacon = advance.slot.record.signed.beacon
        chosen = [
            Choice(one.iteration, score)
            for one, score in zip(messages, scores, strict=True)
            if (score > detector.threshold or is_chosen(beacon, one.iteration.id))
            and one.iteration.miner != self._core.account
        ]
        return max(chosen, key=lambda choice: choice.score, default=None)

    def begin(self, choice: Choice | None) -> None:
        """Train a message over, beside everything else."""
        if choice is not None and not self._is_busy:
            self._is_busy = True
            self._tasks.start(self._audit(*choice))

    async def _audit(self, iteration: Iteration, score: float) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S) as patience:
                # Mining and blocks come first, this slot's own iteration too.
                await asyncio.sleep(_LOOK_S)
                while not self._core.trainer.is_idle:  # noqa: ASYNC110 - it is of many event loops
                    await asyncio.sleep(_LOOK_S)
                patience.reschedule(None)
                await self._blocks.train_over(iteration)
            self.num_done += 1
        except InvalidBlock as exc:
            self._core.alert(
                "gradient_poisoning",
                f"message of {iteration.miner.hex()[:16]} in slot {iteration.slot}, {score:.1f} deviations from the "
                f"others: {exc}",
                source=iteration.miner,
                slot=iteration.slot,
                evidence=iteration.id,
            )
        except (ChainError, TrainingError, TimeoutError) as exc:
            _log.debug("%s No audit of slot %d: %s", self._core.name, iteration.slot, exc)
        finally:
            self._is_busy = False


def is_chosen(beacon: bytes, message: bytes) -> bool:
    """Say whether a slot's beacon chooses a message for an audit."""
    return hashlib.sha256(beacon + message).digest()[0] < 256 // ONE_OF
