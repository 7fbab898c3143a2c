"""How a small node stands, for its status, its health and Prometheus."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from prometheus_client import generate_latest

from pocqueue.node.at_hand import AtHand, NodeState
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.searches import Searches


@dataclass(eq=False)
class Report:
    """Reads and changes nothing."""

    at_hand: AtHand
    searches: Searches
    outgoing: Dispatcher
    engine: EngineHost | None  #: the node's own

    async def status(self) -> dict[str, Any]:
        """Return the fields of `GET /status`.

        Raises:
            OutboxError: the disk is in trouble.
        """
        counts = await asyncio.to_thread(self.outgoing.outbox.counts)
        cheats = await asyncio.to_thread(self.searches.trust.read)
        node_round = self.at_hand.round
        found: dict[str, Any] = {
            "status": self._word(),
            "is_model_initialized": node_round is not None,
            "delegation_mode": self.searches.delegates(node_round),
            "gpu_count": 0,
            "block_hash": node_round.block_hash if node_round else None,
            "node_id": node_round.node_id if node_round else None,
            "error": self._trouble() or counts.last_error,
            "signer": self.outgoing.key.public_hex,
            "outbox": counts.model_dump(),
            "distrusted": [cheat.url for cheat in cheats],
        }
        if (search := self.at_hand.search) is not None:
            lag_s = search.lag_s
            found |= {
                "delegation_mode": search.is_remote,
                "gpu_count": search.source.gpu_count,
                "session_id": search.source.session_id,
                "total_batches": search.batches,
                "total_nonces": search.nonces,
                "poll_lag_seconds": None if lag_s is None else round(lag_s, 3),
                "sampled_nonces": search.spot_check.sampled if search.spot_check else 0,
                "fraud_detected": search.fraud is not None,
            }
        return found

    @property
    def unhealthy(self) -> str | None:
        """Why the node cannot work; None if it can."""
        # A node that delegates works without an engine; its status says what is missing.
        if self.engine is None or self.searches.delegation.is_delegating:
            return None
        return self.engine.error

    async def metrics(self) -> bytes:
        """Return what `/metrics` answers: the text format of Prometheus.

        Raises:
            OutboxError: the disk is in trouble.
        """
        metrics = self.outgoing.metrics
        counts = await asyncio.to_thread(self.outgoing.outbox.counts)
        for name in ("waiting", "refused", "held"):
            metrics.messages.labels(name).set(getattr(counts, name))
        metrics.oldest.set(counts.oldest_seconds)
        lags = [follower.lag_s or 0.0 for follower in self.searches.followers]
        metrics.poll_lag.set(max(lags, default=0.0))
        return generate_latest(metrics.registry)

    def _trouble(self) -> str | None:
        """Return what is wrong, in one sentence."""
        search = self.at_hand.search
        check = search.spot_check if search else None
        return (
            (search.error if search else None)
            or self.at_hand.error
            or (check.error if check else None)
            or (self.engine.error if self.engine else None)
        )

    def _word(self) -> str:
        search, state = self.at_hand.search, self.at_hand.state
        if state is NodeState.GENERATING and (search is None or search.over):
            return NodeState.STOPPED.value
        if state in {NodeState.IDLE, NodeState.STOPPED} and self.engine is not None:
            if self.engine.is_loading:
                return "LOADING"
            if self.engine.error is not None and not self.searches.delegation.is_delegating:
                return "NOT_LOADED"
        return state.value
