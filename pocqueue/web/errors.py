"""Error answers of every service: a status and one sentence, ``{"detail": sentence}``.

The status is that of the error's class (`PocqueueError.http_status`). Routes answer so by themselves,
whatever the application around them does with errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from typing_extensions import override

from pocqueue.errors import InvalidRound, PocqueueError

#: Statuses that come with `Retry-After`.
RETRIED = {429, 503}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which to try again, "
        f"{PocqueueError.retry_after_s:.0f} if nothing better is known.",
        "schema": {"type": "integer", "minimum": 1},
    }
}


class ErrorAnswer(BaseModel):
    """One sentence on what was wrong."""

    detail: str


def error_answers(
    texts: Mapping[int, tuple[str, str]], *statuses: int
) -> dict[int | str, dict[str, Any]]:
    """Return error answers for the OpenAPI document of a route.

    Args:
        texts: by status, what it means and an example of its sentence.
        statuses: those that a route has.
    """
    return {
        status: {
            "model": ErrorAnswer,
            "description": description,
            "content": {"application/json": {"example": {"detail": example}}},
            **({"headers": _RETRY_AFTER} if status in RETRIED else {}),
        }
        for status, (description, example) in texts.items()
        if status in statuses
    }


class SentenceRoute(APIRoute):
    """Answers with a status and one sentence when something goes wrong."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as exc:
                return answer(422, sentence(exc))
            except PocqueueError as exc:
                return refusal(exc)

        return handle


def refusal(exc: PocqueueError) -> Response:
    """Return the answer that an error is."""
    headers = {}
    if exc.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if exc.http_status in RETRIED:
        headers["Retry-After"] = str(math.ceil(exc.retry_after_s))
    return answer(exc.http_status, str(exc), headers)


def sentence(exc: RequestValidationError) -> str:
    """Say what is wrong with a body or a query: field, value, what is allowed."""
    problem = exc.errors()[0]
    place, *path = (str(part) for part in problem["loc"])
    if place not in {"body", "query", "path"}:
        path = [place, *path]
    field = ".".join(path) or "body"
    if problem["type"] == "missing":
        return f"{field} is missing."
    if problem["type"] == "json_invalid":
        return "The body is not a JSON object."
    raised = problem.get("ctx", {}).get("error")
    if isinstance(raised, InvalidRound):
        return str(raised)
    return str(InvalidRound(field, problem.get("input"), problem["msg"]))


def answer(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error answer."""
    return JSONResponse({"detail": detail}, status_code=status, headers=headers)
