"""Roles, and the tickets that give them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class NodeRole(enum.Enum):
    """What a node does for the network; the chain and every link enforce it."""

    MINER = "miner"  #: trains, and mines blocks by it
    SUPERVISOR = "supervisor"  #: agrees with others on what a slot is; may mine too
    EVALUATOR = "evaluator"  #: says what came of a task
    VERIFIER = "verifier"  #: checks others' work
    PEER = "peer"  #: passes on, and sends transactions; the only role without a ticket


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Ticket:
    """A stake for a role, as `PoUWNode.stake_and_register` returns it: signed and sent, live once in a block."""

    ticket_id: str  #: of its transaction, 64 hex digits
    role: NodeRole
    stake_amount: float  #: PAI
    preferences: Mapping[str, Any]
    _asked: Callable[[], bool] = field(default=_never, repr=False, compare=False)

    @property
    def is_live(self) -> bool:
        """The chain that this node follows holds it, and it was not given back."""
        return self._asked()
