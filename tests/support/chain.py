"""The network's chain as a node meets it: its requests in their order, its receiver, other participants.

Bodies, answers and heights are those of the network's Go side. Nothing here knows which door answers: a served
vLLM has its routes below ``/api/v1/pow``, the proxy of an MLNode below ``/api/v1/inference/pow``.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import quote

import httpx
from aiohttp import web

from tests.support.callback_receiver import answering
from tests.support.waiting import PATIENCE_S, until

#: By which the chain has artifacts judged where it knows no better.
STAT_TEST = {"dist_threshold": 0.4, "p_mismatch": 0.1, "p_value_threshold": 0.05}
#: Shortest time that a receiver is away for: a minute, say, is asked for with TEST_OUTAGE_S=60.
OUTAGE_S = float(os.environ.get("TEST_OUTAGE_S", "0"))


class Phase(Enum):
    """What the chain takes callbacks for."""

    NONE = "none"
    GENERATE = "generate"
    VALIDATE = "validate"


@dataclass(frozen=True)
class Stage:
    """One proof of compute, as a node is asked for it; k_dim and batch_size are never sent."""

    model: str
    block_hash: str = "9F2C64B1" * 8
    block_height: int = 15391
    public_key: str = "02" + "ab" * 32
    node_id: int = 1
    node_count: int = 3
    seq_len: int = 1024
    stronger_rng: bool = False

    def body(self, **changes: Any) -> dict[str, Any]:
        """Return what both requests have."""
        fields: dict[str, Any] = {
            "block_hash": self.block_hash,
            "block_height": self.block_height,
            "public_key": self.public_key,
            "node_id": self.node_id,
            "node_count": self.node_count,
            "params": {"model": self.model, "seq_len": self.seq_len},
        }
        if self.stronger_rng:
            fields["poc_stronger_rng"] = True
        return fields | changes


@dataclass(frozen=True)
class Participant:
    """Somebody whose artifacts are validated."""

    public_key: str
    artifacts: Mapping[int, str]  #: base64 text by nonce

    def altered(self, share: float) -> Participant:
        """Return one who sends the vectors of other nonces for a share of them, spread evenly."""
        nonces, texts = list(self.artifacts), list(self.artifacts.values())
        rng = random.Random(20)  # noqa: S311 - the same on every run
        chosen = set(rng.sample(range(len(texts)), round(share * len(texts))))
        changed = [texts[i - 1] if i in chosen else text for i, text in enumerate(texts)]
        return Participant(self.public_key, dict(zip(nonces, changed, strict=True)))

    def sampled(self, most: int) -> dict[str, Any]:
        """Return ``nonces`` and ``validation`` of a request for a sample of so many nonces at most."""
        nonces = sorted(self.artifacts)
        if len(nonces) > most:
            nonces = random.Random(200).sample(nonces, most)  # noqa: S311
        claims = [{"nonce": nonce, "vector_b64": self.artifacts[nonce]} for nonce in nonces]
        return {"nonces": nonces, "validation": {"artifacts": claims}}


class Receiver:
    """Where a node's callbacks go; keeps what it takes and answers as the chain's API does.

    Attributes:
        url: what nodes are given: the model's id stands in it percent-encoded twice.
        phase: what it takes callbacks for; others get 503.
        statuses: answers still to give before any other, in order. 500 keeps what came all the same, as where an
            answer is lost on its way: it comes again.
        artifacts: by nonce; the first that came.
        verdicts: by public key: bodies, each as often as it was taken.
        repeated: what came again although it had been confirmed.
        generated: how many artifacts each post had that was taken, in order.
        refused: statuses that were answered, and why.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.phase = Phase.NONE
        self.statuses: Iterator[int] = iter(())
        self.artifacts: dict[int, str] = {}
        self.verdicts: dict[str, list[dict[str, Any]]] = {}
        self.repeated: list[Any] = []
        self.generated: list[int] = []
        self.refused: list[tuple[int, str]] = []
        self.root = ""
        self._path = f"/v2/poc-batches/{quote(quote(stage.model, safe=''), safe='')}"
        self._confirmed: set[int] = set()
        self._validated: set[str] = set()
        self._serving = AsyncExitStack()

    @property
    def url(self) -> str:
        return f"{self.root}{self._path}"

    @property
    def votes(self) -> dict[str, int]:
        """The chain's vote on each participant: nonces that were checked, or -1."""
        return {
            key: -1 if body["fraud_detected"] or body["n_total"] <= 0 else body["n_total"]
            for key, [body, *_] in self.verdicts.items()
        }

    async def __aenter__(self) -> Receiver:
        await self._serve(0)
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self._serving.aclose()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Refuse connections for the length of the block."""
        await self._serving.aclose()
        try:
            yield
        finally:
            await self._serve(int(self.root.rpartition(":")[2]))

    async def _serve(self, port: int) -> None:
        self.root = await self._serving.enter_async_context(answering(self._answer, port=port))

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        take = {
            f"{self._path}/generated": self._generated,
            f"{self._path}/validated": self._verdict,
        }.get(request.raw_path)
        if take is None:
            return self._refuse(404, f"no route {request.raw_path}")
        status = next(self.statuses, 200)
        if status not in {200, 500}:
            return self._refuse(status, "as it was told to")
        refusal = take(body, confirms=status == 200)
        if refusal is not None:
            return self._refuse(*refusal)
        return self._refuse(500, "answer lost") if status == 500 else web.Response()

    def _refuse(self, status: int, why: str) -> web.Response:
        self.refused.append((status, why))
        return web.json_response({"error": why}, status=status)

    def _generated(self, body: dict[str, Any], *, confirms: bool) -> tuple[int, str] | None:
        if self.phase is not Phase.GENERATE:
            return 503, "not in PoC generate phase"
        if (refusal := self._is_other_stage(body)) is not None:
            return refusal
        for artifact in body["artifacts"]:
            vector = base64.b64decode(artifact["vector_b64"], validate=True)
            assert len(vector) == 2 * body["encoding"]["k_dim"]
            assert type(artifact["nonce"]) is int
        assert body["encoding"] == {"dtype": "f16", "k_dim": 12, "endian": "le"}
        nonces = [artifact["nonce"] for artifact in body["artifacts"]]
        assert nonces, "a post without artifacts"
        assert len(set(nonces)) == len(nonces), "a nonce twice in one post"
        self.repeated += self._confirmed.intersection(nonces)
        for artifact in body["artifacts"]:
            self.artifacts.setdefault(artifact["nonce"], artifact["vector_b64"])
        if confirms:
            self._confirmed.update(nonces)
            self.generated.append(len(nonces))
        return None

    def _verdict(self, body: dict[str, Any], *, confirms: bool) -> tuple[int, str] | None:
        if self.phase is not Phase.VALIDATE:
            return 503, "not in PoC validate phase"
        if (refusal := self._is_other_stage(body)) is not None:
            return refusal
        if body["request_id"] in self._validated:
            self.repeated.append(body["request_id"])
        if confirms:
            self._validated.add(body["request_id"])
            self.verdicts.setdefault(body["public_key"], []).append(body)
        return None

    def _is_other_stage(self, body: dict[str, Any]) -> tuple[int, str] | None:
        if body["block_height"] != self.stage.block_height:
            return 400, "block_height is not the active PoC stage"
        if body["node_id"] != self.stage.node_id:
            return 400, "unknown node_num"
        assert body["block_hash"] == self.stage.block_hash
        return None


@dataclass
class Chain:
    """The chain's requests to one node.

    Args:
        http: on the node's address, with the token that it may ask for.
        prefix: of the node's routes.
        stage: what is asked for.
        receiver: where callbacks go.
    """

    http: httpx.AsyncClient
    prefix: str
    stage: Stage
    receiver: Receiver
    requests: dict[str, str] = field(default_factory=dict)  #: id of each validation by public key

    async def ask(self, method: str, route: str, body: Any = None) -> dict[str, Any]:
        """Send a request; return the body of the answer, whose status is 200."""
        response = await self.http.request(method, f"{self.prefix}/{route}", json=body)
        assert response.status_code == 200, (route, response.status_code, response.text)
        answer: dict[str, Any] = response.json()
        return answer

    async def status(self) -> str:
        """Return what the node says that it does."""
        return str((await self.ask("GET", "status"))["status"])

    async def processed(self) -> int:
        """Return how many nonces of the round the node has computed, all its servers together."""
        answer = await self.ask("GET", "status")
        stats = [server.get("stats") for server in answer.get("backends") or [answer]]
        return sum(one["total_processed"] for one in stats if one)

    async def start(self) -> None:
        """Ask for artifacts if the node makes none, as the chain does at each reconciliation."""
        if await self.status() != "GENERATING":
            answer = await self.ask("POST", "init/generate", self.stage.body(url=self.receiver.url))
            assert answer["status"] == "OK"
        assert await self.status() == "GENERATING"

    async def stop(self) -> None:
        """End the round."""
        assert (await self.ask("POST", "stop", {}))["status"] == "OK"
        assert await self.status() == "IDLE"

    async def validate(self, participant: Participant, most: int) -> None:
        """Have a sample of a participant's artifacts validated; the verdict comes by callback."""
        sample = participant.sampled(most)
        body = self.stage.body(
            **sample,
            public_key=participant.public_key,
            stat_test=STAT_TEST,
            url=self.receiver.url,
        )
        answer = await self.ask("POST", "generate", body)
        assert answer["status"] == "queued"
        # A proxy puts a port before the id of its server's request.
        self.requests[participant.public_key] = answer["request_id"].rpartition(":")[2]

    async def participant(
        self, public_key: str, nonces: Collection[int], block_hash: str | None = None
    ) -> Participant:
        """Return one who has computed artifacts on an engine just like the node's.

        Args:
            public_key: whose.
            nonces: of which.
            block_hash: for which block; None: that of the stage.
        """
        block = {} if block_hash is None else {"block_hash": block_hash}
        body = self.stage.body(nonces=list(nonces), wait=True, public_key=public_key, **block)
        answer = await self.ask("POST", "generate", body)
        artifacts = {one["nonce"]: one["vector_b64"] for one in answer["artifacts"]}
        assert list(artifacts) == list(nonces)
        return Participant(public_key, artifacts)


