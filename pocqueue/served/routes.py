"""The proof routes of a vLLM server, `/api/v1/pow/…`; docs/wire.md.

Errors are ``{"detail": sentence}`` whatever the application around them does with errors.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Scope

from pocqueue.errors import EngineUnavailable, PocqueueError
from pocqueue.poc.distance.data import finite_or_none
from pocqueue.poc.distance.scheme import Distance, ProofBody
from pocqueue.poc.fields import Allowed, build
from pocqueue.served.found import Block
from pocqueue.served.model import ServedModel
from pocqueue.served.prover import NoRound, Prover, ServedRound
from pocqueue.served.schema import (
    ERRORS,
    DistancesAnswer,
    DistancesBody,
    ServedRoundAnswer,
    ServedRoundBody,
    ServedStatusAnswer,
    VerdictAnswer,
)
from pocqueue.web.body_limit import BodyLimit
from pocqueue.web.door import Access, Asks, Door, find_token
from pocqueue.web.errors import SentenceRoute
from pocqueue.web.failure_limit import FailureLimit

logger = logging.getLogger("vllm.pocqueue")

T = TypeVar("T")

Since = Annotated[
    int,
    Query(ge=0, description="How many of the round's valid nonces the client has: `total_valid`."),
    Allowed("a whole number of at least 0"),
]

PREFIX = "/api/v1/pow"
#: A proof of 100 000 nonces takes some 4 MB.
MAX_BODY_BYTES = 16 << 20
_REFUSAL = "Invalid auth token; send it as `Authorization: Bearer TOKEN`."
#: How often a long answer looks whether anybody still waits for it.
_LOOK_EVERY_S = 1.0


class Disconnected(PocqueueError):
    """Nobody waits for the answer any more."""

    http_status = 400


@dataclass(eq=False)
class RouteState:
    """What the routes work on, which comes after them: a server adds routes, then loads its model."""

    prover: Prover | None = None  #: None until the engine is there, or if it cannot be used
    reason: str = "Engine not available: the server is still starting."  #: why there is none
    tokens: Sequence[str] = ()  #: digest of each token that opens the routes; empty: they are open
    #: Why the model's fingerprint is not known yet, or never will be.
    model_error: str | None = "the model's weights are being hashed"

    def ready(self) -> Prover:
        """Return the prover.

        Raises:
            EngineUnavailable: there is none; says why.
        """
        if self.prover is None:
            raise EngineUnavailable(self.reason)
        return self.prover

    def hashed(self) -> ServedModel:
        """Return the model, whose fingerprint is known.

        Raises:
            EngineUnavailable: there is none, or it is not known; says why.
        """
        prover = self.ready()
        if self.model_error is not None:
            raise EngineUnavailable(f"Engine not available: {self.model_error}.")
        return prover.model

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
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, within=PREFIX)


def pow_router(state: RouteState) -> APIRouter:
    """Return the routes, over a state that is filled in later."""
    router = APIRouter(prefix=PREFIX, route_class=SentenceRoute, tags=["proof"], responses=ERRORS)

    def begins(path: str, then: Callable[[Prover], None], text: str) -> None:
        @router.post(path, response_model=ServedRoundAnswer, description=text)
        async def begin(body: ServedRoundBody) -> Any:
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

    def changes(path: str, act: Callable[[Prover], None], text: str) -> None:
        @router.post(path, response_model=ServedRoundAnswer, description=text)
        async def change() -> Any:
            prover = state.ready()
            act(prover)
            return _changed(prover)

    busy = "Inference routes answer 503 until it is over."
    begins("/init", lambda _: None, "Set up a round.")
    begins("/init/generate", Prover.generate, f"Set up a round and search its nonces. {busy}")
    begins("/init/validate", Prover.validate, f"Set up a round to check proofs for. {busy}")
    changes("/phase/generate", Prover.generate, "Search the nonces of the round at hand.")
    changes("/phase/validate", Prover.validate, "Stop searching and check proofs of the round.")
    changes("/stop", Prover.stop, "End the round; inference goes on at once.")

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
    async def status(since: Since = 0) -> Any:
        """Say how the round stands, with its valid nonces from the `since`-th on, the first being the 0th."""
        prover = state.ready()
        fields = prover.status() | {"running_requests": prover.gate.running}
        return _streamed(_written(fields, *prover.found.valid(since)))

    @router.get("/model")
    async def model() -> dict[str, Any]:
        """Say what is served, for workers with engine vllm-server."""
        served = state.hashed()
        return served.info.to_dict() | asdict(served.limits)

    @router.post("/distances", response_model=DistancesAnswer)
    async def distances(body: DistancesBody) -> Any:
        """Compute the distances of given nonces, beside whatever else the server does."""
        served = state.hashed()
        upcoming = None if body.upcoming is None else body.upcoming.to_batch()
        await served.take_turn()
        try:
            computed = await served.values(body.to_batch(), upcoming)
        finally:
            served.turn.release()
        return DistancesAnswer(
            distances=list(map(finite_or_none, computed)),
            fingerprint=served.info.fingerprint,
            dtype=served.info.dtype,
        )

    return router


def _changed(prover: Prover, warnings: Sequence[str] = ()) -> StreamingResponse:
    """Answer a request that changed the round; with what of it is taken another way than it was asked for."""

    async def pieces() -> AsyncIterator[str]:
        yield f'{{"status": "OK", "warnings": {json.dumps(warnings)}, "pow_status": '
        async for piece in written:
            yield piece
        yield "}"

    written = _written(prover.status(), *prover.found.valid())
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
        NoRound: r_target or the node is not set, as older clients may leave them.
        InvalidRound: a field is out of bounds.
    """
    if body.r_target is None:
        raise NoRound("PoC config missing r_target")
    if body.node_id == -1 or body.node_count == -1:
        raise NoRound("Node ID and node count must be set")
    return build(ServedRound, body.model_dump())
