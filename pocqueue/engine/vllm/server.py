"""The engine of a served model: distances computed by a vLLM server that has our plugin, over HTTP.

A worker with this engine has no model and no GPU of its own. Between its batches the server goes on
with whatever else it serves. Two routes are used (see docs/vllm.md):

    GET  /api/v1/pow/model      -> fields of EngineInfo, and max_batch_size
    POST /api/v1/pow/distances  {"block_hash", "public_key", "nonces", "batch_size", "seq_len",
                                 "upcoming": the same of the batch that is expected next, or null}
                                -> {"distances": [float | null], "fingerprint", "dtype"}

A distance that is not finite travels as null. The fingerprint comes with every reply, because a
server may be restarted with another model between two batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx

from pocqueue.engine import EngineOptions
from pocqueue.engine.base import EngineInfo, OnProgress
from pocqueue.engine.vllm.ranks import BatchLimits, read_limits
from pocqueue.errors import EngineError, EngineUnavailable, InvalidRound
from pocqueue.poc.batch import Batch

#: A server that does not answer, or says that it cannot just now, is asked again for this long.
PATIENCE_S = 60.0
#: Longest time for one batch, as long as a server waits for its own engine and a little more.
BATCH_TIMEOUT_S = 330.0
_PAUSES_S = (0.1, 0.25, 0.5, 1.0, 2.0)
_TELL_EVERY_S = 10.0


class VllmServerEngine:
    """A served model as a function from nonces to distances; see ``Engine``.

    Args:
        client: with the server's base URL and its token.
        info: what is served.
        limits: what the server can run.
        patience_s: seconds for which a server that is away is asked again.
    """

    def __init__(
        self,
        client: httpx.Client,
        info: EngineInfo,
        limits: BatchLimits,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._client = client
        self._info = info
        self._limits = limits
        self._patience_s = patience_s

    @property
    def info(self) -> EngineInfo:
        """What is served."""
        return self._info

    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        """Compute the distances of one batch; see ``Engine.values``.

        Raises:
            InvalidRound: a size of the batch is out of bounds, or its scheme is another one.
            EngineUnavailable: the server is away for too long, serves another model, or has changed in
                another way: it refuses what it said that it does.
            EngineError: the batch failed in the server's engine.
        """
        if batch.scheme != "distance":
            raise InvalidRound("scheme", batch.scheme, "distance, with engine vllm-server")
        self._limits.check(self._info, batch)
        if not batch.nonces:
            return []
        next_body = None
        if upcoming is not None and upcoming.scheme == "distance":
            next_body = _body(upcoming)
        reply = _ask(
            self._client,
            "POST",
            "/api/v1/pow/distances",
            _body(batch) | {"upcoming": next_body},
            self._patience_s,
            on_wait=_nothing,
            refusal=EngineUnavailable,
        )
        served = (reply.get("fingerprint"), reply.get("dtype"))
        if served != (self._info.fingerprint, self._info.dtype):
            raise EngineUnavailable(
                f"The vLLM server at {self._client.base_url} serves another model by now "
                f"({str(served[0])[:12]} in {served[1]}, before {self._info.fingerprint[:12]} in "
                f"{self._info.dtype}). Start this worker again to work with that one."
            )
        distances = reply.get("distances")
        if (
            not isinstance(distances, list)
            or len(distances) != len(batch.nonces)
            or not all(distance is None or type(distance) in {int, float} for distance in distances)
        ):
            raise EngineUnavailable(
                f"The vLLM server at {self._client.base_url} did not answer with one distance for each "
                f"of {len(batch.nonces)} nonces."
            )
        return [math.nan if distance is None else float(distance) for distance in distances]

    def warm_up(self, batch_size: int, seq_len: int) -> None:
        """Run one pass of this shape and drop the result.

        Raises:
            InvalidRound, EngineError: as ``values`` does.
        """
        self.values(Batch.warm_up(batch_size, seq_len))

    def close(self) -> None:
        """Close the connections; the server goes on."""
        self._client.close()


def _body(batch: Batch) -> dict[str, Any]:
    names = ("block_hash", "public_key", "nonces", "batch_size", "seq_len")
    return {name: getattr(batch, name) for name in names}


def connect_vllm_server(options: EngineOptions, on_progress: OnProgress) -> VllmServerEngine:
    """Ask a vLLM server what it serves; wait for one that is still starting.

    Raises:
        EngineUnavailable: it does not answer for as long as the options say.
        EngineError: it has no such routes, or refuses the token.
    """
    headers = {}
    if options.server_token is not None:
        headers["Authorization"] = f"Bearer {options.server_token}"
    client = httpx.Client(
        base_url=options.server_url.rstrip("/"),
        headers=headers,
        timeout=httpx.Timeout(BATCH_TIMEOUT_S, connect=5.0),
        # A server named by the operator is reached directly, whatever proxies the environment names.
        trust_env=False,
    )
    try:
        reply = _ask(
            client,
            "GET",
            "/api/v1/pow/model",
            None,
            options.server_patience_s,
            on_wait=lambda why: on_progress(f"Waiting for the vLLM server: {why}"),
        )
        info = replace(EngineInfo.from_dict(reply), engine="vllm-server")
        limits = read_limits(reply)
    except ValueError as exc:
        client.close()
        raise EngineError(
            f"The server at {options.server_url} does not describe its model as pocqueue's plugin does "
            f"({exc}). Both sides need the same version of pocqueue."
        ) from exc
    except BaseException:
        client.close()
        raise
    on_progress(f"Using {info.model} of the vLLM server at {options.server_url} in {info.dtype}")
    return VllmServerEngine(client, info, limits)


def _ask(
    client: httpx.Client,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    patience_s: float,
    on_wait: Callable[[str], None],
    refusal: type[EngineError] = EngineError,
) -> dict[str, Any]:
    """Send a request until it is answered; repeating one does no harm.

    Args:
        client: of the server.
        method: "GET" or "POST".
        path: of the route.
        body: as JSON; None for none.
        patience_s: seconds for which no answer, or 502 to 504, is not final.
        on_wait: told why, at most every few seconds.
        refusal: what to raise where the server refuses.

    Raises:
        EngineUnavailable: patience is over, or something else than our plugin answered.
        EngineError: the engine failed (500); or, by `refusal`, the server refused.
    """
    give_up = time.monotonic() + patience_s
    told, attempt = -math.inf, 0
    while True:
        why = ""
        try:
            response = client.request(method, path, json=body)
        except httpx.TransportError as exc:
            why = f"{client.base_url} does not answer ({type(exc).__name__})"
        else:
            if response.status_code == 200:
                return _reply(client, path, response)
            detail = _detail(response)
            # A server that says that it will never do is not asked again.
            passes = response.status_code in {502, 503, 504} and "not enabled" not in detail
            if not passes:
                kind = EngineError if response.status_code == 500 else refusal
                raise kind(_refusal(client, path, response.status_code, detail))
            why = f"{client.base_url} says {response.status_code}: {detail}"
        now = time.monotonic()
        pause = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
        if now + pause > give_up:
            raise EngineUnavailable(
                f"The vLLM server cannot be used: {why}. Check POCQUEUE_VLLM_URL and the server's log."
            )
        if now - told > _TELL_EVERY_S:
            told = now
            on_wait(why)
        time.sleep(pause)
        attempt += 1


def _refusal(client: httpx.Client, path: str, status: int, detail: str) -> str:
    where = f"The vLLM server at {client.base_url}"
    if status == 401:
        return (
            f"{where} refuses the token. Set POCQUEUE_VLLM_TOKEN to the server's, or its --api-key."
        )
    if status == 404:
        return (
            f"{where} has no route {path}. Start it with VLLM_PLUGINS=pocqueue and pocqueue installed "
            "beside vLLM; `pocqueue vllm serve MODEL` does both."
        )
    return f"{where} refuses with status {status}: {detail}"


def _reply(client: httpx.Client, path: str, response: httpx.Response) -> dict[str, Any]:
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
            f"What answers {client.base_url}{path} is not pocqueue's plugin: it sent no JSON object. "
            "Check POCQUEUE_VLLM_URL."
        )
    return reply


def _detail(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
    return str(detail)[:300]


def _nothing(_why: str) -> None:
    """Say nothing: the heartbeat shows that a batch takes long."""
