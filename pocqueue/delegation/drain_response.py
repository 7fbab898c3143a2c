"""A reply that hands batches over for good, and notes that only when the client's machine has it.

Clients that keep no cursor get the batches that are new, and a reply that got lost would lose its batches. So
it is sent, and counts as handed over once the client's kernel has acknowledged its last byte; then the
store notes how far the session was handed over. A client that went away before, whose connection broke, or that
takes no more of it, finds the same batches in its next reply, as nothing was noted. So it does if the note
cannot be made, and if it asks again before the note is made: a batch may come twice, which is harmless.

A proxy that reads ahead acknowledges in the client's place. Cursors have no such gap.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from pocqueue.errors import StoreError
from pocqueue.web.connection import TRANSPORT, is_received

logger = logging.getLogger(__name__)

#: A client that takes not one byte more of a reply for this long has not got it.
STALL_S = 10.0


class DrainResponse(Response):
    """See the module.

    Args:
        body: JSON.
        confirm: notes the hand-over.
    """

    media_type = "application/json"

    def __init__(self, body: bytes, confirm: Callable[[], Awaitable[None]]) -> None:
        super().__init__(body)
        self._confirm = confirm

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply, and note it if it arrives."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        # The client has the whole reply, as it knows its length. What it asks next on this connection waits for
        # the end of this one, and so for the note.
        transport = scope.get("state", {}).get(TRANSPORT)
        if transport is None or await is_received(transport, STALL_S):
            try:
                await self._confirm()
            except StoreError as exc:
                logger.warning("DELEGATION batches will be handed over again: %s", exc)
        else:
            transport.abort()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
