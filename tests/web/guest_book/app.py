"""The guest book's routes: guests write with a token, over HTTP or a WebSocket; anybody sees that it works."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, WebSocket
from pydantic import BaseModel, Field
from starlette.middleware import Middleware
from starlette.types import Scope

from pocqueue.errors import PocqueueError
from pocqueue.web.app import make_app
from pocqueue.web.door import Access, Asks, Door
from pocqueue.web.errors import SentenceRoute, error_answers
from pocqueue.web.failure_limit import FailureLimit
from tests.web.guest_book.store import Guest, GuestBook

#: Wrong tokens of one address in a minute.
MAX_FAILURES = 3


class NotYourHouse(PocqueueError):
    """Only hosts may do that."""

    http_status = 403


class Note(BaseModel):
    """What a guest writes."""

    text: str = Field(min_length=1, max_length=100)


class Written(BaseModel):
    """It is in the book."""

    by: str
    number: int


_ERRORS = {
    401: ("The token is missing or wrong.", "Invalid auth token."),
    422: ("A field has a value that is not allowed.", "text is missing."),
    429: ("Too many wrong tokens came from this address.", "Too many wrong tokens …"),
}


def create_app(path: Path) -> FastAPI:
    """Make the application on its file."""
    book = GuestBook(path)
    access: Access[Guest] = Access(book.find, FailureLimit(MAX_FAILURES))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with book:
            yield

    def asks(scope: Scope) -> Asks:
        # A visitor sends the token as the first message.
        return Asks.NOTHING if scope["path"] in {"/health", "/visit"} else Asks.TOKEN

    app = make_app(
        "guest book",
        "Of the tests.",
        lifespan,
        max_body_bytes=1000,
        middleware=[Middleware(Door, access, asks=asks)],
    )
    router = APIRouter(route_class=SentenceRoute)

    @router.get("/health")
    async def health() -> str:
        return "ok"

    @router.post("/notes", response_model=Written, responses=error_answers(_ERRORS, 401, 422, 429))
    async def notes(note: Note, request: Request) -> Written:
        return Written(by=request.user.name, number=book.write(request.user.name, note.text))

    @router.post("/guests/{name}")
    async def invite(name: str, token: str, request: Request) -> str:
        if not request.user.is_host:
            raise NotYourHouse("Ask the host of the house.")
        book.invite(name, token)
        return name

    async def write_all(guest: Guest, websocket: WebSocket) -> None:
        async for text in websocket.iter_text():
            await websocket.send_json({"by": guest.name, "number": book.write(guest.name, text)})

    @router.websocket("/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        await write_all(websocket.user, websocket)

    @router.websocket("/visit")
    async def visit(websocket: WebSocket) -> None:
        await websocket.accept()
        address = "" if websocket.client is None else websocket.client.host
        try:
            guest = await access.admit(address, await websocket.receive_text())
        except PocqueueError as exc:
            await websocket.close(1008, str(exc))
            return
        await write_all(guest, websocket)

    app.include_router(router)
    return app
