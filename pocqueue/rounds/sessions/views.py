"""Sessions for people who watch: how each stands, and how many GPUs can search for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pocqueue.errors import UnknownSession
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.spec import RoundSpec, RoundState

#: Ids of rounds are UUIDs, of 36 characters.
MAX_ID_LENGTH = 64


def session_word(state: RoundState, *, begun: bool) -> str:
    """Return a session's status in the word that clients know.

    Args:
        begun: whether any of its nonces were given to a GPU yet.
    """
    if state is RoundState.ACTIVE:
        return "generating" if begun else "initializing"
    # Sessions search until their deadline, so that none is completed unless it asked for a number.
    return {RoundState.EXPIRED: "expired", RoundState.FAILED: "error"}.get(state, "stopped")


def check_session_id(text: str) -> None:
    """Refuse what cannot be a session's id, before a store is asked for it.

    Raises:
        UnknownSession: it is not made of plain characters, or too long.
    """
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= MAX_ID_LENGTH):
        raise UnknownSession(text)


class SessionView(NamedTuple):
    """A session as it stands, for people who watch."""

    status: RoundStatus
    #: Live GPUs that can search for it.
    num_gpus: int
    #: Batches with valid nonces, handed out or not.
    num_proofs: int

    @property
    def customer(self) -> str:
        return self.status.spec.customer or ""

    @property
    def word(self) -> str:
        """Its status in the word that clients know."""
        return session_word(self.status.state, begun=self.status.next_index > 0)

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return (self.status.now_ms - self.status.created_ms) / 1000

    def to_dict(self) -> dict[str, Any]:
        """Return it as the wire has it: its customer sees it so."""
        return {
            "status": self.word,
            "node_id": self.status.spec.node_id,
            "gpu_count": self.num_gpus,
            "total_generated": self.num_proofs,
            "age_seconds": round(self.age_s, 3),
            "created_at": self.status.created_ms / 1000,
            "total_nonces": self.status.valid,
            "total_checked": self.status.checked,
        }


def session_views(backend: Backend, customer: str | None = None) -> list[SessionView]:
    """Return the sessions of the last hour, oldest first.

    Args:
        backend: store and pool.
        customer: whose; None: everybody's.

    Raises:
        StoreError: Redis is away.
    """
    store = backend.store
    gpus = backend.pool.live()
    found = [
        status
        for status in store.statuses(store.list_ids())
        if status.spec.customer is not None and customer in {None, status.spec.customer}
    ]
    numbers = store.num_proofs([status.round_id for status in found])
    return [
        SessionView(status, num_serving(gpus, status.spec), number)
        for status, number in zip(found, numbers, strict=True)
    ]


def num_serving(gpus: Sequence[Gpu], spec: RoundSpec) -> int:
    """Count the GPUs that take work and can search for a session."""
    return sum(not gpu.draining and spec.is_served_by(gpu.info) for gpu in gpus)
