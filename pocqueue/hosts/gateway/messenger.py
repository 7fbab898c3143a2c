"""What a gateway has done elsewhere: by another gateway, or by itself a little later. Celery brings it there.

Nothing of it may be lost by this: what did not arrive is found by the next sweep.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class What(StrEnum):
    """What a node's gateway tells it."""

    JOB = "job"  #: is to be run
    CANCEL = "cancel"  #: is to be ended
    CANCELLED = "cancelled"  #: the same, from a command, which has no figures to count it in
    DRAIN = "drain"  #: it gets nothing new
    ROTATE = "rotate"  #: it is to make itself a new key
    END = "end"  #: it is revoked or banned, and its socket closed
    REPLACED = "replaced"  #: another gateway has it now, and this one's socket is closed


class Messenger(Protocol):
    """Neither blocks nor fails."""

    def look(self) -> None:
        """Have somebody look at once for nodes for the jobs that wait."""

    def place(self, job_id: str) -> None:
        """Have somebody find a node for a job."""

    def tell(self, relay: str, what: What, node_id: str, job_id: str = "", n: int = 0) -> None:
        """Have a gateway tell one of its nodes.

        Args:
            relay: its name.
            job_id, n: of the attempt that it is about; for `What.REPLACED` the socket's id stands in `job_id`.
        """
