"""Refuses bodies that are larger than any that a client needs to send, before they are read."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocqueue.web.errors import answer


class _TooLarge(Exception):
    pass


class BodyLimit:
    """ASGI middleware: 413 for larger bodies, announced or not.

    Args:
        app: what comes behind.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        refusal = answer(413, f"The body is larger than {self._max_bytes} bytes.")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._max_bytes:
            await refusal(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message: dict[str, Any] = dict(await receive())
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise _TooLarge
            return message

        try:
            await self._app(scope, counted, send)
        except _TooLarge:
            # Bodies are read before anything is answered.
            await refusal(scope, receive, send)
