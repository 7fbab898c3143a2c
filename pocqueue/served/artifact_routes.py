"""The routes of artifacts that a vLLM server has beside those of distances; docs/wire.md."""

from __future__ import annotations

import sys
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from pocqueue import __version__
from pocqueue.poc.artifact.bodies import GenerateBody
from pocqueue.served.schema import JobAnswer, VersionsAnswer
from pocqueue.served.state import RouteState
from pocqueue.web.waiting import while_connected


def add_artifact_routes(router: APIRouter, state: RouteState) -> None:
    """Add the routes that only the artifact proof has."""

    @router.post("/generate", response_model=JobAnswer, response_model_exclude_unset=True)
    async def generate(body: GenerateBody, request: Request) -> Any:
        """Compute the artifacts of given nonces, or validate somebody's; they stand still while a round is searched."""
        artifacts = state.asked(body.params)
        job = artifacts.submit(body)
        if body.wait:
            return JSONResponse(await while_connected(request, artifacts.jobs.result(job)))
        return {
            "status": "queued",
            "request_id": job.request_id,
            "queued_count": len(job.nonces),
        }

    @router.get("/generate/{request_id}", response_model=JobAnswer)
    async def find(request_id: str) -> Any:
        """Say how a request stands, with its result for a while."""
        return JSONResponse(state.service().jobs.find(request_id).answer())

    @router.get("/versions", response_model=VersionsAnswer)
    async def versions() -> Any:
        """Say what runs here."""
        # Of the process that serves; nothing is loaded for it.
        vllm = getattr(sys.modules.get("vllm"), "__version__", None)
        return {
            "vllm_version": vllm,
            "gonka_poc_version": f"pocqueue {__version__}",
            "poc_validation_inference": True,
        }
