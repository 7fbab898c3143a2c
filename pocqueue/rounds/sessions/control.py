"""Starts, stops and lists sessions: what a delegation does beside handing out batches.

Nothing is kept here: a session is a round in the store, its id is the round's, and its customer stands in
its specification. A customer's session is known to that customer only.
"""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pocqueue.errors import UnknownRound, UnknownSession
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.callback_target import check_url
from pocqueue.rounds.records import RoundStatus, SessionLimits
from pocqueue.rounds.spec import RoundSpec, RoundState
from pocqueue.rounds.start import (
    ModelWish,
    check_seq_len,
    choose_model,
    decided,
    fitted,
    num_serving,
)
from pocqueue.words import counted

logger = logging.getLogger(__name__)

#: Namespace of session ids that are made of a request's (RFC 9562, version 5).
_REQUESTS = uuid.UUID("6f1f8b57-6c39-4d0d-9a2e-0f6d4bb0a8c1")

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
    """A session as it stands."""

    status: RoundStatus
    #: Live GPUs that can search for it.
    num_gpus: int
    #: Batches with valid nonces, handed out or not.
    num_proofs: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as the wire has it: its customer sees it so."""
        status = self.status
        return {
            "status": session_word(status.state, begun=status.next_index > 0),
            "node_id": status.spec.node_id,
            "gpu_count": self.num_gpus,
            "total_generated": self.num_proofs,
            "age_seconds": (status.now_ms - status.created_ms) / 1000,
            "created_at": status.created_ms / 1000,
            "total_nonces": status.valid,
            "total_checked": status.checked,
        }


class StartedSession(NamedTuple):
    """A session that began."""

    session_id: str
    spec: RoundSpec
    #: Live GPUs that search for it.
    num_gpus: int
    #: What is taken another way than it was asked for, or empty.
    warning: str


@dataclass(frozen=True, slots=True)
class SessionControl:
    """Starts and stops sessions. Safe to share between threads. Raises `StoreError` while Redis is away."""

    backend: Backend  #: store and pool
    max_sessions: int  #: sessions at a time, of all customers
    window_s: float  #: seconds after which a session ends by itself
    any_model: (
        bool  #: take sessions that ask for another model than the deployed one, with a warning
    )
    callback_private: bool  #: callback URLs may name addresses that are not public

    def start(
        self,
        draft: RoundSpec,
        wish: ModelWish,
        *,
        customer: str,
        max_sessions: int,
        share: float,
        request_id: str | None = None,
    ) -> StartedSession:
        """Start a session; asked for the same again while it runs, return that one.

        So a client whose answer was lost may ask again, and no nonce is searched twice.

        Args:
            draft: what to search, from `start.draft_spec`; the model is still open.
            wish: the model.
            customer: whose it is.
            max_sessions: that this customer may have at a time.
            share: weight of the session when GPUs are shared out.
            request_id: the customer's own name for this request: another one makes another session, and the
                same one is answered with the same session even once it is over.

        Raises:
            InvalidRound: seq_len or callback_url is not allowed.
            NoLiveGpu, ModelConflict, SessionsFull: see the classes.
        """
        gpus = self.backend.pool.live()
        for session_id in _session_ids(customer, draft, wish, request_id):
            try:
                known = self.backend.store.status(session_id)
            except UnknownRound:
                break
            if known.state.is_active or request_id is not None:
                logger.info(
                    "DELEGATION session %s of node %d: asked for again.", session_id, draft.node_id
                )
                return StartedSession(session_id, known.spec, num_serving(gpus, known.spec), "")
        if draft.callback_url is not None:
            check_url(draft.callback_url, allow_private=self.callback_private)
        info, warning = choose_model(gpus, wish, any_model=self.any_model)
        check_seq_len(draft.seq_len, info, "params.seq_len")
        draft, notes = fitted(draft, gpus, info)
        warning = " ".join(filter(None, [warning, *(f"{note}." for note in notes)]))
        spec = decided(draft, info, customer=customer, share=share, window_s=self.window_s)
        limits = SessionLimits(self.max_sessions, max_sessions)
        # Of two at a time one makes it, and both get it.
        session_id = self.backend.store.create(spec, session_id, limits=limits)
        num_gpus = num_serving(gpus, spec)
        logger.info(
            "DELEGATION session %s of node %d started: customer %s, block height %d, %s, %.0f s.",
            session_id,
            spec.node_id,
            customer,
            spec.block_height,
            counted(num_gpus, "GPU"),
            spec.window_s,
        )
        if warning:
            logger.warning(
                "DELEGATION session %s of node %d: %s", session_id, spec.node_id, warning
            )
        return StartedSession(session_id, spec, num_gpus, warning)

    def stop(self, session_id: str, customer: str) -> RoundStatus:
        """End a session, once; return it as it stands afterwards.

        Raises:
            UnknownSession: this customer has none of this id.
        """
        check_session_id(session_id)
        try:
            status = self.backend.store.status(session_id)
            if status.spec.customer != customer:
                raise UnknownSession(session_id)
            if not status.state.is_active:
                return status
            self.backend.store.close(session_id, RoundState.STOPPED, "stopped by its small node")
            status = self.backend.store.status(session_id)
        except UnknownRound:
            raise UnknownSession(session_id) from None
        logger.info(
            "DELEGATION session %s of node %d stopped: %s checked, %s.",
            session_id,
            status.spec.node_id,
            counted(status.batches, "batch"),
            counted(status.valid, status.spec.proof.kept_noun),
        )
        return status


def session_views(backend: Backend, customer: str | None = None) -> list[SessionView]:
    """Return the sessions of the last hour, oldest first, of one customer or (None) of all."""
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


def stop_sessions(backend: Backend, customer: str) -> int:
    """End all sessions of a customer whose token was taken away; return how many were running."""
    active = [
        view.status for view in session_views(backend, customer) if view.status.state.is_active
    ]
    for status in active:
        backend.store.close(status.round_id, RoundState.STOPPED, "the customer's token was revoked")
    return len(active)


def _session_ids(
    customer: str, draft: RoundSpec, wish: ModelWish, request_id: str | None
) -> Iterator[str]:
    """Name the sessions of a request, one after the other; no other customer's request has the same names."""
    if request_id is not None:
        yield str(uuid.uuid5(_REQUESTS, f"{request_id} {customer}"))
        return
    request = f"{customer} {draft.model_dump_json()} {wish!r}"
    for number in itertools.count():
        yield str(uuid.uuid5(_REQUESTS, f"{request} {number}"))
