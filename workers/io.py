"""What needs no GPU: posts the valid nonces of a round to its callback URL.

`celery -A pocqueue worker -Q io` runs it. The scheduler sends a task when a round has proofs that
its receiver did not confirm; the task posts them in order, a bounded number at a time, and stops at
the first failure. When to try again stands in the store, so any io worker may go on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from functools import cache

from pocqueue.app import app
from pocqueue.poc.data import ProofBatch
from pocqueue.poc.sender import PoCCallbackSender
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import ProofEntry, RoundStatus
from pocqueue.rounds.task_names import DELIVER_PROOFS
from pocqueue.settings import settings

logger = logging.getLogger(__name__)

#: Batches merged into one request.
ENTRIES_PER_POST = 256


@cache
def _backend() -> Backend:
    return Backend.open(settings(), start=True, check=False)


@app.task(name=DELIVER_PROOFS)
def deliver_proofs(*, round_id: str, token: str) -> str:
    """Post what the receiver has not confirmed yet, under the lease `token`."""
    return asyncio.run(deliver(_backend(), round_id, token))


async def deliver(backend: Backend, round_id: str, token: str) -> str:
    """Post the unconfirmed proofs of a round; return one line about it."""
    status = await asyncio.to_thread(backend.store.status, round_id)
    delivery = await asyncio.to_thread(backend.outbox.delivery, round_id)
    url = status.spec.callback_url
    if delivery.lease != token or url is None:
        return "another task delivers"
    sender = PoCCallbackSender(url, status.spec.r_target, status.spec.fraud_threshold)
    cursor, posted = delivery.cursor, 0
    try:
        while True:
            entries = await asyncio.to_thread(
                backend.store.read_proofs, status, cursor, count=ENTRIES_PER_POST
            )
            if not entries:
                await asyncio.to_thread(backend.outbox.finish, round_id, token)
                return f"{posted} nonces delivered"
            batch = merge(status, entries)
            if not await sender.post("/generated", asdict(batch)):
                error = f"{len(batch)} nonces were not taken"
                await asyncio.to_thread(backend.outbox.failed, round_id, token, delivery, error)
                logger.warning(
                    "Round %s: the callback receiver took nothing; next try in %.1f s.",
                    round_id,
                    delivery.backoff_ms / 1000,
                )
                return error
            cursor, posted = entries[-1].cursor, posted + len(batch)
            if not await asyncio.to_thread(
                backend.outbox.delivered, round_id, token, cursor, len(batch)
            ):
                return "another task took over"
    finally:
        await sender.close()


def merge(status: RoundStatus, entries: list[ProofEntry]) -> ProofBatch:
    """Return the nonces of several batches of one round as one."""
    return ProofBatch(
        public_key=status.spec.public_key,
        block_hash=status.spec.block_hash,
        block_height=status.spec.block_height,
        nonces=[nonce for entry in entries for nonce in entry.batch.nonces],
        dist=[dist for entry in entries for dist in entry.batch.dist],
        node_id=status.spec.node_id,
    )
