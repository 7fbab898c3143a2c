"""A reply that hands batches over for good, and notes that only when the client has it.

Clients that keep no cursor get each batch once, and a reply that got lost would lose its batches. So
the whole body but its last byte is sent; then it is looked whether the client is still there; then
the store notes how far the session was handed over; then the last byte goes out. A client that went
away before, whose connection broke, or that gave up waiting, finds the same batches in its next
reply, as nothing was noted. If the note cannot be made (another poll of the same session was
faster, or Redis is gone) the connection is cut: a client that lacks the last byte of an announced
length has no reply.

What a server can know is what its kernel knows. A client whose machine or network vanishes without a
word, while the body still lies in the send buffer, looks connected and loses that reply; so does one
whose note was made by a Redis that did not get to say so for ten seconds. Cursors have no such gap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from pocqueue.errors import StoreError

logger = logging.getLogger(__name__)

#: Pieces of a body that are passed over when it is looked whether the client is still there.
_MAX_BODY_MESSAGES = 8


class DrainResponse(Response):
    """See the module.

    Args:
        body: JSON.
        confirm: notes the hand-over; False: another reply was faster.
    """

    media_type = "application/json"

    def __init__(self, body: bytes, confirm: Callable[[], Awaitable[bool]]) -> None:
        super().__init__(body)
        self._confirm = confirm

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply, or cut the connection before its end."""
        body = bytes(self.body)
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": body[:-1], "more_body": True})
        # A server lets one wait before it writes: this one returns once the network took most of it.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        if await is_gone(receive):
            return
        try:
            confirmed = await self._confirm()
        except StoreError as exc:
            logger.warning("DELEGATION reply cut off before its end: %s", exc)
            return
        if confirmed:
            await send({"type": "http.response.body", "body": body[-1:], "more_body": False})


async def is_gone(receive: Receive) -> bool:
    """Say whether the client closed the connection, without waiting for it."""
    # Before that comes the body, empty as a rule, that a route without one leaves unread.
    for _ in range(_MAX_BODY_MESSAGES):
        message = await _next_message(receive)
        if message is None:
            return False
        if message["type"] == "http.disconnect":
            return True
    return False


async def _next_message(receive: Receive) -> Message | None:
    """Return the next message of the server about the request; None: there is none yet."""
    message = asyncio.ensure_future(receive())
    # A few times round the loop: for the network's news, for the server to hear it and to pass it on.
    for _ in range(4):
        await asyncio.sleep(0)
        if message.done():
            break
    message.cancel()
    await asyncio.wait([message])
    return None if message.cancelled() else message.result()


def _is_no_cut_reply(record: logging.LogRecord) -> bool:
    return record.msg != "ASGI callable returned without completing response."


def expect_cut_replies() -> None:
    """Have the server say nothing of replies that are cut on purpose."""
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut_reply)
