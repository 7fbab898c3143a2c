"""Recomputes proofs of others; the signed verdicts go out like everything else of the node."""

from __future__ import annotations

import asyncio
import uuid

from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.outbox import NewMessage, Outbox
from pocqueue.node.round import NodeRound
from pocqueue.poc.proofs import ReceivedBatch, Verdict, check_length

#: In place of the search in a session that holds one verdict.
NO_SEARCH = "{}"


async def validate(
    received: ReceivedBatch, node_round: NodeRound, engine: EngineHost, outgoing: Dispatcher
) -> Verdict:
    """Recompute a proof for the round's block; the verdict is on disk when this returns.

    The block is the round's whatever the proof says, so that one made for another block fails.

    Raises:
        EngineUnavailable: the engine cannot be used.
        EngineError: it failed on a batch.
        InvalidRound: there is not one value for each nonce, or the shape cannot be run.
        OutboxError: the verdict cannot be kept.
    """
    claimed = received.proofs
    # The nonces of the node whose proof it is, in the block of the round.
    search = node_round.model_copy(
        update={"public_key": received.public_key, "node_id": received.node_id}
    )
    check_length(search.proof.field, claimed.values, claimed.nonces, search.proof.noun)
    verdict = search.proof.judge(claimed, await engine.values(search, claimed.nonces))
    message = outgoing.message(
        uuid.uuid4().hex, "validated", search.url, search.proof.verdict_body(search, verdict)
    )
    await asyncio.to_thread(_keep, outgoing.outbox, message)
    outgoing.notify()
    return verdict


def _keep(outbox: Outbox, message: NewMessage) -> None:
    # A session with no search of its own; it has no pages, and so its cursor stays.
    session_id = f"verdict-{uuid.uuid4()}"
    outbox.open_session(session_id, "engine", NO_SEARCH)
    outbox.accept(session_id, "", "", [message])
    outbox.close_session(session_id)
