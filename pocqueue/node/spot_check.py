"""Recomputes a random sample of what a big node sends, with the engine of the small one.

The sample and its test are in `sampling.py`; artifacts are compared by bounds measured for the pool, where there are any. A nonce counts as invalid if its claimed value is farther
from ours than an honest one can be (`ProofScheme.honest_difference`), and between engines of one kind
also if it came out on the other side of the round's bound. Engines of different kinds (dtype, or torch
against vLLM) put more honest nonces there than the proof allows for, so that only many of those are fraud.

Which kind of engine the big node has is what this node's operator says, never the big node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import KW_ONLY, dataclass, field

from pocqueue.delegation.client import RemoteModel
from pocqueue.engine.base import EngineInfo
from pocqueue.errors import DelegationError, OutboxError, PocqueueError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.page_check import Fraud
from pocqueue.node.round import SearchRequest
from pocqueue.node.sampling import (
    FRAUD_THRESHOLD,
    SESSION_NONCES,
    SIDES_SHARE,
    Sampler,
    judge_sample,
    sample_size,
)
from pocqueue.poc.proofs import Proofs
from pocqueue.poc.scheme import ProofScheme
from pocqueue.settings import DelegationSettings

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class SpotCheck:
    """The sample of one session."""

    engine: EngineHost  #: of this node
    request: SearchRequest  #: what is searched, and what the big node said about its model
    session_id: str  #: in the outbox, where it was opened
    outbox: Outbox  #: keeps what was found, across restarts
    metrics: NodeMetrics
    _: KW_ONLY
    delegation: DelegationSettings  #: what the big node's engine is
    sampled: int = field(init=False)  #: nonces recomputed so far
    invalid: int = field(init=False)  #: and of these, those that were invalid
    #: Why nothing is recomputed any more; None while it is.
    error: str | None = field(default=None, init=False)
    #: Between engines of different kinds: nonces recomputed by this process, and those of them that came
    #: out on the other side of the round's bound.
    _looked: int = field(default=0, init=False)
    _other_side: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        session = self.outbox.session(self.session_id)
        assert session is not None
        self.sampled, self.invalid = session.sampled, session.invalid
        self._proof = bounds_here(self.request.round.proof, self.delegation)
        rate = sample_size(self._proof.probability_mismatch()) / SESSION_NONCES
        self._sampler = Sampler(rate, seen=session.nonces)

    async def check(self, batches: list[Proofs], after: Awaitable[None] | None = None) -> None:
        """Recompute a sample of new batches, a pass at a time, with a look at the result after each.

        If the engine fails, the session cannot be checked, which is no fraud.

        Args:
            batches: of one page.
            after: the check of the page before; this one waits for it, and raises what it raises.

        Raises:
            Fraud: the session is.
            DelegationError: it is of another engine than it has to be.
        """
        if after is not None:
            await after
        if self.error is not None:
            return
        sample = await asyncio.to_thread(self._sample, batches)
        size = self.request.round.pass_size
        try:
            ours = await self.engine.ready()
            if reason := other_model(self.request.model, ours, self.delegation):
                self._give_up(reason, logging.WARNING)
                return
            for start in range(0, len(sample), size):
                part = slice(start, start + size)
                await self._recompute(Proofs(sample.nonces[part], sample.values[part]), ours)
        except DelegationError:
            raise
        except PocqueueError as exc:
            self._give_up(str(exc), logging.ERROR)

    def _sample(self, batches: list[Proofs]) -> Proofs:
        found = Proofs.joined(batches)
        picked = self._sampler.pick(len(found))
        return Proofs.of((found.nonces[at], found.values[at]) for at in picked)

    def _give_up(self, reason: str, level: int) -> None:
        self.error = f"The session cannot be checked: {reason}"
        logger.log(level, "DELEGATION session %s cannot be checked: %s", self.session_id, reason)

    async def _recompute(self, some: Proofs, ours: EngineInfo) -> None:
        proof = self._proof
        computed = await self.engine.values(self.request.round, some.nonces)
        # What we cannot compute says nothing about what was claimed.
        pairs = [
            pair for pair in zip(some.values, computed, strict=True) if not proof.is_broken(pair[1])
        ]
        bound = proof.honest_difference(ours.vocab_size)
        # `not` for NaN, which compares false with everything.
        far = [not proof.difference(*pair) <= bound for pair in pairs]
        other_side = [proof.is_mismatch(*pair) for pair in pairs]
        if is_alike := _expected(self.delegation, ours) == (ours.runtime, ours.dtype):
            invalid = sum(a or b for a, b in zip(far, other_side, strict=True))
        else:
            invalid = sum(far)
            self._looked += len(pairs)
            self._other_side += sum(other_side)
        self.sampled += len(pairs)
        self.invalid += invalid
        self.metrics.sampled.inc(len(pairs))
        try:
            await asyncio.to_thread(
                self.outbox.add_check, self.session_id, sampled=len(pairs), invalid=invalid
            )
        except OutboxError as exc:
            # The counts in memory are right; only after a restart these are missing.
            logger.error("DELEGATION session %s: %s", self.session_id, exc)
        # The round's own threshold is for whole proofs; some chains set it too low for any sample.
        threshold = max(proof.fraud_threshold, FRAUD_THRESHOLD)
        chance, is_fraud = judge_sample(
            self.invalid,
            self.sampled,
            threshold if is_alike else threshold * (1 - SIDES_SHARE),
            proof.probability_mismatch(),
        )
        if is_fraud:
            raise Fraud(
                f"{self.invalid} of {self.sampled} recomputed nonces are invalid; an honest node "
                f"has that many with probability {chance:.2g}"
            )
        chance, is_fraud = judge_sample(
            self._other_side,
            self._looked,
            threshold * SIDES_SHARE,
            proof.probability_mismatch(same_arithmetic=False),
        )
        if is_fraud:
            raise Fraud(
                f"{self._other_side} of {self._looked} recomputed nonces are not valid; an honest node "
                f"with another kind of engine has that many with probability {chance:.2g}"
            )


def bounds_here(proof: ProofScheme, delegation: DelegationSettings) -> ProofScheme:
    """Return the proof of a session by the bounds that the operator has measured for its big node's pool.

    Those of the chain allow for every GPU there is, and a cheat can hide in what one pool does not need of that.
    """
    bounds = {"dist_threshold": delegation.dist_threshold, "p_mismatch": delegation.p_mismatch}
    known = {
        name: value
        for name, value in bounds.items()
        if value is not None and name in type(proof).model_fields
    }
    return proof.model_copy(update=known)


def other_model(
    theirs: RemoteModel, ours: EngineInfo | None, delegation: DelegationSettings
) -> str | None:
    """Hold what a big node says about its engine against what it has to be.

    Args:
        theirs: what it said; what it left out is taken to be as it has to be.
        ours: this node's engine; None: there is none, or it is not loaded yet.
        delegation: what the operator says about the big node's engine.

    Returns:
        Why the session cannot be checked: it is of another model, and any model will do; None: it can.

    Raises:
        DelegationError: it has to be another engine; names both.
    """
    for name, said, expected in (
        ("runtime", theirs.model_runtime, _expected(delegation, ours)[0]),
        ("dtype", theirs.model_dtype, _expected(delegation, ours)[1]),
    ):
        if said and expected and said != expected:
            setting = delegation.variable(name)
            whose = (
                "its own engine's" if getattr(delegation, name) is None else f"that of {setting}"
            )
            raise DelegationError(
                f"The big node says that its engine has {name} {said[:40]!r}; this node expects {expected!r}, "
                f"{whose}. If its operator and you mean it to be so, set {setting} to that",
                is_final=True,
            )
    if ours is None or theirs.model_fingerprint in {"", ours.fingerprint}:
        return None
    reason = (
        f"the big node searches with model {theirs.model[:80]!r} ({theirs.model_fingerprint[:12]!r}), "
        f"this node's engine has {ours.model} ({ours.fingerprint[:12]}); set POCQUEUE_MODEL to the same"
    )
    if delegation.any_model:
        return reason
    raise DelegationError(reason, is_final=True)


def _expected(
    delegation: DelegationSettings, ours: EngineInfo | None
) -> tuple[str | None, str | None]:
    """Return runtime and dtype of the big node's engine; None: whatever it says."""
    runtime, dtype = (ours.runtime, ours.dtype) if ours else (None, None)
    return delegation.runtime or runtime, delegation.dtype or dtype
