"""What is kept of a search on disk, beside its cursor: enough to go on with it after a restart."""

from __future__ import annotations

from pydantic import BaseModel

from pocqueue.delegation.client import RemoteModel
from pocqueue.node.round import NodeRound
from pocqueue.rounds.store import KEEP_ENDED_MS


class SearchRequest(BaseModel):
    """A search as it was begun."""

    round: NodeRound
    gpu_count: int
    #: Unix time at which its window closes.
    deadline_s: float
    #: What a big node searches with.
    model: RemoteModel = RemoteModel()
    #: The chain has stopped it; its source may not know yet.
    stopped: bool = False

    @property
    def give_up_s(self) -> float:
        """Unix time up to which its source keeps what it found, and is waited for."""
        return self.deadline_s + KEEP_ENDED_MS / 1000
