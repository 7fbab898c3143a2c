"""Recomputes a random sample of what a big node sends, with the engine of the small one.

The sample and its test are in `sampling.py`. The engine has to have the model that the big node
searches with. If only its arithmetic differs (dtype, or torch against vLLM), more honest nonces come out
on the other side of r_target than the proof allows for, and the test allows for as many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from pocqueue.engine.base import EngineInfo
from pocqueue.errors import OutboxError, PocqueueError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.round import SearchRequest
from pocqueue.node.sampling import FRAUD_THRESHOLD, Sampler, judge_sample
from pocqueue.poc.proofs import Proofs

logger = logging.getLogger(__name__)


class SpotCheck:
    """The sample of one session.

    Args:
        engine: of this node.
        request: what is searched, and with which model.
        session_id: in the outbox, where it was opened.
        outbox: keeps what was found, across restarts.
        metrics: counts.
        any_model: a session of another model than the engine's is not ended, but cannot be checked.
        max_waiting: samples that wait for the engine at most; a slow engine checks fewer of them, so that
            it does not fall behind more and more.

    Attributes:
        sampled: nonces recomputed so far.
        invalid: and of these, those that were wrong.
        error: why nothing is recomputed any more; None while it is.
    """

    def __init__(
        self,
        engine: EngineHost,
        request: SearchRequest,
        session_id: str,
        outbox: Outbox,
        metrics: NodeMetrics,
        *,
        any_model: bool,
        max_waiting: int = 2000,
    ) -> None:
        session = outbox.session(session_id)
        assert session is not None
        self.sampled, self.invalid = session.sampled, session.invalid
        self.error: str | None = None
        self._engine = engine
        self._round, self._model = request.round, request.model
        self._session_id, self._outbox = session_id, outbox
        self._metrics = metrics
        self._any_model = any_model
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[int, Any]] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._sampler = Sampler(seen=session.nonces)

    def offer(self, batches: list[Proofs]) -> None:
        """Take a sample of new batches."""
        if self.error is not None:
            return
        for batch in batches:
            for position in self._sampler.pick(len(batch)):
                if len(self._waiting) < self._max_waiting:
                    self._waiting.append((batch.nonces[position], batch.values[position]))
        if self._waiting:
            self._wake.set()

    def end(self) -> None:
        """Say that nothing more will be offered."""
        self._ended = True
        self._wake.set()

    async def run(self) -> str | None:
        """Recompute samples until the end; return why the session is fraud, or None.

        If the engine fails, the session cannot be checked, which is no fraud.
        """
        try:
            info = await self._engine.ready()
            other_model = self._other_model(info)
            if other_model is None:
                return await self._recompute_all(self._probability(info))
            if not self._any_model:
                return other_model
            self._give_up(other_model, logging.WARNING)
        except PocqueueError as exc:
            self._give_up(str(exc), logging.ERROR)
        except Exception as exc:
            logger.exception("DELEGATION session %s: the check failed.", self._session_id)
            self._give_up(str(exc) or type(exc).__name__, logging.ERROR)
        return None

    def _give_up(self, reason: str, level: int) -> None:
        self.error = f"The session cannot be checked: {reason}"
        self._waiting.clear()
        logger.log(level, "DELEGATION session %s cannot be checked: %s", self._session_id, reason)

    async def _recompute_all(self, probability: float) -> str | None:
        while True:
            while not self._waiting:
                if self._ended:
                    return None
                self._wake.clear()
                await self._wake.wait()
            if reason := await self._recompute(probability):
                return reason

    async def _recompute(self, probability: float) -> str | None:
        """Recompute as many samples as a batch holds; return why the session is fraud, or None."""
        size = min(len(self._waiting), self._round.batch_size)
        some = [self._waiting.popleft() for _ in range(size)]
        computed = await self._engine.values(self._round, [nonce for nonce, _ in some])
        wrong = sum(
            self._round.proof.is_mismatch(claim, own)
            for (_, claim), own in zip(some, computed, strict=True)
        )
        self.sampled += size
        self.invalid += wrong
        self._metrics.sampled.inc(size)
        try:
            await asyncio.to_thread(
                self._outbox.add_check, self._session_id, sampled=size, invalid=wrong
            )
        except OutboxError as exc:
            # The counts in memory are right; only after a restart these are missing.
            logger.error("DELEGATION session %s: %s", self._session_id, exc)
        # The round's own threshold is for whole proofs; some chains set it too low for any sample.
        threshold = max(self._round.proof.fraud_threshold, FRAUD_THRESHOLD)
        verdict = judge_sample(self.invalid, self.sampled, threshold, probability)
        if not verdict.fraud_detected:
            return None
        return (
            f"{self.invalid} of {self.sampled} recomputed nonces are invalid; an honest node "
            f"has that many with probability {verdict.probability_honest:.2g}"
        )

    def _other_model(self, info: EngineInfo) -> str | None:
        theirs = self._model
        if theirs.model_fingerprint in {"", info.fingerprint}:
            return None
        return (
            f"the big node searches with model {theirs.model} ({theirs.model_fingerprint[:12]}), this "
            f"node's engine has {info.model} ({info.fingerprint[:12]}); set POCQUEUE_MODEL to the same"
        )

    def _probability(self, info: EngineInfo) -> float:
        theirs = self._model
        same = theirs.model_dtype in {"", info.dtype} and theirs.model_runtime in {"", info.runtime}
        if same:
            return self._round.proof.probability_mismatch()
        logger.warning(
            "DELEGATION session %s: the big node runs the model by %s in %s, this node by %s in %s: "
            "fraud of a few per cent is not told from float error.",
            self._session_id,
            theirs.model_runtime,
            theirs.model_dtype,
            info.runtime,
            info.dtype,
        )
        return self._round.proof.probability_mismatch(same_arithmetic=False)
