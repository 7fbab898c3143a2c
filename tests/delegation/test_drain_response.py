"""A reply that hands batches over for good: what is sent when, and when nothing is noted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from pocqueue.delegation.drain_response import DrainResponse, is_gone
from pocqueue.errors import StoreUnavailable

BODY = b'{"batches":[]}'
#: What a server passes on of a request without a body.
NO_BODY = {"type": "http.request", "body": b"", "more_body": False}
GONE = {"type": "http.disconnect"}


class Connection:
    """A client's connection, as an ASGI server shows it to an application.

    Args:
        news: what the server says, one after the other; then nothing.
    """

    def __init__(self, *news: dict[str, Any]) -> None:
        self.news = list(news)
        self.sent: list[MutableMapping[str, Any]] = []

    async def receive(self) -> MutableMapping[str, Any]:
        if not self.news:
            await asyncio.Event().wait()
        return self.news.pop(0)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def is_complete(self) -> bool:
        return self.sent[-1].get("more_body") is False

    async def reply(self, confirm: Callable[[], Awaitable[bool]]) -> None:
        """Send a reply to it."""
        await DrainResponse(BODY, confirm)({"type": "http"}, self.receive, self.send)


@pytest.mark.parametrize("news", [[], [NO_BODY]])
async def test_the_last_byte_comes_after_the_note(news: list[dict[str, Any]]) -> None:
    """All of the body but that was sent before, and its length was announced."""
    connection = Connection(*news)
    seen: list[bytes] = []

    async def confirm() -> bool:
        seen.append(connection.body)
        return True

    await connection.reply(confirm)
    assert seen == [BODY[:-1]]
    assert connection.body == BODY
    assert connection.is_complete
    assert (b"content-length", str(len(BODY)).encode()) in connection.sent[0]["headers"]


@pytest.mark.parametrize("news", [[GONE], [NO_BODY, GONE], [NO_BODY, NO_BODY, GONE]])
async def test_nothing_is_noted_for_a_client_that_went_away(news: list[dict[str, Any]]) -> None:
    """Also where the server has the request's body to pass on before it says so."""
    connection = Connection(*news)

    async def confirm() -> bool:
        raise AssertionError("noted")

    await connection.reply(confirm)
    assert not connection.is_complete


@pytest.mark.parametrize("failure", [None, StoreUnavailable("Redis does not answer.")])
async def test_what_was_not_noted_is_cut(failure: Exception | None) -> None:
    """The client lacks the last byte of an announced length, so it has no reply."""
    connection = Connection()

    async def confirm() -> bool:
        if failure is not None:
            raise failure
        return False

    await connection.reply(confirm)
    assert connection.body == BODY[:-1]
    assert not connection.is_complete


async def test_a_look_waits_for_nothing() -> None:
    """Whoever is still there says nothing."""
    async with asyncio.timeout(5):
        assert not await is_gone(Connection().receive)
        assert not await is_gone(Connection(NO_BODY).receive)
        assert not await is_gone(Connection(*[NO_BODY] * 100).receive)
        assert await is_gone(Connection(GONE).receive)
