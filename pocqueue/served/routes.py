"""The proof routes of a vLLM server, `/api/v1/pow/…`: WIRE.md section 2, "vLLM variant".

Errors are ``{"detail": sentence}`` whatever the application around them does with errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from starlette.types import Scope

from pocqueue.errors import EngineUnavailable, PocqueueError
from pocqueue.poc.distance.data import finite_or_none
from pocqueue.poc.distance.scheme import Distance
from pocqueue.poc.fields import build
from pocqueue.served.prover import Prover, ServedRound
from pocqueue.served.schema import (
    ERRORS,
    DistancesAnswer,
    DistancesBody,
    ProofBody,
    ServedRoundAnswer,
    ServedRoundBody,
    ServedStatusAnswer,
    VerdictAnswer,
)
from pocqueue.web.door import Access, Asks, Door, find_token
from pocqueue.web.errors import SentenceRoute
from pocqueue.web.failures import FailureLimit

T = TypeVar("T")

PREFIX = "/api/v1/pow"
_REFUSAL = "Invalid auth token; send it as `Authorization: Bearer TOKEN`."
#: How often a long answer looks whether anybody still waits for it.
_LOOK_EVERY_S = 1.0


class Disconnected(PocqueueError):
    """Nobody waits for the answer any more."""

    http_status = 400


class MissingPart(PocqueueError):
    """A part of the round is missing that older clients may leave out."""

    http_status = 400


class RouteState:
    """What the routes work on, which comes after them: a server adds routes, then loads its model.

    Attributes:
        prover: None until the engine is there, or where it cannot be used.
        reason: why there is none.
        tokens: digest of each token that opens the routes; empty: they are open.
        model_error: why the model's fingerprint is not known yet, or never will be.
    """

    def __init__(self) -> None:
        self.prover: Prover | None = None
        self.reason = "Engine not available: the server is still starting."
        self.tokens: Sequence[str] = ()
        self.model_error: str | None = "the model's weights are being hashed"

    def ready(self) -> Prover:
        """Return the prover.

        Raises:
            EngineUnavailable: there is none; says why.
        """
        if self.prover is None:
            raise EngineUnavailable(self.reason)
        return self.prover

    def find(self, token: str) -> bool | None:
        """Say whether a token is one that opens the routes; None: it is not."""
        return find_token(token, self.tokens) is not None or None

    def asks(self, scope: Scope) -> Asks:
        """Say what is asked for at a path; those of the server's other routes are not ours to guard."""
        # Wherever the server mounts its application, a path that leads here has this in it.
        return Asks.TOKEN if self.tokens and PREFIX in scope["path"] else Asks.NOTHING


def add_routes(app: FastAPI, state: RouteState) -> None:
    """Add the routes to the server's application, behind a door of their own."""
    app.include_router(pow_router(state))
    access = Access(state.find, FailureLimit(), if_missing=_REFUSAL, if_wrong=_REFUSAL)
    app.add_middleware(Door, access, asks=state.asks)


def pow_router(state: RouteState) -> APIRouter:
    """Return the routes, over a state that is filled in later."""
    router = APIRouter(
        prefix=PREFIX,
        route_class=SentenceRoute,
        tags=["proof"],
        responses=ERRORS,
    )

    def answer(prover: Prover) -> dict[str, Any]:
        return {"status": "OK", "pow_status": prover.status()}

    @router.post("/init", response_model=ServedRoundAnswer)
    async def init(body: ServedRoundBody) -> Any:
        """Set up a round."""
        prover = state.ready()
        prover.init(_round(body))
        return answer(prover)

    @router.post("/init/generate", response_model=ServedRoundAnswer)
    async def init_generate(body: ServedRoundBody) -> Any:
        """Set up a round and search its nonces. Inference routes answer 503 until it is over."""
        prover = state.ready()
        prover.init(_round(body))
        prover.generate()
        return answer(prover)

    @router.post("/init/validate", response_model=ServedRoundAnswer)
    async def init_validate(body: ServedRoundBody) -> Any:
        """Set up a round to check proofs for. Inference routes answer 503 until it is over."""
        prover = state.ready()
        prover.init(_round(body))
        prover.validate()
        return answer(prover)

    @router.post("/phase/generate", response_model=ServedRoundAnswer)
    async def phase_generate() -> Any:
        """Search the nonces of the round at hand."""
        prover = state.ready()
        prover.generate()
        return answer(prover)

    @router.post("/phase/validate", response_model=ServedRoundAnswer)
    async def phase_validate() -> Any:
        """Stop searching and check proofs of the round at hand."""
        prover = state.ready()
        prover.validate()
        return answer(prover)

    @router.post("/validate", response_model=VerdictAnswer)
    async def validate(body: ProofBody, request: Request) -> Any:
        """Recompute somebody's proof for the round's block and test it for fraud."""
        verdict = await _while_connected(request, state.ready().check(Distance.read(body)))
        return VerdictAnswer(
            fraud_detected=verdict.fraud_detected,
            computed_distances=list(map(finite_or_none, verdict.computed)),
            n_invalid=verdict.n_invalid,
            probability_honest=verdict.probability_honest,
        )

    @router.get("/status", response_model=ServedStatusAnswer)
    async def status() -> Any:
        """Say how the round stands, with its latest valid nonces."""
        prover = state.ready()
        return prover.status() | {"running_requests": prover.gate.running}

    @router.post("/stop", response_model=ServedRoundAnswer)
    async def stop() -> Any:
        """End the round; inference goes on at once."""
        prover = state.ready()
        prover.stop()
        return answer(prover)

    @router.get("/model")
    async def model() -> dict[str, Any]:
        """Say what is served, for workers with engine vllm-server."""
        prover = state.ready()
        if state.model_error is not None:
            raise EngineUnavailable(f"Engine not available: {state.model_error}.")
        served = prover.model
        return served.info.to_dict() | asdict(served.limits)

    @router.post("/distances", response_model=DistancesAnswer)
    async def distances(body: DistancesBody) -> Any:
        """Compute the distances of given nonces, beside whatever else the server does."""
        prover = state.ready()
        if state.model_error is not None:
            raise EngineUnavailable(f"Engine not available: {state.model_error}.")
        upcoming = None if body.upcoming is None else body.upcoming.to_batch()
        computed = await prover.model.values(body.to_batch(), upcoming)
        info = prover.model.info
        return DistancesAnswer(
            distances=list(map(finite_or_none, computed)),
            fingerprint=info.fingerprint,
            dtype=info.dtype,
        )

    return router


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do what a client waits for, no longer than it does.

    Raises:
        Disconnected: it went away.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK_EVERY_S)
            if not task.done() and await request.is_disconnected():
                raise Disconnected("The client went away.")
        return task.result()
    finally:
        task.cancel()


def _round(body: ServedRoundBody) -> ServedRound:
    """Return the round of a body.

    Raises:
        MissingPart: r_target or the node is not set.
        InvalidRound: a field is out of bounds.
    """
    if body.r_target is None:
        raise MissingPart("PoC config missing r_target")
    if body.node_id == -1 or body.node_count == -1:
        raise MissingPart("Node ID and node count must be set")
    return build(ServedRound, body.model_dump())
