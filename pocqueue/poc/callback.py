"""One POST of JSON to a callback URL, and what its answer means. Callers decide when to try again.

Only HTTP 200 counts as delivered, or all below 400 to a client that is told so. No answer (or 408, 425, 429, 5xx)
may be tried again; any other answer is final, as the same body would get it again. Redirects are not followed: the URL was checked where it
entered the system, its redirects were not.

A URL goes out byte for byte: chains hand out ones in which a model's name is percent-encoded twice.

Reasons and names for logs hold scheme, host and port of a URL only: user, password, path and query may be
secrets.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import aiohttp
from typing_extensions import override
from yarl import URL

from pocqueue.closing import AsyncClosing
from pocqueue.errors import CallbackForbidden, InvalidRound

#: What a callback is about; appended to the callback URL behind a slash.
Kind = Literal["generated", "validated"]

#: Statuses from 200 to below this mean that a body was delivered: a signed one, and one of the artifact wire, which is not
#: signed and whose network is content with these.
SIGNED_BELOW, UNSIGNED_BELOW = 201, 400
#: Longest pause that a receiver can ask for with Retry-After.
MAX_RETRY_AFTER_S: Final = 300.0
#: Most characters of the receiver's own words in a reason.
_MAX_WORDS = 200

_HINTS: dict[int, str] = {
    **dict.fromkeys(
        (301, 302, 307, 308), "redirects are not followed: give the URL that it leads to"
    ),
    HTTPStatus.UNAUTHORIZED: "it wants a login, and callbacks have none",
    HTTPStatus.FORBIDDEN: "it does not let this host in: check its address lists",
    HTTPStatus.NOT_FOUND: "nothing is there: check the path of the callback URL",
    HTTPStatus.METHOD_NOT_ALLOWED: "it takes no POST there: check the path of the callback URL",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "its limit for the size of a body is too low",
}


class PostOutcome(Enum):
    """What became of one POST."""

    DELIVERED = "delivered"  #: the receiver took it
    RETRY = "retry"  #: no answer, or one that says to try again
    REFUSED = "refused"  #: the same body would be refused again
    FORBIDDEN = "forbidden"  #: nothing was sent: the URL leads to an address that is not allowed


@dataclass(frozen=True, slots=True)
class PostResult:
    """What became of one POST, and why."""

    outcome: PostOutcome
    #: In words, without secrets; empty if it was delivered.
    reason: str = ""
    #: Seconds that the receiver asks to be left alone for.
    retry_after_s: float = 0.0


@dataclass(kw_only=True, eq=False)
class CallbackClient(AsyncClosing):
    """Posts to callback URLs; an async context manager that closes its connections."""

    request_timeout_s: float = 10.0  #: seconds for one POST, all of it
    delivered_below: int = (
        SIGNED_BELOW  #: statuses from 200 to below this mean that a POST was delivered
    )
    #: Makes what connections are made through, in the event loop of the first POST. One that refuses an
    #: address fails with a client error caused by `CallbackForbidden`. None: aiohttp's own, which goes
    #: wherever a URL leads.
    connector: Callable[[], aiohttp.BaseConnector] | None = None
    _session: aiohttp.ClientSession | None = field(default=None, init=False)

    @override
    async def close(self) -> None:
        """Close the connections; a later POST opens new ones."""
        if self._session is not None:
            await self._session.close()

    async def post(
        self, url: str, kind: Kind, body: str, delivered_below: int | None = None
    ) -> PostResult:
        """Make one attempt. Network errors are an outcome here, not an exception.

        Args:
            url: callback URL; a slash and `kind` are appended.
            kind: what the body is.
            body: JSON, sent as it is.
            delivered_below: for this one; None: that of the client.
        """
        if self._session is None or self._session.closed:
            # `trust_env` stays off: a proxy of the environment would be connected to unchecked, and
            # would look names up once more.
            self._session = aiohttp.ClientSession(
                connector=self.connector and self.connector(), trust_env=False
            )
        try:
            target = _target(url, kind)
        except ValueError:
            return PostResult(PostOutcome.REFUSED, "the callback URL is none")
        try:
            async with self._session.post(
                target,
                data=body.encode(),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.request_timeout_s),
            ) as response:
                return await self._result(response, url, delivered_below or self.delivered_below)
        except (aiohttp.InvalidURL, UnicodeError):
            # The latter if a host name cannot be written for DNS. Not ValueError, their parent: errors of
            # TLS are of that class too, and pass.
            return PostResult(PostOutcome.REFUSED, "the callback URL is none")
        except TimeoutError:
            return PostResult(PostOutcome.RETRY, f"no answer within {self.request_timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as exc:
            if isinstance(exc.__cause__, CallbackForbidden):
                return PostResult(PostOutcome.FORBIDDEN, str(exc.__cause__))
            return PostResult(PostOutcome.RETRY, f"no answer ({_unreached(exc)})")

    async def _result(
        self, response: aiohttp.ClientResponse, url: str, delivered_below: int
    ) -> PostResult:
        """Say what an answer means; docs/protocol.md."""
        status = response.status
        if 200 <= status < delivered_below:
            return PostResult(PostOutcome.DELIVERED)
        words = await _words(response, url)
        if status >= 500 or status in (408, 425, 429):
            asked_s = retry_after_s(response.headers.get("Retry-After"), time.time())
            return PostResult(PostOutcome.RETRY, f"HTTP {status}{words}", asked_s)
        hint = _HINTS.get(status, "it does not take this batch")
        return PostResult(PostOutcome.REFUSED, f"HTTP {status}, {hint}{words}")


def encode_body(body: Mapping[str, Any]) -> str:
    """Return a body as it is sent.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON has no words for.
    """
    return json.dumps(body, allow_nan=False, separators=(",", ":"))


def retry_after_s(header: str | None, now_s: float) -> float:
    """Return the seconds that a Retry-After header asks for: 0.0 … MAX_RETRY_AFTER_S.

    Args:
        header: seconds or an HTTP date (RFC 9110, section 10.2.3); None or nonsense count as 0.
        now_s: Unix time.
    """
    if header is None:
        return 0.0
    header = header.strip()
    if header.isascii() and header.isdigit():
        asked_s = float(header[:10])
    else:
        try:
            asked_s = parsedate_to_datetime(header).timestamp() - now_s
        except (ValueError, OverflowError):
            return 0.0
    return min(max(asked_s, 0.0), MAX_RETRY_AFTER_S)


def without_secrets(url: str) -> str:
    """Return scheme, host and port of a URL.

    Raises:
        InvalidRound: it is no http or https URL with a host.
    """
    allowed = "a URL such as http://host:port/path (http or https)"
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        raise InvalidRound("callback_url", "no URL", allowed) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # The value is not repeated in full: it may carry a password.
        raise InvalidRound("callback_url", f"{parts.scheme}://{parts.hostname or ''}", allowed)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}"


def _target(url: str, kind: Kind) -> URL:
    """Return where a body goes.

    Raises:
        ValueError: there is no such URL.
    """
    text = f"{url.rstrip('/')}/{kind}"
    parsed, parts = URL(text), urlsplit(text)
    if not text.isascii():
        return parsed
    # The host as it is judged before (`rounds/callback_target.py`), and of the rest nothing decoded or resolved.
    return URL.build(
        scheme=parsed.scheme,
        authority=parsed.raw_authority,
        path=parts.path,
        query_string=parts.query,
        encoded=True,
    )


def _unreached(exc: Exception) -> str:
    """Say what kept a request from its receiver."""
    match exc:
        case aiohttp.ClientConnectorCertificateError(
            certificate_error=ssl.SSLCertVerificationError() as why
        ):
            return f"its certificate is not accepted: {why.verify_message}"
        case aiohttp.ClientConnectorSSLError(os_error=ssl.SSLError(reason=str(why))):
            return f"no TLS with it: {why.lower().replace('_', ' ')}"
        case aiohttp.ClientConnectorDNSError():
            return "its name is not found"
        case _:
            # The type only: some of these repeat the whole URL in their text.
            return type(exc).__name__


async def _words(response: aiohttp.ClientResponse, url: str) -> str:
    """Return the receiver's own words behind a colon; nothing if they repeat a part of the URL."""
    try:
        words = (await response.content.read(4 * _MAX_WORDS)).decode("utf-8", "replace").strip()
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""  # the status is all there is to know
    parts = urlsplit(url)
    is_secret = any(
        part in words for part in (parts.path.rstrip("/"), parts.query) if len(part) > 1
    )
    return "" if is_secret or not words else f": {words[:_MAX_WORDS]!r}"
