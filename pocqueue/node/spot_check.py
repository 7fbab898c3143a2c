"""Recomputes a random sample of what a big node sends, with the engine of the small one.

The sample and its test are in `sampling.py`. The engine has to have the model that the big node
searches with. If only its arithmetic differs (dtype, or torch against vLLM), more honest nonces come out
on the other side of r_target than the proof allows for, and the test allows for as many.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import KW_ONLY, dataclass, field

from pocqueue.engine.base import EngineInfo
from pocqueue.errors import OutboxError, PocqueueError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.page_check import Fraud
from pocqueue.node.round import SearchRequest
from pocqueue.node.sampling import FRAUD_THRESHOLD, Sampler, judge_sample
from pocqueue.poc.nonces import split
from pocqueue.poc.proofs import Proofs

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class SpotCheck:
    """The sample of one session."""

    engine: EngineHost  #: of this node
    request: SearchRequest  #: what is searched, and with which model
    session_id: str  #: in the outbox, where it was opened
    outbox: Outbox  #: keeps what was found, across restarts
    metrics: NodeMetrics
    _: KW_ONLY
    #: A session of another model than the engine's is not ended, but cannot be checked.
    any_model: bool
    sampled: int = field(init=False)  #: nonces recomputed so far
    invalid: int = field(init=False)  #: and of these, those that were wrong
    #: Why nothing is recomputed any more; None while it is.
    error: str | None = field(default=None, init=False)
    #: Chance of an honest nonce to be invalid; None: not known before the engine is.
    _probability: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        session = self.outbox.session(self.session_id)
        assert session is not None
        self.sampled, self.invalid = session.sampled, session.invalid
        self._sampler = Sampler(seen=session.nonces)

    async def check(self, batches: list[Proofs]) -> None:
        """Recompute a sample of new batches, a pass at a time, with a look at the result after each.

        If the engine fails, the session cannot be checked, which is no fraud.

        Raises:
            Fraud: the session is.
        """
        if self.error is not None:
            return
        found = Proofs.joined(batches)
        sample = [(found.nonces[at], found.values[at]) for at in self._sampler.pick(len(found))]
        try:
            if self._probability is None:
                self._probability = self._probability_with(await self.engine.ready())
            for some in split(sample, self.request.round.batch_size):
                if self._probability is not None:
                    await self._recompute(Proofs.of(some), self._probability)
        except PocqueueError as exc:
            self._give_up(str(exc), logging.ERROR)

    def _give_up(self, reason: str, level: int) -> None:
        self.error = f"The session cannot be checked: {reason}"
        logger.log(level, "DELEGATION session %s cannot be checked: %s", self.session_id, reason)

    async def _recompute(self, some: Proofs, probability: float) -> None:
        computed = await self.engine.values(self.request.round, some.nonces)
        wrong = sum(map(self.request.round.proof.is_mismatch, some.values, computed))
        self.sampled += len(some)
        self.invalid += wrong
        self.metrics.sampled.inc(len(some))
        try:
            await asyncio.to_thread(
                self.outbox.add_check, self.session_id, sampled=len(some), invalid=wrong
            )
        except OutboxError as exc:
            # The counts in memory are right; only after a restart these are missing.
            logger.error("DELEGATION session %s: %s", self.session_id, exc)
        # The round's own threshold is for whole proofs; some chains set it too low for any sample.
        threshold = max(self.request.round.proof.fraud_threshold, FRAUD_THRESHOLD)
        chance, is_fraud = judge_sample(self.invalid, self.sampled, threshold, probability)
        if is_fraud:
            raise Fraud(
                f"{self.invalid} of {self.sampled} recomputed nonces are invalid; an honest node "
                f"has that many with probability {chance:.2g}"
            )

    def _probability_with(self, ours: EngineInfo) -> float | None:
        """Return the chance of an honest nonce to come out as invalid; None: it cannot be said.

        Raises:
            Fraud: the session is of another model.
        """
        theirs, proof = self.request.model, self.request.round.proof
        if theirs.model_fingerprint not in {"", ours.fingerprint}:
            other = (
                f"the big node searches with model {theirs.model} ({theirs.model_fingerprint[:12]}), "
                f"this node's engine has {ours.model} ({ours.fingerprint[:12]}); set POCQUEUE_MODEL to "
                "the same"
            )
            if not self.any_model:
                raise Fraud(other)
            self._give_up(other, logging.WARNING)
            return None
        if theirs.model_dtype in {"", ours.dtype} and theirs.model_runtime in {"", ours.runtime}:
            return proof.probability_mismatch()
        logger.warning(
            "DELEGATION session %s: the big node runs the model by %s in %s, this node by %s in %s: "
            "fraud of a few per cent is not told from float error.",
            self.session_id,
            theirs.model_runtime,
            theirs.model_dtype,
            ours.runtime,
            ours.dtype,
        )
        return proof.probability_mismatch(same_arithmetic=False)
