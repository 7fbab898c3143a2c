"""Verdicts on proofs of others: recomputed by the node's own engine, signed, and on disk to be sent."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.messages import NewMessage
from pocqueue.node.round import NodeRound
from pocqueue.node.searches import NO_SEARCH
from pocqueue.poc.proofs import ReceivedBatch, Verdict, check_length


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Judges proofs of the round at hand."""

    outgoing: Dispatcher  #: where verdicts go

    async def judge(
        self, engine: EngineHost, node_round: NodeRound, proof: ReceivedBatch
    ) -> Verdict:
        """Recompute somebody's proof; the verdict is on disk when this returns.

        The block is the round's whatever the proof says, so that one made for another block fails.

        Raises:
            EngineUnavailable: the engine cannot be used.
            EngineError: it failed on a batch.
            InvalidRound: there is not one value for each nonce, or the shape cannot be run.
            OutboxError: the verdict cannot be kept.
        """
        claimed = proof.proofs
        # The nonces of the node whose proof it is, in the block of the round.
        whose = {"public_key": proof.public_key, "node_id": proof.node_id}
        search = node_round.model_copy(update=whose)
        check_length(search.proof.field, claimed.values, claimed.nonces, search.proof.noun)
        verdict = search.proof.judge(claimed, await engine.values(search, claimed.nonces))
        message = self.outgoing.message(
            *(uuid.uuid4().hex, "validated", search.url),
            *(search.proof.verdict_body(search, verdict), claimed.nonces),
            is_signed=search.proof.is_signed,
        )
        await asyncio.to_thread(self._keep, message)
        self.outgoing.notify()
        return verdict

    def _keep(self, message: NewMessage) -> None:
        # A session with no search of its own; it has no pages, and so its cursor stays.
        outbox, session_id = self.outgoing.outbox, f"verdict-{uuid.uuid4()}"
        outbox.open_session(session_id, "engine", NO_SEARCH)
        outbox.accept(session_id, "", "", [message])
        outbox.close_session(session_id)
