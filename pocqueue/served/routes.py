"""The proof routes of a vLLM server, `/api/v1/pow/…`; docs/wire.md.

Errors are ``{"detail": sentence}`` whatever the application around them does with errors.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import StreamingResponse

from pocqueue.engine.base import EngineInfo
from pocqueue.poc.artifact.bodies import GenerateRoundBody
from pocqueue.poc.distance.data import finite_or_none
from pocqueue.poc.distance.scheme import Distance, ProofBody
from pocqueue.poc.fields import Allowed, build
from pocqueue.served.artifact_routes import add_artifact_routes
from pocqueue.served.found import Block
from pocqueue.served.prover import NoRound, Prover, ServedRound
from pocqueue.served.schema import (
    ERRORS,
    AnyRoundBody,
    ArtifactStatus,
    ArtifactStatusAnswer,
    DistancesAnswer,
    DistancesBody,
    ServedRoundAnswer,
    ServedRoundBody,
    ServedStatusAnswer,
    StateAnswer,
    ValuesAnswer,
    ValuesBody,
    VerdictAnswer,
)
from pocqueue.served.state import PREFIX, RouteState
from pocqueue.web.body_limit import BodyLimit
from pocqueue.web.door import Access, Door
from pocqueue.web.errors import SentenceRoute
from pocqueue.web.failure_limit import FailureLimit
from pocqueue.web.waiting import while_connected

logger = logging.getLogger("vllm.pocqueue")

Since = Annotated[
    int,
    Query(ge=0, description="How many of the round's valid nonces the client has: `total_valid`."),
    Allowed("a whole number of at least 0"),
]

#: A proof of 100 000 nonces takes some 4 MB.
MAX_BODY_BYTES = 16 << 20
_REFUSAL = "Invalid auth token; send it as `Authorization: Bearer TOKEN`."


def add_routes(app: FastAPI, state: RouteState) -> None:
    """Add the routes to the server's application, behind a door of their own."""
    app.include_router(pow_router(state))
    access = Access(state.find, FailureLimit(), if_missing=_REFUSAL, if_wrong=_REFUSAL)
    app.add_middleware(Door, access, asks=state.asks)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, within=PREFIX)


