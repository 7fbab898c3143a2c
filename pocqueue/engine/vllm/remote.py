"""The engine of a served model: values computed by a vLLM server that has our plugin, over HTTP.

A worker with this engine has no model and no GPU of its own. Between its batches the server goes on
with whatever else it serves. Three routes are used (see docs/vllm.md):

    GET  /api/v1/pow/model      -> fields of EngineInfo, and max_batch_size
    POST /api/v1/pow/distances  {"block_hash", "public_key", "nonces", "batch_size", "seq_len",
                                 "upcoming": the same of the batch that is expected next, or null}
                                -> {"distances": [float | null], "fingerprint", "dtype"}
    POST /api/v1/pow/values     the same with "scheme" and the batch's options, flat, for any other scheme
                                -> {"values": [one a nonce], "fingerprint", "dtype"}

A distance that is not finite travels as null. Older servers have no route for values; to their route for distances
a field for the scheme would be one more that they ignore. The fingerprint comes with every reply, because a
server may be restarted with another model between two batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import Any

import httpx
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import override

from pocqueue.engine import EngineOptions
from pocqueue.engine.base import Engine, EngineInfo, OnProgress
from pocqueue.engine.vllm.ranks import BatchLimits, read_limits
from pocqueue.errors import EngineError, EngineUnavailable, PassTooLarge
from pocqueue.poc.batch import Batch
from pocqueue.poc.scheme import DEFAULT, scheme_class

#: A server that does not answer, or says that it cannot just now, is asked again for this long.
PATIENCE_S = 60.0
#: Longest time for one batch, as long as a server waits for its own engine and a little more.
BATCH_TIMEOUT_S = 330.0
#: Between two tries, the last one again and again.
_PAUSES_S = (0.1, 0.25, 0.5, 1.0, 2.0)
_TELL_EVERY_S = 10.0
_DISTANCES = "/api/v1/pow/distances"
_VALUES = "/api/v1/pow/values"


@dataclass(eq=False, repr=False)
class VllmServer:
    """A vLLM server with our plugin, asked over HTTP until it answers; repeating a request does no harm."""

    url: str  #: http or https, without a path
    token: str | None = None  #: what it asks for; None: nothing
    _: KW_ONLY
    timeout_s: float = BATCH_TIMEOUT_S  #: for the answer to one request
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=self.url.rstrip("/"),
            headers={} if self.token is None else {"Authorization": f"Bearer {self.token}"},
            timeout=httpx.Timeout(self.timeout_s, connect=5.0),
            # A server named by the operator is reached directly, whatever proxies the environment names.
            trust_env=False,
        )

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        patience_s: float,
        on_wait: Callable[[str], None] | None = None,
        refusal: type[EngineError] = EngineError,
    ) -> dict[str, Any]:
        """Send a request until it is answered.

        Args:
            method: "GET" or "POST".
            path: of the route.
            body: as JSON; None for none.
            patience_s: seconds for which no answer, or 502 to 504, is not final.
            on_wait: told why, at most every few seconds.
            refusal: what to raise if the server refuses.

        Raises:
            EngineUnavailable: patience is over, or something else than our plugin answered.
            EngineError: the engine failed (500, or 507 if the batch does not fit its memory); or, by
                `refusal`, the server refused.
        """
        give_up = self.clock() + patience_s
        told, attempt = -math.inf, 0
        while True:
            try:
                response = self.client.request(method, path, json=body)
            except httpx.TransportError as exc:
                why = f"{self.client.base_url} does not answer ({type(exc).__name__})"
            else:
                if response.status_code == 200:
                    return self._reply(path, response)
                why = self._why_later(path, response, refusal)
            now = self.clock()
            pause_s = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
            if now + pause_s > give_up:
                raise EngineUnavailable(
                    f"The vLLM server cannot be used: {why}. Check POCQUEUE_VLLM_URL and the server's log."
                )
            if on_wait is not None and now - told > _TELL_EVERY_S:
                told = now
                on_wait(why)
            self.sleep(pause_s)
            attempt += 1

    def _why_later(self, path: str, response: httpx.Response, refusal: type[EngineError]) -> str:
        """Say why a request is to be sent again.

        Raises:
            EngineError: it is not; see `ask`.
        """
        status, detail = response.status_code, _detail(response)
        # A server that says that it will never do is not asked again.
        if status in {502, 503, 504} and "not enabled" not in detail:
            return f"{self.client.base_url} says {status}: {detail}"
        name = f"The vLLM server at {self.client.base_url}"
        if status == 401:
            raise refusal(
                f"{name} refuses the token. Set POCQUEUE_VLLM_TOKEN to the server's, or its --api-key."
            )
        if status == 404 and path == _VALUES:
            raise EngineError(
                f"{name} computes distances alone: its pocqueue is older than artifacts. Update pocqueue there."
            )
        if status == 404:
            raise refusal(
                f"{name} has no route {path}. Start it with VLLM_PLUGINS=pocqueue and pocqueue installed "
                "beside vLLM; `pocqueue vllm serve MODEL` does both."
            )
        kind = {500: EngineError, 507: PassTooLarge}.get(status, refusal)
        raise kind(f"{name} refuses with status {status}: {detail}")

    def _reply(self, path: str, response: httpx.Response) -> dict[str, Any]:
        """Return the body of an answer with status 200.

        Raises:
            EngineUnavailable: it is no JSON object; something else than our plugin answered.
        """
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise EngineUnavailable(
                f"What answers {self.client.base_url}{path} is not pocqueue's plugin: it sent no JSON object. "
                "Check POCQUEUE_VLLM_URL."
            )
        return reply


@dataclass(eq=False)
class VllmServerEngine(Engine):
    """A served model as a function from batches to values; see ``Engine``."""

    server: VllmServer  #: that has the model
    info: EngineInfo
    limits: BatchLimits  #: what the server can run
    patience_s: float = PATIENCE_S  #: seconds for which a server that is away is asked again

    @override
    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        """Compute the values of one batch; see ``Engine.values``.

        Raises:
            InvalidRound: a size of the batch is out of bounds, or there is no such scheme.
            EngineUnavailable: the server is away for too long, serves another model, or has changed in
                another way: it refuses what it said that it does.
            EngineError: the batch failed in the server's engine, or the server computes distances alone.
        """
        self.limits.check(self.info, batch)
        if not batch.nonces:
            return []
        is_distance = batch.scheme == DEFAULT
        next_body = None
        if upcoming is not None and (upcoming.scheme == DEFAULT) is is_distance:
            next_body = _body(upcoming)
        reply = self.server.ask(
            "POST",
            _DISTANCES if is_distance else _VALUES,
            _body(batch) | {"upcoming": next_body},
            patience_s=self.patience_s,
            refusal=EngineUnavailable,
        )
        name = f"The vLLM server at {self.server.client.base_url}"
        served = (reply.get("fingerprint"), reply.get("dtype"))
        if served != (self.info.fingerprint, self.info.dtype):
            raise EngineUnavailable(
                f"{name} serves another model by now ({str(served[0])[:12]} in {served[1]}, before "
                f"{self.info.fingerprint[:12]} in {self.info.dtype}). Start this worker again to work with "
                "that one."
            )
        try:
            values = _values_type(batch.scheme).validate_python(
                reply.get("distances" if is_distance else "values")
            )
        except ValidationError:
            values = []
        if len(values) != len(batch.nonces):
            noun = scheme_class(batch.scheme).noun
            raise EngineUnavailable(
                f"{name} did not answer with one {noun} for each of {len(batch.nonces)} nonces."
            )
        return [math.nan if value is None else value for value in values] if is_distance else values

    @override
    def close(self) -> None:
        """Close the connections; the server goes on."""
        self.server.client.close()


def connect_vllm_server(
    options: EngineOptions, on_progress: OnProgress, server: VllmServer | None = None
) -> VllmServerEngine:
    """Ask a vLLM server what it serves; wait for one that is still starting.

    Args:
        options: which server, and how long it may take to answer.
        on_progress: told in one line each what is being done.
        server: None: the one of the options.

    Raises:
        EngineUnavailable: it does not answer for as long as the options say.
        EngineError: it has no such routes, or refuses the token.
    """
    server = server or VllmServer(options.server_url, options.server_token)
    try:
        reply = server.ask(
            "GET",
            "/api/v1/pow/model",
            patience_s=options.server_patience_s,
            on_wait=lambda why: on_progress(f"Waiting for the vLLM server: {why}"),
        )
        limits = read_limits(reply)
        info = limits.of(replace(EngineInfo.from_dict(reply), engine="vllm-server"))
    except ValueError as exc:
        server.client.close()
        raise EngineError(
            f"The server at {options.server_url} does not describe its model as pocqueue's plugin does "
            f"({exc}). Both sides need the same version of pocqueue."
        ) from exc
    except BaseException:
        server.client.close()
        raise
    on_progress(f"Using {info.model} of the vLLM server at {options.server_url} in {info.dtype}")
    return VllmServerEngine(server, info, limits)


@cache
def _values_type(scheme: str) -> TypeAdapter[list[Any]]:
    """Return what the values of a batch are checked with, of which any may be null."""
    kind = scheme_class(scheme).value_type
    return TypeAdapter(list[kind | None], config=ConfigDict(strict=True))  # type: ignore[valid-type]


def _body(batch: Batch) -> dict[str, Any]:
    names = ("block_hash", "public_key", "nonces", "batch_size", "seq_len")
    own = {} if batch.scheme == DEFAULT else {"scheme": batch.scheme, **dict(batch.options)}
    return {name: getattr(batch, name) for name in names} | own


def _detail(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
    return str(detail)[:300]
