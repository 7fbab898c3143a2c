"""Error answers of every service: a status and one sentence, ``{"detail": sentence}``.

The status is that of the error's class (`PocqueueError.http_status`). Routes answer so by themselves,
whatever the application around them does with errors. Where clients know the sentence by another name, the
application's state says so (`ERROR_FIELD`).

What is refused leaves a line in the log: from which address, at which route, why. There is no path in it, which may
have ids and tokens of clients in it, and no token.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope
from typing_extensions import override

from pocqueue.errors import InvalidRound, PocqueueError

logger = logging.getLogger(__name__)

NO_JSON = "The body is not a JSON object."
#: In the state of an application: what its error answers call the sentence; without it ``detail``.
ERROR_FIELD = "error_field"
#: Refusals that are no news: who polls a session that is over is told so again and again.
_OFTEN = {404}
#: Most characters of a reason in the log.
_MAX_WHY = 300
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
    texts: Mapping[int, tuple[str, str]], *statuses: int, model: type[BaseModel] = ErrorAnswer
) -> dict[int | str, dict[str, Any]]:
    """Return error answers for the OpenAPI document of a route.

    Args:
        texts: by status, what it means and an example of its sentence.
        statuses: those that a route has.
        model: of such an answer; has one field.
    """
    [field] = model.model_fields
    return {
        status: {
            "model": model,
            "description": description,
            "content": {"application/json": {"example": {field: example}}},
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
                return answer(422, sentence(exc), request.scope)
            except PocqueueError as exc:
                return refusal(exc, request.scope)
            except HTTPException as exc:
                if exc.__cause__ is None:
                    return answer(exc.status_code, exc.detail, request.scope, exc.headers)
                # FastAPI's own words for a body that cannot be read as JSON, whatever is wrong with it.
                return answer(422, NO_JSON, request.scope)

        return handle


def refusal(exc: PocqueueError, scope: Scope) -> Response:
    """Return the answer that an error is."""
    headers = {}
    if exc.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if exc.http_status in RETRIED:
        headers["Retry-After"] = str(math.ceil(exc.retry_after_s))
    return answer(exc.http_status, exc.detail, scope, headers)


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
        return NO_JSON
    raised = problem.get("ctx", {}).get("error")
    if isinstance(raised, InvalidRound):
        return str(raised)
    if not path:
        # A text or a list in place of an object is not repeated: it may be a token.
        return NO_JSON
    return str(InvalidRound(field, problem.get("input"), problem["msg"]))


def answer(
    status: int, detail: Any, scope: Scope, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error answer to a request; if it refuses what was asked for, it leaves a line in the log."""
    if 400 <= status < 500 and status not in _OFTEN:
        # One line, whatever a client's text has in it.
        why = " ".join(str(detail).split())[:_MAX_WHY]
        logger.warning(
            "Refused %s %s from %s: %d %s",
            *(scope.get("method", "WEBSOCKET"), route_of(scope), address_of(scope), status, why),
        )
    state = getattr(scope.get("app"), "state", None)
    field = getattr(state, ERROR_FIELD, "detail")
    return JSONResponse({field: detail}, status_code=status, headers=headers)


def address_of(scope: Scope) -> str:
    """Return the address that a request comes from."""
    client = scope.get("client")
    return "" if client is None else str(client[0])


def route_of(scope: Scope) -> str:
    """Return the route of a request, such as ``/batches/{session_id}``; before it is found as well."""
    if (route := scope.get("route")) is None and (app := scope.get("app")) is not None:
        found = (one for one in app.routes if one.matches(scope)[0] is not Match.NONE)
        route = next(found, None)
    return str(getattr(route, "path", "(no route)"))