def pow_router(state: RouteState) -> APIRouter:
    """Return the routes, over a state that is filled in later."""
    router = APIRouter(prefix=PREFIX, route_class=SentenceRoute, tags=["proof"], responses=ERRORS)

    def of_distances(otherwise: str) -> Prover:
        """Return the prover, whose round is not one of artifacts, which has no phases and no proofs to check.

        Raises:
            NoRound: it is.
        """
        service = state.service()
        if service.is_last:
            raise NoRound(otherwise)
        return service.prover

    def begin(body: ServedRoundBody, then: Callable[[Prover], None]) -> Any:
        prover = state.ready()
        asked = _round(body)
        size, most = asked.pass_size, prover.model.limits.max_batch_size
        size = size if size == asked.batch_size else min(size, most)
        warnings = asked.notes(size)
        prover.init(asked.model_copy(update={"batch_size": size}))
        then(prover)
        for warning in warnings:
            logger.warning("pocqueue: a round was asked for: %s.", warning)
        return _changed(prover, warnings)

    def begins(path: str, then: Callable[[Prover], None], text: str) -> None:
        @router.post(path, response_model=ServedRoundAnswer, description=text)
        async def begin_round(body: ServedRoundBody) -> Any:
            return begin(body, then)

    def changes(path: str, act: Callable[[Prover], None], text: str) -> None:
        @router.post(path, response_model=ServedRoundAnswer, description=text)
        async def change() -> Any:
            prover = of_distances("PoC not initialized")
            act(prover)
            return _changed(prover)

    busy = "Inference routes answer 503 until it is over."
    begins("/init", lambda _: None, "Set up a round.")

    @router.post(
        "/init/generate",
        response_model=ServedRoundAnswer | StateAnswer,
        description=f"Set up a round and search its nonces; one of artifacts if there is no `r_target`. {busy}",
    )
    async def init_generate(body: AnyRoundBody) -> Any:
        if isinstance(body, GenerateRoundBody):
            state.asked(body.params).start(body)
            return StateAnswer(pow_status={"status": "GENERATING"})
        return begin(body, Prover.generate)

    begins("/init/validate", Prover.validate, f"Set up a round to check proofs for. {busy}")
    changes("/phase/generate", Prover.generate, "Search the nonces of the round at hand.")
    changes("/phase/validate", Prover.validate, "Stop searching and check proofs of the round.")

    @router.post("/stop", response_model=ServedRoundAnswer | StateAnswer)
    async def stop() -> Any:
        """End the round, and requests for artifacts; inference goes on at once."""
        service = state.service()
        service.stop()
        if service.is_last:
            return StateAnswer(pow_status={"status": "STOPPED"})
        return _changed(service.prover, also={"status": "STOPPED"})

    @router.post("/validate", response_model=VerdictAnswer)
    async def validate(body: ProofBody, request: Request) -> Any:
        """Recompute somebody's proof for the round's block and test it for fraud."""
        prover = of_distances("No round configured")
        verdict = await while_connected(request, prover.check(Distance.read(body)))
        return VerdictAnswer(
            fraud_detected=verdict.fraud_detected,
            computed_distances=list(map(finite_or_none, verdict.computed)),
            n_invalid=verdict.n_invalid,
            probability_honest=verdict.probability_honest,
        )

    @router.get("/status", response_model=ServedStatusAnswer | ArtifactStatusAnswer)
    async def status(since: Since = 0) -> Any:
        """Say how the round stands: one of artifacts as the network does, another one with its valid nonces.

        Those from the `since`-th on, the first being the 0th. Clients of artifacts find theirs there, too: IDLE.
        """
        service = state.service()
        prover = service.prover
        fields = prover.status() | {"running_requests": prover.gate.running}
        if service.is_last:
            own = ArtifactStatusAnswer.model_fields.keys() - ArtifactStatus.model_fields
            return service.status() | {name: fields[name] for name in sorted(own)}
        return _streamed(_written(fields | service.status(), *prover.found.valid(since)))

    @router.get("/model")
    async def model() -> dict[str, Any]:
        """Say what is served, for workers with engine vllm-server."""
        served = state.hashed()
        return served.info.to_dict() | asdict(served.limits)

    async def compute(body: DistancesBody | ValuesBody) -> tuple[list[Any], EngineInfo]:
        served = state.hashed()
        upcoming = None if body.upcoming is None else body.upcoming.to_batch()
        await served.take_turn()
        try:
            return await served.values(body.to_batch(), upcoming), served.info
        finally:
            served.turn.release()

    @router.post("/distances", response_model=DistancesAnswer)
    async def distances(body: DistancesBody) -> Any:
        """Compute the distances of given nonces, beside whatever else the server does."""
        found, info = await compute(body)
        distances = list(map(finite_or_none, found))
        return DistancesAnswer(distances=distances, fingerprint=info.fingerprint, dtype=info.dtype)

    @router.post("/values", response_model=ValuesAnswer)
    async def values(body: ValuesBody) -> Any:
        """Compute what a proof scheme keeps of given nonces, beside whatever else the server does."""
        found, info = await compute(body)
        values = list(map(body.proof.to_json, found))
        return ValuesAnswer(values=values, fingerprint=info.fingerprint, dtype=info.dtype)

    add_artifact_routes(router, state)
    return router


def _changed(
    prover: Prover, warnings: Sequence[str] = (), also: Mapping[str, str] | None = None
) -> StreamingResponse:
    """Answer a request that changed the round.

    Args:
        prover: that has it.
        warnings: what of it is taken another way than it was asked for.
        also: more fields of its status.
    """

    async def pieces() -> AsyncIterator[str]:
        yield f'{{"status": "OK", "warnings": {json.dumps(warnings)}, "pow_status": '
        async for piece in written:
            yield piece
        yield "}"

    written = _written(prover.status() | dict(also or {}), *prover.found.valid())
    return _streamed(pieces())


def _streamed(pieces: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(pieces, media_type="application/json")


async def _written(fields: dict[str, Any], first: int, valid: list[Block]) -> AsyncIterator[str]:
    """Write a status piece by piece: a round's valid nonces may be millions, and others wait meanwhile."""
    yield json.dumps(fields | {"valid_from": first})[:-1]
    for name, lists in (
        ("valid_nonces", (block.nonces for block in valid)),
        ("valid_distances", (block.values for block in valid)),
    ):
        yield f', "{name}": ['
        separator = ""
        for items in lists:
            yield separator + json.dumps(list(items))[1:-1]
            separator = ", "
            await asyncio.sleep(0)
        yield "]"
    yield "}"


def _round(body: ServedRoundBody) -> ServedRound:
    """Return the round of a body.

    Raises:
        NoRound: r_target or the node is not set, as older clients may leave them.
        InvalidRound: a field is out of bounds.
    """
    if body.r_target is None:
        raise NoRound("PoC config missing r_target")
    if body.node_id == -1 or body.node_count == -1:
        raise NoRound("Node ID and node count must be set")
    return build(ServedRound, body.model_dump())