async def play(
    chain: Chain,
    participants: Callable[[], Iterable[Participant]],
    *,
    num_artifacts: int = 60,
    num_sampled: int = 200,
    in_order: bool = True,
) -> None:
    """Play the chain's timetable: generation with a receiver that is away for a while, a stop, validation.

    Args:
        chain: of the node, which is idle.
        participants: who is validated, asked for once the receiver has the artifacts.
        num_artifacts: that are waited for before the receiver goes away, while it is away, and after that.
        num_sampled: nonces of a validation, at most.
        in_order: nonces are computed one after the other. Where several GPUs do it some of the last are missing.

    When it returns, all that the node had computed when it was stopped is at the receiver, and a verdict on each
    participant.
    """
    receiver, stage = chain.receiver, chain.stage
    # The stage begins: the node is asked more often than once, and the receiver is late.
    receiver.statuses = iter([503, 500, 200, 503])
    await chain.start()
    receiver.phase = Phase.GENERATE
    await chain.start()
    await until(lambda: len(receiver.artifacts) >= num_artifacts, PATIENCE_S)
    went_away, before = time.monotonic(), await chain.processed()
    async with receiver.away():
        await until(lambda: _more_than(chain, before + num_artifacts), PATIENCE_S)
        await asyncio.sleep(went_away + OUTAGE_S - time.monotonic())
    await until(lambda: len(receiver.artifacts) >= before + 2 * num_artifacts, PATIENCE_S)
    # It ends. What was computed until then arrives, each artifact confirmed once.
    computed = await chain.processed()
    await chain.stop()
    await until(lambda: len(receiver.artifacts) >= computed, PATIENCE_S)
    assert receiver.repeated == []
    found = sorted(receiver.artifacts)
    start, step = stage.node_id, stage.node_count
    assert {nonce % step for nonce in found} == {start}
    if in_order:
        assert found == list(range(start, start + step * len(found), step)), "an artifact is lost"
    # The others are validated; verdicts are refused at first, or their answers lost.
    receiver.phase = Phase.VALIDATE
    asked = list(participants())
    receiver.statuses = iter([503, 500])
    await chain.stop()
    for participant in asked:
        await chain.validate(participant, num_sampled)
    await until(lambda: len(receiver.verdicts) == len(asked), PATIENCE_S)
    assert {
        key: [v["request_id"] for v in bodies] for key, bodies in receiver.verdicts.items()
    } == {key: [request_id] for key, request_id in chain.requests.items()}
    assert receiver.repeated == []
    assert await chain.status() == "IDLE"
    receiver.phase = Phase.NONE


async def _more_than(chain: Chain, num: int) -> bool:
    return await chain.processed() > num
