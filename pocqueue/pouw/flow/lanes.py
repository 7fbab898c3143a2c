"""Whose messages a committee waits for, and whose it certifies."""

from __future__ import annotations

from pocqueue.pouw.chain.records import MINER, SUPERVISOR
from pocqueue.pouw.chain.tickets import num_lanes
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.slots.history import Lane


class Lanes:
    """Lanes by the live tickets at the tip of a node's chain, of those that are matched. Of its event loop.

    Args:
        core: of the node.
        matching: says who trains a slot.
    """

    def __init__(self, core: Core, matching: Matching) -> None:
        self._core, self._matching = core, matching
        self._tip = b""
        self._limits: dict[bytes, int] = {}

    async def awaited(self, task: bytes, slot: int) -> list[Lane]:
        """Return the lanes whose messages a slot is kept open for: each account's first one.

        Raises:
            SlotError: as `Matching.accounts`.
        """
        return [(account, 0) for account in await self.limits(task, slot)]

    async def limits(self, task: bytes, slot: int) -> dict[bytes, int]:
        """Return how many lanes each account has in a slot; do not change it.

        Raises:
            SlotError: as `Matching.accounts`.
        """
        matched, tip = await self._matching.accounts(task, slot), self._core.chain.tip
        if tip.id != self._tip:
            found: dict[bytes, int] = {}
            for role in (MINER, SUPERVISOR):
                for ticket in tip.state.live_tickets(role).values():
                    lanes = num_lanes(ticket.stake)
                    found[ticket.account] = max(lanes, found.get(ticket.account, 0))
            self._tip, self._limits = tip.id, found
        if matched is None:
            return self._limits
        return {account: lanes for account, lanes in self._limits.items() if account in matched}
