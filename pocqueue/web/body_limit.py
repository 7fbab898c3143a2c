"""Refuses bodies that are larger, or come in more slowly, than any that a client needs to send."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocqueue.web.errors import answer

#: Time for a body to come in, in seconds.
MAX_BODY_S = 10.0


class _Refused(HTTPException):
    """A body that is given up: the rest of it is not waited for.

    Of this class, as FastAPI takes any other error while it reads a body for the body's own.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(status, why, headers={"Connection": "close"})


@dataclass(eq=False)
class BodyLimit:
    """ASGI middleware: 413 for larger bodies, announced or not, and 408 for slower ones."""

    app: ASGIApp  #: what comes behind
    max_bytes: int  #: of a body
    max_s: float = MAX_BODY_S  #: seconds from the request's head to the end of its body
    within: str = ""  #: limits paths with this in them; of the others an application sees to itself

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] == "GET" or self.within not in scope["path"]:
            await self.app(scope, receive, send)
            return
        too_large = _Refused(413, f"The body is larger than {self.max_bytes} bytes.")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        end = asyncio.get_running_loop().time() + self.max_s
        num_bytes, is_whole = 0, False

        async def limited() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:
                # What comes next is the news that the client has gone, whenever that is.
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise _Refused(
                    408, f"The body did not come within {self.max_s:g} seconds."
                ) from None
            num_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if num_bytes > self.max_bytes:
                raise too_large
            return message

        try:
            if not announced.isdigit() or int(announced) > self.max_bytes:
                raise too_large
            await self.app(scope, limited, send)
        except _Refused as exc:
            # Bodies are read before anything is answered.
            await answer(exc.status_code, exc.detail, scope, exc.headers)(scope, receive, send)
