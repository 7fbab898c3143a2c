"""Whose messages a committee waits for, and whose it certifies."""

from __future__ import annotations

from pocqueue.pouw.chain.records import MINER, SUPERVISOR
from pocqueue.pouw.chain.tickets import num_lanes
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.slots.history import Lane


class Lanes:
    """Lanes by the live tickets at the tip of a node's chain. Of its event loop.

    Args:
        core: of the node.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tip = b""
        self._limits: dict[bytes, int] = {}

    def awaited(self) -> list[Lane]:
        """Return the lanes whose messages a slot is kept open for: each account's first one."""
        return [(account, 0) for account in self.limits()]

    def limits(self) -> dict[bytes, int]:
        """Return how many lanes each account has; do not change it."""
        tip = self._core.chain.tip
        if tip.id != self._tip:
            found: dict[bytes, int] = {}
            for role in (MINER, SUPERVISOR):
                for ticket in tip.state.live_tickets(role).values():
                    lanes = num_lanes(ticket.stake)
                    found[ticket.account] = max(lanes, found.get(ticket.account, 0))
            self._tip, self._limits = tip.id, found
        return self._limits
