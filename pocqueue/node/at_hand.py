"""The round that a small node is at, and how it stands: the chain has one round at a time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pocqueue.node.follower import Follower
from pocqueue.node.round import NodeRound


class NodeState(Enum):
    """What the node does for the chain, in the words of docs/wire.md."""

    IDLE = "IDLE"  #: it has a round and has not begun
    GENERATING = "GENERATING"
    VALIDATING = "VALIDATING"
    STOPPED = "STOPPED"  #: it has no round


@dataclass(eq=False)
class AtHand:
    """What the node's requests change, one after the other."""

    state: NodeState = NodeState.STOPPED
    round: NodeRound | None = None
    search: Follower | None = None  #: of the round, or of the one that was stopped last
    error: str | None = None  #: why it could not begin, or who has taken over and why

    @property
    def is_searching(self) -> bool:
        """Whether there is a search, as far as is known: not stopped, and not over."""
        return self.search is not None and self.search.is_searching

    def has_had_its_window(self, node_round: NodeRound) -> bool:
        """Say whether a round was searched until its end: again it would find the same."""
        search = self.search
        return search is not None and search.is_finished and search.round.is_same_search(node_round)
