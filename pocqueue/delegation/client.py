"""The delegation API of a big node, as its small node calls it (docs/wire.md).

Works with big nodes that have cursors and long polls, as this project's do, and with legacy ones, which have
neither and hand every batch out once. What goes wrong is a `DelegationError` that says what to check.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, Field, ValidationError, create_model
from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.errors import DelegationError
from pocqueue.poc.proofs import ReceivedBatch
from pocqueue.poc.scheme import DEFAULT, ProofScheme, scheme_class
from pocqueue.web.tls import tls_context

#: Seconds for one request, beside the time that the big node is asked to wait.
TIMEOUT_S = 10.0
#: Largest reply that is read, and most nonces of a page: more than our own big node puts into one (8 MiB of
#: nonces and values), and than a pool of 1,000 nonces/s finds in a whole window.
MAX_REPLY_BYTES = 16 << 20
MAX_PAGE_NONCES = 400_000
#: Longest error answer that is looked into.
MAX_REFUSAL_BYTES = 1 << 16
#: Seconds more for `start`: some big nodes set up their GPUs before they answer.
START_WAIT_S = 20.0

Model = TypeVar("Model", bound=BaseModel)


class RemoteModel(BaseModel):
    """What a big node says about the model of a session; legacy ones say nothing."""

    model: str = Field(default="", max_length=1024)
    model_fingerprint: str = Field(default="", max_length=256)
    model_dtype: str = Field(default="", max_length=256)
    model_runtime: str = Field(default="", max_length=256)


class RemoteSession(RemoteModel):
    """What a big node said to `start`."""

    #: It comes into paths, file and log lines.
    session_id: str = Field(max_length=256, pattern=r"^[\x21-\x7e]+$")
    gpu_count: int = Field(default=0, ge=0)
    message: str = ""
    proof: str = Field(default=DEFAULT, max_length=256)  #: those that do not say know no other one


@dataclass(frozen=True, slots=True)
class BatchPage:
    """What a big node said to `batches`."""

    batches: list[ReceivedBatch]
    active: bool
    status: str
    #: Where the next page begins; None: the big node knows no cursors.
    cursor: str | None


class _Page(BaseModel):
    batches: list[Any]
    session_active: bool
    status: str = ""
    cursor: str | None = Field(default=None, max_length=256)


@cache
def _page_of(scheme: type[ProofScheme]) -> type[_Page]:
    batches: Any = (list[scheme.batch_model()], ...)  # type: ignore[misc]
    return create_model("Page", __base__=_Page, batches=batches)


@dataclass(eq=False, repr=False)
class DelegationClient(AsyncClosing):
    """A client of one big node; an async context manager.

    Raises:
        SettingsError: the PEM file cannot be read.
        DelegationError: the URL or the token cannot be one.
    """

    url: str  #: of the big node, such as ``http://192.168.1.100:9090``
    token: str  #: its token for us
    _: KW_ONLY
    ca: Path | None = None  #: PEM file with the authority of its certificate; None: the system's
    timeout_s: float = TIMEOUT_S
    start_wait_s: float = START_WAIT_S
    max_reply_bytes: int = MAX_REPLY_BYTES
    max_page_nonces: int = MAX_PAGE_NONCES
    scheme: str = DEFAULT  #: how the proofs of its sessions are made

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        self._scheme = scheme_class(self.scheme)
        # In a URL a token ends up in logs, so it stands there only if the big node reads it nowhere else.
        self._token_in_query = False
        # To make a context takes tens of milliseconds.
        verify = (
            tls_context(self.ca, "DELEGATION_TLS_CA") if self.url.startswith("https:") else False
        )
        try:
            self._http = httpx.AsyncClient(
                base_url=f"{self.url}/api/v1/delegation",
                # Uncompressed: so many bytes of a reply are so many in memory.
                headers={"Authorization": f"Bearer {self.token}", "Accept-Encoding": "identity"},
                timeout=self.timeout_s,
                verify=verify,
                # A proxy of the environment is for other traffic.
                trust_env=False,
            )
        except (httpx.InvalidURL, UnicodeError):
            raise DelegationError(
                f"{self.url!r} with its token cannot be asked. Check DELEGATION_URL and "
                "DELEGATION_AUTH_TOKEN, or delegation_url and delegation_auth_token of the request.",
                is_final=True,
            ) from None

    @override
    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def start(self, search: Mapping[str, Any]) -> RemoteSession:
        """Start a session. If the answer breaks off, ask again, once, for the same session.

        Args:
            search: body of the request without token and request id.

        Raises:
            DelegationError: unreachable, or refused: wrong token, too many sessions, another model …; or it knows
                no such proofs and would search for something else.
        """
        # By the id a big node knows that it is the same request; legacy ones ignore it.
        body = {**search, **self._as_field, "request_id": str(uuid.uuid4())}
        try:
            try:
                reply = await self._post("/start", body, self.start_wait_s)
            except DelegationError as exc:
                if not isinstance(exc.__cause__, httpx.RemoteProtocolError | httpx.ReadError):
                    raise
                reply = await self._post("/start", body, self.start_wait_s)
        except DelegationError as exc:
            # It misses what no other proof has.
            if self.scheme != DEFAULT and exc.status in {400, 422} and "r_target" in str(exc):
                raise self._no_such_proofs(exc.status) from exc
            raise
        session = self._read(RemoteSession, reply)
        if session.proof != self.scheme:
            with contextlib.suppress(DelegationError):  # its window ends it then
                await self.stop(session.session_id)
            raise self._no_such_proofs(None)
        return session

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
        with_token = query | self._as_field
        path = f"/batches/{quote(session_id, safe='')}"
        params = with_token if self._token_in_query else query
        reply = await self._ask("GET", path, params=params, wait_s=wait_s)
        if not self._token_in_query and _wants_query_token(reply):
            reply = await self._ask("GET", path, params=with_token, wait_s=wait_s)
            self._token_in_query = reply.status_code == 200
        # In a thread: a page may be large, and others wait for this one.
        return await asyncio.to_thread(self._page, self._checked(reply))

    async def stop(self, session_id: str) -> None:
        """Stop a session; what it found can still be fetched.

        Raises:
            DelegationError: unreachable, or the session is not known (any more).
        """
        await self._post("/stop", {"session_id": session_id} | self._as_field, 0.0)

    def _no_such_proofs(self, status: int | None) -> DelegationError:
        return DelegationError(
            f"The big node at {self.url} does not know proofs of the kind {self.scheme!r} and would give others. "
            "Have its operator bring it up to date, or name another one in DELEGATION_URL",
            is_final=True,
            status=status,
        )

    def _page(self, reply: httpx.Response) -> BatchPage:
        page = self._read(_page_of(self._scheme), reply)
        batches = [self._scheme.read(batch) for batch in page.batches]
        if (num := sum(len(batch.proofs.nonces) for batch in batches)) > self.max_page_nonces:
            raise DelegationError(
                f"The big node at {self.url} answers with {num:,} nonces at once; allowed are "
                f"{self.max_page_nonces:,}",
                is_final=True,
            )
        return BatchPage(batches, page.session_active, page.status[:100], page.cursor)

    @property
    def _as_field(self) -> dict[str, str]:
        return {"auth_token": self.token}

    async def _post(self, path: str, body: dict[str, Any], wait_s: float) -> httpx.Response:
        try:
            # For the whole exchange: a reply that comes a byte at a time must not hold up what comes next.
            async with asyncio.timeout(self.timeout_s + wait_s):
                return self._checked(await self._ask("POST", path, wait_s=wait_s, json=body))
        except TimeoutError as exc:
            raise self._unreachable(exc, wait_s) from exc

    async def _ask(
        self, method: str, path: str, *, wait_s: float = 0.0, **parts: Any
    ) -> httpx.Response:
        """Return the reply, whatever its status."""
        timeout = httpx.Timeout(self.timeout_s + wait_s, connect=self.timeout_s)
        request = self._http.build_request(method, path, timeout=timeout, **parts)
        try:
            reply = await self._http.send(request, stream=True)
            try:
                content = bytearray()
                async for piece in reply.aiter_raw():
                    content += piece
                    if len(content) > self.max_reply_bytes:
                        raise DelegationError(
                            f"The big node at {self.url} answers with more than "
                            f"{self.max_reply_bytes >> 20} MiB, which no session needs",
                            is_final=True,
                        )
            finally:
                await reply.aclose()
        except DelegationError:
            raise
        # UnicodeError: a host name that cannot be written for DNS.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as exc:
            raise self._unreachable(exc, wait_s) from exc
        return httpx.Response(reply.status_code, headers=reply.headers, content=bytes(content))

    def _checked(self, reply: httpx.Response) -> httpx.Response:
        """Return a reply that is none of an error.

        Raises:
            DelegationError: it is.
        """
        if reply.status_code == 200:
            return reply
        raise DelegationError(
            self._refusal(reply),
            is_final=reply.status_code < 500 and reply.status_code not in {408, 425, 429},
            status=reply.status_code,
        )

    def _refusal(self, reply: httpx.Response) -> str:
        """Return the sentence of an error answer."""
        status = reply.status_code
        if 300 <= status < 400:
            return (
                f"{self.url} answers with a redirect (HTTP {status}), and redirects are not followed. "
                "Set DELEGATION_URL to where it leads"
            )
        detail: object = None
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            detail = reply.json().get("detail") if len(reply.content) <= MAX_REFUSAL_BYTES else None
        if isinstance(detail, list):
            # FastAPI's own; what was sent is in there too, and stays out of messages.
            with contextlib.suppress(LookupError, TypeError):
                place = ".".join(str(part) for part in detail[0]["loc"])
                detail = f"HTTP {status} from the big node ({place}: {detail[0]['msg']})"
        if not isinstance(detail, str) or not detail.strip():
            detail = f"HTTP {status} from the big node"
        elif detail in {"Not Found", "Method Not Allowed"}:
            # The answer of a server that has no such path.
            detail = f"{self.url} is no delegation service (HTTP {status}: {detail}). Check DELEGATION_URL"
        # One line, and nothing that a terminal would obey.
        shown = "".join(c if c.isprintable() else " " for c in detail[:500])
        return shown.replace(self.token, "…")

    def _unreachable(self, exc: BaseException, wait_s: float) -> DelegationError:
        connecting = isinstance(exc, httpx.ConnectTimeout)
        return DelegationError(
            f"{_cause(exc, self.timeout_s + (0.0 if connecting else wait_s))}. Check that the delegation service runs at "
            f"{self.url}, that DELEGATION_URL is right and that the port is open between the nodes.",
            is_final=False,
        )

    def _read(self, kind: type[Model], reply: httpx.Response) -> Model:
        try:
            return kind.model_validate_json(reply.content)
        except ValidationError as exc:
            problem = exc.errors()[0]
            field = ".".join(str(part) for part in problem["loc"]) or "the reply"
            raise DelegationError(
                f"The big node at {self.url} answers what no delegation service does "
                f"({field[:80]}: {problem['msg']}). Check DELEGATION_URL.",
                is_final=False,
            ) from None


def _wants_query_token(reply: httpx.Response) -> bool:
    """Say whether a big node did not see the token in the header; legacy ones read the query only."""
    knows_headers = "bearer" in reply.headers.get("WWW-Authenticate", "").lower()
    return reply.status_code in {400, 401, 403, 422} and not knows_headers


def _cause(exc: BaseException, timeout_s: float) -> str:
    """Say in a few words why there is no answer."""
    for error in _chain(exc):
        if isinstance(error, ssl.SSLError):
            reason = getattr(error, "verify_message", None) or error.reason or "no TLS there"
            return f"TLS failed ({reason})"
        if isinstance(error, OSError) and error.errno is not None:
            return (
                error.strerror if error.errno < 0 and error.strerror else os.strerror(error.errno)
            )
    if isinstance(exc, httpx.TimeoutException | TimeoutError):
        return f"No answer within {timeout_s:g} s"
    if isinstance(exc, httpx.RemoteProtocolError | httpx.NetworkError):
        return "The connection was closed before the answer was complete"
    if isinstance(exc, UnicodeError):
        return "The host name cannot be one"
    # Some of these repeat what was sent, the token with it.
    return type(exc).__name__


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        if isinstance(exc, BaseExceptionGroup):
            for inner in exc.exceptions:
                yield from _chain(inner)
        yield exc
        exc = exc.__cause__ or exc.__context__
