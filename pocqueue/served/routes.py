"""The proof routes of a vLLM server, `/api/v1/pow/…`: WIRE.md section 2, "vLLM variant".

Errors are ``{"detail": sentence}`` whatever the application around them does with errors.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request

from pocqueue.errors import EngineUnavailable, InvalidToken, PocqueueError
from pocqueue.poc.fields import build
from pocqueue.served.schema import (
    ERRORS,
    DistancesAnswer,
    DistancesBody,
    InitBody,
    ProofBody,
    RoundAnswer,
    StatusAnswer,
    VerdictAnswer,
)
from pocqueue.served.service import PowService, ServedRound
from pocqueue.web.errors import SentenceRoute

T = TypeVar("T")

PREFIX = "/api/v1/pow"
#: How often a long answer looks whether anybody still waits for it.
_LOOK_EVERY_S = 1.0


class Disconnected(PocqueueError):
    """Nobody waits for the answer any more."""

    http_status = 400


class MissingPart(PocqueueError):
    """A part of the round is missing that older clients may leave out."""

    http_status = 400


class PowState:
    """What the routes work on, which comes after them: a server adds routes, then loads its model.

    Attributes:
        service: None until the engine is there, or where it cannot be used.
        reason: why there is none.
        tokens: SHA-256 of each token that opens the routes; empty: they are open.
        model_error: why the model's fingerprint is not known yet, or never will be.
    """

    def __init__(self) -> None:
        self.service: PowService | None = None
        self.reason = "Engine not available: the server is still starting."
        self.tokens: Sequence[bytes] = ()
        self.model_error: str | None = "the model's weights are being hashed"

    def ready(self) -> PowService:
        """Return the service.

        Raises:
            EngineUnavailable: there is none; says why.
        """
        if self.service is None:
            raise EngineUnavailable(self.reason)
        return self.service

    async def authorize(self, request: Request) -> None:
        """Let those pass that may use the routes.

        Raises:
            InvalidToken: the token is missing or wrong.
        """
        if not self.tokens:
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()
        # All of them, always: the time says nothing about which one was close.
        matches = [secrets.compare_digest(given, known) for known in self.tokens]
        if scheme.lower() != "bearer" or not any(matches):
            raise InvalidToken("Invalid auth token; send it as `Authorization: Bearer TOKEN`.")


def pow_router(state: PowState) -> APIRouter:
    """Return the routes, over a state that is filled in later."""
    router = APIRouter(
        prefix=PREFIX,
        route_class=SentenceRoute,
        tags=["proof"],
        responses=ERRORS,
        # Before the fields of a body are looked at: who has no token learns nothing of them.
        dependencies=[Depends(state.authorize)],
    )

    def answer(service: PowService) -> dict[str, Any]:
        return {"status": "OK", "pow_status": service.status()}

    @router.post("/init", response_model=RoundAnswer)
    async def init(body: InitBody) -> Any:
        """Set up a round."""
        service = state.ready()
        service.init(_round(body))
        return answer(service)

    @router.post("/init/generate", response_model=RoundAnswer)
    async def init_generate(body: InitBody) -> Any:
        """Set up a round and search its nonces. Inference routes answer 503 until it is over."""
        service = state.ready()
        service.init(_round(body))
        service.generate()
        return answer(service)

    @router.post("/init/validate", response_model=RoundAnswer)
    async def init_validate(body: InitBody) -> Any:
        """Set up a round to check proofs for. Inference routes answer 503 until it is over."""
        service = state.ready()
        service.init(_round(body))
        service.validate()
        return answer(service)

    @router.post("/phase/generate", response_model=RoundAnswer)
    async def phase_generate() -> Any:
        """Search the nonces of the round at hand."""
        service = state.ready()
        service.generate()
        return answer(service)

    @router.post("/phase/validate", response_model=RoundAnswer)
    async def phase_validate() -> Any:
        """Stop searching and check proofs of the round at hand."""
        service = state.ready()
        service.validate()
        return answer(service)

    @router.post("/validate", response_model=VerdictAnswer)
    async def validate(body: ProofBody, request: Request) -> Any:
        """Recompute somebody's proof for the round's block and test it for fraud."""
        verdict = await _while_connected(request, state.ready().check(body.to_batch()))
        return VerdictAnswer(
            fraud_detected=verdict.fraud_detected,
            computed_distances=_finite(verdict.dist),
            n_invalid=verdict.n_invalid,
            probability_honest=verdict.probability_honest,
        )

    @router.get("/status", response_model=StatusAnswer)
    async def status() -> Any:
        """Say how the round stands, with its latest valid nonces."""
        service = state.ready()
        return service.status() | {"running_requests": service.gate.running}

    @router.post("/stop", response_model=RoundAnswer)
    async def stop() -> Any:
        """End the round; inference goes on at once."""
        service = state.ready()
        service.stop()
        return answer(service)

    @router.get("/model")
    async def model() -> dict[str, Any]:
        """Say what is served, for workers with engine vllm-server."""
        service = state.ready()
        if state.model_error is not None:
            raise EngineUnavailable(f"Engine not available: {state.model_error}.")
        served = service.model
        return served.info.to_dict() | asdict(served.limits)

    @router.post("/distances", response_model=DistancesAnswer)
    async def distances(body: DistancesBody) -> Any:
        """Compute the distances of given nonces, beside whatever else the server does."""
        service = state.ready()
        if state.model_error is not None:
            raise EngineUnavailable(f"Engine not available: {state.model_error}.")
        upcoming = None if body.upcoming is None else body.upcoming.to_batch()
        computed = await service.model.values(body.to_batch(), upcoming)
        info = service.model.info
        return DistancesAnswer(
            distances=_finite(computed), fingerprint=info.fingerprint, dtype=info.dtype
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


def _round(body: InitBody) -> ServedRound:
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


def _finite(distances: Sequence[float]) -> list[float | None]:
    return [distance if math.isfinite(distance) else None for distance in distances]
