"""What a member of a committee finds of a leader's proposal: whether the slot is as it would certify it itself."""

from __future__ import annotations

import asyncio

from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.flow.certificate_clock import MAX_AHEAD_MS
from pocqueue.pouw.flow.core import Core, now_ms, wait_for
from pocqueue.pouw.flow.lanes import Lanes
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.task_choice import TaskChoice
from pocqueue.pouw.slots.certificate import verify_turn
from pocqueue.pouw.slots.collector import Anchor
from pocqueue.pouw.slots.history import Unsigned
from pocqueue.pouw.wire.slots import Certificate
from pocqueue.pouw.wire.votes import Proposal

#: Blocks of its chain above the one that a supervisor names as final.
ANCHOR_DEPTH = 2
#: What is not so yet may be so before the ballot is over: messages, blocks and slots are on their way.
_MAY_PASS = frozenset(("missing", "clock", "task", "lane"))
#: What is waited for without a bell: the clock.
_AGAIN_S = 1.0


class Judge:
    """Judges proposals.

    Args:
        core, slots: of the node.
        choice: says which task may be trained.
        lanes: whose messages may be certified.
    """

    def __init__(self, core: Core, slots: SlotFlow, choice: TaskChoice, lanes: Lanes) -> None:
        self._core, self._slots, self._choice, self._lanes = core, slots, choice, lanes

    async def judged(self, proposal: Proposal, newest: Certificate | None) -> Unsigned:
        """Return what a proposal of the open turn leads to, once all of it is here and right: it may wait for good.

        Args:
            proposal: of a leader, with the ids under its root.
            newest: certificate of the turn before.

        Raises:
            SlotError: it breaks a rule, whatever is still to come.
        """
        core, slots, here = self._core, self._slots, asyncio.Event()
        with slots.heard.sets(here), slots.changed.sets(here), core.chain_changed.sets(here):
            while True:
                here.clear()
                try:
                    return await self._now(proposal, newest)
                except SlotError as exc:
                    if exc.rule not in _MAY_PASS:
                        raise
                await wait_for(here, _AGAIN_S)

    async def _now(self, proposal: Proposal, newest: Certificate | None) -> Unsigned:
        certificate = proposal.head.certificate
        if certificate.turn and newest is None:
            raise SlotError("missing", f"the certificate before turn {certificate.turn}.")
        verify_turn(certificate, newest)
        if certificate.time_ms > now_ms() + MAX_AHEAD_MS:
            raise SlotError("clock", f"slot {certificate.slot} is ahead of this clock.")
        check_anchor(self._core.chain, certificate, newest)
        if not await self._choice.allows(certificate.task):
            raise SlotError("task", f"{certificate.task.hex()} is not to be trained.")
        history = await self._slots.certified_next(certificate.task)
        if certificate.slot > history.next_slot:
            raise SlotError("missing", f"slots {history.next_slot} to {certificate.slot - 1}.")
        found = await self._slots.with_messages(history, history.judge, certificate, proposal.ids)
        if not found.messages and not await self._choice.allows_empty(certificate.task, newest):
            raise SlotError("task", f"nobody trains {certificate.task.hex()}.")
        limits = await self._lanes.limits(certificate.task, certificate.slot)
        for message in found.messages:
            miner, lane = message.iteration.order
            if lane >= limits.get(miner, 0):
                raise SlotError("lane", f"{miner.hex()} has no lane {lane}.")
            place = (certificate.slot, (miner, lane))
            if history.task.noise is not None and not await self._slots.in_slots(
                self._core.is_shown, history, *place
            ):
                raise SlotError(
                    "missing", f"the noise of {miner.hex()} up to slot {certificate.slot}."
                )
        return found


def deep_anchor(chain: Chain, newest: Certificate | None) -> Anchor:
    """Return the block that is deep enough to be final; the one that is, if none is deeper."""
    # Each read once: the chain's thread may move them.
    tip, anchor = chain.tip, chain.anchor
    if newest is not None and newest.anchor_height > anchor.height:
        # What was named last is not set here yet: the tip may be on another branch.
        return Anchor(newest.anchor, newest.anchor_height)
    deep = tip.height - ANCHOR_DEPTH
    found = next((at for at in tip.down() if at.height == deep), anchor)
    return Anchor(found.id, found.height)


def check_anchor(chain: Chain, certificate: Certificate, newest: Certificate | None) -> None:
    """Return if a certificate names the anchor of the one before it, or a block that is deep in this chain.

    A supervisor has trained over every block that is in its chain and was not final when it came.

    Raises:
        SlotError: ``anchor``, or ``missing``: it may be deep in this chain later.
    """
    tip, anchor = chain.tip, chain.anchor
    old = (anchor.id, anchor.height) if newest is None else (newest.anchor, newest.anchor_height)
    named = (certificate.anchor, certificate.anchor_height)
    if named == old:
        return
    if certificate.anchor_height <= old[1]:
        raise SlotError("anchor", f"block {certificate.anchor.hex()} is not above the last anchor.")
    is_deep = certificate.anchor_height <= tip.height - ANCHOR_DEPTH
    if not is_deep or named not in ((at.id, at.height) for at in tip.down()):
        raise SlotError("missing", f"block {certificate.anchor.hex()} is not deep in this chain.")
