"""Artifacts for the network's chain, on a served model: rounds that go on until they are stopped, and requests.

Promises:
- Requests for given nonces are computed one after the other, in turn with all else that the engine does, and
  stand still while a round is searched.
- A stop ends the round and the requests that are not done. What was computed until then is delivered, for a bounded
  time; results that are there can be asked for as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.poc.artifact.bodies import GenerateBody, GenerateRoundBody
from pocqueue.poc.artifact.jobs import Job, JobQueue
from pocqueue.poc.artifact.refusals import AlreadyGenerating
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.batch import Batch
from pocqueue.poc.callback import UNSIGNED_BELOW
from pocqueue.poc.scheme import ProofSearch
from pocqueue.poc.search import DEFAULT_BATCH_SIZE
from pocqueue.poc.sender import CallbackQueue
from pocqueue.served.posts import Posts
from pocqueue.served.prover import Prover, ServedRound
from pocqueue.served.schema import ConfigAnswer
from pocqueue.settings import ArtifactSettings

#: Longest pause that a receiver of artifacts gets for asking: those of a round are worth something for minutes.
_MAX_RETRY_AFTER_S = 10.0
_IDLE: dict[str, Any] = {"status": "IDLE", "config": None, "stats": None}


@dataclass(eq=False)
class Artifacts(AsyncClosing):
    """Answers the chain's requests with a prover. Used from its event loop only."""

    prover: Prover
    settings: ArtifactSettings
    wait_s: float = 300.0  #: longest time that a client waits for a result
    #: Of posts of results, fields of `CallbackQueue`.
    timings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.jobs = JobQueue(
            self._compute,
            ready=self.prover.resting,
            on_completed=self._post,
            max_nonces=self.settings.max_queued_nonces,
            piece_timeout_s=self.settings.generate_chunk_timeout_sec,
            keep_s=self.settings.generate_result_ttl_sec,
            wait_s=self.wait_s,
        )
        self.posts = Posts(
            self.settings.callback_max_concurrent,
            self.settings.callback_queue_size,
            queue=_receiver_rules(self.settings) | self.timings,
            grace_s=self.prover.grace_s,
            flush_s=self.prover.flush_s,
        )

    @property
    def is_last(self) -> bool:
        """Whether the round at hand, or the last one, is one of artifacts."""
        return self.prover.round is not None and self.prover.round.scheme == Artifact.name

    def start(self, body: GenerateRoundBody) -> None:
        """Search artifacts until stopped; a search that has failed goes on where it stood.

        Who asks for the same search again has what was found before, and takes no nonce twice.

        Raises:
            AlreadyGenerating: a round is being searched.
            InvalidRound: the model cannot run it, or a field is out of bounds. Nothing changes.
            EngineUnavailable: the engine is dead. Nothing changes.
        """
        if self.prover.is_generating:
            raise AlreadyGenerating
        search = body.round_search(self._batch_size(body.params.seq_len))
        asked = ServedRound(**dict(search), callback_url=body.url)
        if not self.prover.has_failed(asked):
            self.prover.init(asked)
        self.prover.generate()

    def submit(self, body: GenerateBody) -> Job:
        """Have the artifacts of nonces computed, or claims of them validated.

        Raises:
            NoncesDiffer: it validates other nonces than it names.
            InvalidRound: the model cannot run it, or a field is out of bounds.
            QueueFull: too many nonces would wait.
        """
        job = Job.of(body, self._batch_size(body.params.seq_len))
        self.prover.model.check(job.search.pass_size, job.search.seq_len)
        if body.wait:
            job.url = None  # who waits for the result has it in the answer
        self.jobs.submit(job)
        return job

    def stop(self) -> None:
        """End the round, and the requests that are not done."""
        self.prover.stop()
        self.jobs.cancel_all("Cancelled by /stop.")
        self.posts.retire()

    def status(self) -> dict[str, Any]:
        """Return what the chain asks for: whether a round of artifacts is searched, which one, and how far it is."""
        asked, stats = self.prover.round, self.prover.found.stats
        if asked is None or not self.is_last or not self.prover.is_generating:
            return _IDLE
        fields = dict(asked) | dict(asked.proof)
        config = {name: fields[name] for name in ConfigAnswer.model_fields}
        counts = {"total_processed": stats.total_checked, "nonces_per_second": stats.rate}
        return {"status": "GENERATING", "config": config, "stats": counts}

    @override
    async def close(self) -> None:
        """End everything; what is computed is delivered, for `Prover.flush_s` at most."""
        self.stop()
        await asyncio.gather(self.jobs.close(), self.posts.close(), self.prover.close())

    def _batch_size(self, seq_len: int) -> int:
        """Return the nonces of a pass where a request does not say."""
        wished = self.settings.batch_size_default or DEFAULT_BATCH_SIZE
        return self.prover.model.fit(wished, seq_len)

    async def _compute(self, search: ProofSearch, nonces: Sequence[int]) -> list[Any]:
        return await self.prover.recompute(Batch.of(search, nonces))

    def _post(self, job: Job) -> None:
        if job.url is not None:
            self.posts.send(job.url, *job.post())


def make_round_sender(
    settings: ArtifactSettings, **timings: Any
) -> Callable[[ServedRound, str], CallbackQueue]:
    """Return what makes the callback queue of a round, of artifacts or of distances.

    Args:
        settings: for artifacts.
        timings: of either, fields of `CallbackQueue`.
    """

    def make(asked: ServedRound, url: str) -> CallbackQueue:
        if asked.scheme != Artifact.name:
            return CallbackQueue(url, **timings)
        interval_s = settings.callback_interval_sec
        return CallbackQueue(url, interval_s=interval_s, **_receiver_rules(settings) | timings)

    return make


def _receiver_rules(settings: ArtifactSettings) -> dict[str, Any]:
    """Return what the network has of its own where something is posted."""
    return {
        "max_waiting": settings.callback_max_artifacts,
        "max_refusals": settings.callback_max_retries,
        "max_retry_after_s": _MAX_RETRY_AFTER_S,
        "delivered_below": UNSIGNED_BELOW,
    }
