"""Looks at the messages of certified slots, not only at those that win blocks.

A message is trained over if it stands far from what the others of its slot say, or if the slot's beacon, which its
miner did not know, chooses it: one of eight, for one of those who audit. One that is found false is told of, and accused.
Of a private task those alone audit who were shown the noise: its committee.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from random import SystemRandom
from typing import NamedTuple

from pocqueue.pouw.chain.records import SUPERVISOR, VERIFIER
from pocqueue.pouw.errors import ChainError, InvalidBlock, TrainingError
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.security import GradientDetector
from pocqueue.pouw.slots.history import Advance
from pocqueue.pouw.slots.maps import decode_map
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.slots import Iteration

#: One of so many messages is chosen by the beacon.
ONE_OF = 8
#: Messages of a slot that are looked at; of more, so many drawn by lot.
MAX_LOOKED_AT = 64
#: Messages that wait to be trained over; more are left to chance.
MAX_WAITING = 32
#: What follows on a slot, its own iteration and a block, comes to the trainer before its audits.
_PAUSE_S = 0.02

_random = SystemRandom()
_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """What is to be trained over, and why."""

    iteration: Iteration
    score: float


class Audits:
    """Audits of a node, one at a time.

    Args:
        core, blocks: of the node.
        on_cheat: hears of a message that was trained over and is false.
    """

    def __init__(
        self, core: Core, blocks: BlockFlow, on_cheat: Callable[[Iteration], None]
    ) -> None:
        self._core, self._blocks, self._on_cheat = core, blocks, on_cheat
        self._waiting: asyncio.Queue[Choice] = asyncio.Queue(MAX_WAITING)
        # Who audits at the newest anchor that was asked for.
        self._auditors: tuple[bytes, list[bytes]] = (b"", [])
        #: How many messages were trained over.
        self.num_done = 0

    def choose(self, task: TaskSpec, advance: Advance) -> list[Choice]:
        """Return the messages of a slot that are for us to train over, the most suspicious first. In a thread."""
        core, messages = self._core, advance.slot.messages
        auditors = self._who_audits() if task.noise is None else self._members(advance)
        if not core.config.enable_attack_mitigation or (
            task.noise is not None and core.account not in auditors
        ):
            return []
        if len(messages) > MAX_LOOKED_AT:
            messages = tuple(_random.sample(messages, MAX_LOOKED_AT))
        security = core.security
        detector = GradientDetector() if security is None else security["gradient_detector"]
        maps = [decode_map(one.map, task.num_weights, task.cap) for one in messages]
        scores = detector.scores(maps, task.num_weights)
        beacon, account = advance.slot.record.signed.beacon, core.account
        chosen = [
            Choice(one.iteration, score)
            for one, score in zip(messages, scores, strict=True)
            if (
                score > detector.threshold or auditor_of(beacon, one.iteration, auditors) == account
            )
            and one.iteration.miner != account
        ]
        return sorted(chosen, key=lambda choice: -choice.score)

    def add(self, choices: Sequence[Choice]) -> None:
        """Have messages trained over, as far as there is room for more."""
        for choice in choices:
            if not self._waiting.full():
                self._waiting.put_nowait(choice)

    async def run(self) -> None:
        """Train over what waits, beside everything else."""
        while True:
            await self._audit(*await self._waiting.get())

    def _who_audits(self) -> list[bytes]:
        """Return the accounts of supervisors and verifiers, ascending: the same on all nodes with the same anchor."""
        anchor = self._core.chain.anchor
        # Before there is an anchor whoever is at the tip.
        at = anchor if anchor.height else self._core.chain.tip
        if self._auditors[0] != at.id:
            state = at.state
            roles = (SUPERVISOR, VERIFIER)
            tickets = [one for role in roles for one in state.live_tickets(role).values()]
            self._auditors = (at.id, sorted({ticket.account for ticket in tickets}))
        return self._auditors[1]

    def _members(self, advance: Advance) -> list[bytes]:
        """Return who was in office in a slot, ascending."""
        epoch = advance.slot.record.signed.certificate.epoch
        committee = self._core.chain.tip.state.committee(epoch)
        return [] if committee is None else sorted(committee.members)

    async def _audit(self, iteration: Iteration, score: float) -> None:
        core = self._core
        try:
            await asyncio.sleep(_PAUSE_S)
            await self._blocks.train_over(iteration)
            self.num_done += 1
        except InvalidBlock as exc:
            core.alert(
                "gradient_poisoning",
                f"message of {iteration.miner.hex()[:16]} in slot {iteration.slot}, {score:.1f} deviations from the "
                f"others: {exc}",
                source=iteration.miner,
                slot=iteration.slot,
                evidence=iteration.id,
            )
            self._on_cheat(iteration)
        except (ChainError, TrainingError) as exc:
            _log.debug("%s No audit of slot %d: %s", core.name, iteration.slot, exc)


def auditor_of(beacon: bytes, iteration: Iteration, auditors: Sequence[bytes]) -> bytes | None:
    """Return who is to train a message over, by its slot's beacon; None: nobody, it is not one of the eighth.

    Args:
        beacon: of its slot.
        iteration: the message.
        auditors: accounts of all who may, ascending; never its miner's own.
    """
    digest = hashlib.sha256(beacon + iteration.id).digest()
    others = [account for account in auditors if account != iteration.miner]
    if digest[0] >= 256 // ONE_OF or not others:
        return None
    return others[int.from_bytes(digest[1:9]) % len(others)]
