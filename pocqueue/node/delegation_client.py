"""The delegation API of a big node, as its small node calls it (WIRE.md section 1).

Works with big nodes of ours, which take a cursor and wait with their answer, and with those of today,
which hand every batch out once. What goes wrong is a `DelegationError` that says what to check.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from pocqueue.errors import DelegationError, SettingsError
from pocqueue.node.node_round import NodeRound
from pocqueue.poc.data import ProofBatch

#: Of one request, beside the time that the big node is asked to wait.
TIMEOUT_S = 10.0

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class StartedSession:
    """What a big node said to `start`."""

    session_id: str
    gpu_count: int
    message: str
    #: What it searches with; empty where it does not say.
    model: RemoteModel


class RemoteModel(BaseModel):
    """What a big node of ours says about the model of a session; empty: nothing."""

    model: str = ""
    model_fingerprint: str = ""
    model_dtype: str = ""
    model_runtime: str = ""


@dataclass(frozen=True, slots=True)
class BatchPage:
    """What a big node said to `batches`."""

    batches: list[ProofBatch]
    active: bool
    status: str
    #: Where the next page begins; None: the big node knows no cursors.
    cursor: str | None


class _Started(RemoteModel):
    session_id: str = Field(min_length=1, max_length=256)
    gpu_count: int = Field(default=0, ge=0)
    message: str = ""


class _Batch(BaseModel):
    public_key: str
    block_hash: str
    block_height: int
    nonces: list[int] = Field(max_length=1_000_000)
    dist: list[float] = Field(max_length=1_000_000)
    node_id: int = 0


class _Page(BaseModel):
    batches: list[_Batch]
    session_active: bool
    status: str = ""
    cursor: str | None = Field(default=None, max_length=256)


class DelegationClient:
    """A client of one big node; an async context manager.

    Args:
        url: of the big node, such as ``http://192.168.1.100:9090``.
        token: its token for us.
        ca: PEM file with the authority of its certificate; None: the system's.
        timeout_s: seconds for one request, beside a wait that was asked for.

    Raises:
        SettingsError: the PEM file cannot be read.
    """

    def __init__(
        self, url: str, token: str, *, ca: Path | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        # In a URL a token ends up in logs, so only where the big node reads it nowhere else.
        self._token_in_query = False
        self._http = httpx.AsyncClient(
            base_url=f"{self.url}/api/v1/delegation",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            verify=_tls_context(ca),
            # A proxy of the environment is for other traffic.
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def start(self, node_round: NodeRound) -> StartedSession:
        """Start a session.

        Raises:
            DelegationError: unreachable, or refused: wrong token, too many sessions, another model …
        """
        body = node_round.start_body() | {"auth_token": self._token}
        started = self._read(_Started, await self._send("POST", "/start", json=body))
        model = RemoteModel(**started.model_dump(include=set(RemoteModel.model_fields)))
        return StartedSession(started.session_id, started.gpu_count, started.message, model)

    async def batches(self, session_id: str, cursor: str, wait_s: float) -> BatchPage:
        """Fetch the batches behind a cursor.

        Args:
            session_id: from `start`.
            cursor: of the page before, empty before the first.
            wait_s: seconds that the big node may wait for something to say.

        Raises:
            DelegationError: unreachable, or the session is not known (any more).
        """
        query = {"cursor": cursor, "wait": f"{wait_s:g}"}
        path = f"/batches/{session_id}"
        if not self._token_in_query:
            try:
                reply = await self._send("GET", path, params=query, wait_s=wait_s)
            except DelegationError as exc:
                if exc.status not in {400, 401, 403, 422}:
                    raise
                # Today's big nodes read it there and nowhere else.
                reply = await self._with_query_token(path, query, wait_s)
                self._token_in_query = True
        else:
            reply = await self._with_query_token(path, query, wait_s)
        page = self._read(_Page, reply)
        batches = [ProofBatch(**batch.model_dump()) for batch in page.batches]
        return BatchPage(batches, page.session_active, page.status, page.cursor)

    async def stop(self, session_id: str) -> None:
        """Stop a session; what it found can still be fetched.

        Raises:
            DelegationError: unreachable, or the session is not known (any more).
        """
        await self._send(
            "POST", "/stop", json={"session_id": session_id, "auth_token": self._token}
        )

    async def _with_query_token(
        self, path: str, query: dict[str, str], wait_s: float
    ) -> httpx.Response:
        return await self._send(
            "GET", path, params=query | {"auth_token": self._token}, wait_s=wait_s
        )

    async def _send(
        self, method: str, path: str, *, wait_s: float = 0.0, **parts: Any
    ) -> httpx.Response:
        try:
            reply = await self._http.request(
                method, path, timeout=self._timeout_s + wait_s, **parts
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            raise DelegationError(
                f"{_cause(exc, self._timeout_s)}. Check that the delegation service runs at "
                f"{self.url}, that DELEGATION_URL is right and that the port is open between the nodes.",
                is_final=False,
            ) from exc
        if reply.status_code == 200:
            return reply
        raise DelegationError(
            _refusal(reply),
            is_final=reply.status_code < 500 and reply.status_code not in {408, 425, 429},
            status=reply.status_code,
        )

    def _read(self, kind: type[Model], reply: httpx.Response) -> Model:
        try:
            return kind.model_validate_json(reply.content)
        except ValidationError as exc:
            problem = exc.errors()[0]
            field = ".".join(str(part) for part in problem["loc"]) or "the reply"
            raise DelegationError(
                f"The big node at {self.url} answers what no delegation service does ({field}: "
                f"{problem['msg']}). Check DELEGATION_URL.",
                is_final=False,
            ) from None


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as exc:
        raise SettingsError(
            f"DELEGATION_TLS_CA is {str(ca)!r}, which cannot be read as PEM certificates "
            f"({getattr(exc, 'strerror', None) or 'no certificate in it'}): give the authority's file."
        ) from None


def _refusal(reply: httpx.Response) -> str:
    """Return the sentence of an error answer."""
    detail: object = None
    with contextlib.suppress(ValueError, AttributeError):
        detail = reply.json().get("detail")
    if isinstance(detail, str) and detail:
        return detail[:500]
    return f"HTTP {reply.status_code} from the big node"


def _cause(exc: BaseException, timeout_s: float) -> str:
    """Say in a few words why there is no answer."""
    for error in _chain(exc):
        if isinstance(error, ssl.SSLError):
            return f"TLS failed ({error.reason or 'no TLS there'})"
        if isinstance(error, OSError) and error.errno is not None:
            return (
                error.strerror if error.errno < 0 and error.strerror else os.strerror(error.errno)
            )
    if isinstance(exc, httpx.TimeoutException):
        return f"No answer within {timeout_s:g} s"
    return str(exc).rstrip(".") or type(exc).__name__


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        if isinstance(exc, BaseExceptionGroup):
            for inner in exc.exceptions:
                yield from _chain(inner)
        yield exc
        exc = exc.__cause__ or exc.__context__
