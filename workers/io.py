"""Callbacks: posts the valid nonces of a round to its callback URL.

`celery -A pocqueue worker -Q io` runs it. The scheduler sends a task when a round has proofs that
its receiver did not confirm; the task posts them in order, a bounded number at a time, and stops at
the first failure. When to try again stands in the store, so any io worker may go on. What the
receiver refuses for good (docs/protocol.md says which answers those are) is passed over, batch by
batch, so that it does not keep the rest back. A URL that leads to an address which is not public is
given up at once, unless POCQUEUE_CALLBACK_PRIVATE allows it: see `pocqueue.rounds.callback_target`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from pocqueue.app import app
from pocqueue.errors import InvalidRound, StoreForbidden, StoreUnavailable, UnknownRound
from pocqueue.poc.callback import (
    SIGNED_BELOW,
    UNSIGNED_BELOW,
    CallbackClient,
    PostOutcome,
    encode_body,
)
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.callback_target import check_url, checked_connector
from pocqueue.rounds.task_names import DELIVER_PROOFS
from pocqueue.settings import settings
from pocqueue.words import counted
from workers import boot

logger = logging.getLogger(__name__)

#: Seconds after which a task goes to the end of the queue.
TASK_S = 20.0
#: Batches merged into one request, at most.
ENTRIES_PER_POST = 256


@app.task(name=DELIVER_PROOFS)
def deliver_proofs(*, round_id: str, token: str) -> str:
    """Post what the receiver has not confirmed yet, under the lease `token`."""
    private = settings().callback_private
    try:
        return asyncio.run(deliver(boot.backend(), round_id, token, allow_private=private))
    except (StoreUnavailable, StoreForbidden) as exc:
        # The lease runs out, and the next task begins with the first proof that nobody confirmed.
        logger.warning("Round %s: its proofs wait. %s", round_id, exc)
        return "Redis is away"


async def deliver(
    backend: Backend,
    round_id: str,
    token: str,
    *,
    allow_private: bool,
    entries_per_post: int = ENTRIES_PER_POST,
) -> str:
    """Post the unconfirmed proofs of a round; return one line about it.

    To be run in an event loop of its own: calls to Redis hold it up.

    Args:
        round_id: whose proofs.
        token: of the lease under which they are posted.
        allow_private: post to addresses that are not public as well.
        entries_per_post: batches merged into one request, at most.
    """
    callbacks = backend.callbacks
    try:
        status = backend.store.status(round_id)
    except UnknownRound:
        return "the round is forgotten"
    progress = callbacks.progress(round_id)
    url = status.spec.callback_url
    if progress.lease != token or url is None:
        return "another task delivers"
    try:
        # Tells more than the connector does if the URL is odd as well.
        check_url(url, allow_private=allow_private)
    except InvalidRound as exc:
        return _give_up(backend, round_id, token, str(exc))
    cursor, attempts, size = progress.cursor, progress.attempts, entries_per_post
    posted = refused = 0
    give_back_at = time.monotonic() + TASK_S
    async with CallbackClient(
        connector=partial(checked_connector, allow_private),
        delivered_below=SIGNED_BELOW if status.spec.proof.is_signed else UNSIGNED_BELOW,
    ) as client:
        while True:
            entries = backend.store.read_proofs(status, cursor, count=size)
            if not entries:
                callbacks.finish(round_id, token)
                return f"{counted(posted, 'nonce')} delivered, {refused:,} refused"
            batch = Proofs.joined(entry.proofs for entry in entries)
            result = await client.post(
                url, "generated", encode_body(status.spec.proof.callback_body(status.spec, batch))
            )
            if result.outcome is PostOutcome.RETRY:
                error = f"{counted(len(batch), 'nonce')} not taken: {result.reason}"
                callbacks.failed(round_id, token, attempts, error)
                pause_s = callbacks.timings.pause_ms(attempts) / 1000
                logger.warning("Round %s: %s; next try in %.1f s.", round_id, error, pause_s)
                return error
            if result.outcome is PostOutcome.FORBIDDEN:
                # Nothing was sent, so nothing is passed over, and the next try would end here too.
                return _give_up(backend, round_id, token, result.reason)
            if result.outcome is PostOutcome.REFUSED and len(entries) > 1:
                # The body may be too large, or one batch in it is what the receiver refuses.
                size = len(entries) // 2
                continue
            if result.outcome is PostOutcome.REFUSED:
                # A final answer: the same body would get it again, and the rest would never arrive.
                refused += len(batch)
                logger.warning(
                    "Round %s: the callback receiver refuses %s, from %d on: %s",
                    round_id,
                    counted(len(batch), "nonce"),
                    batch.nonces[0],
                    result.reason,
                )
            else:
                posted += len(batch)
            # Failures before this success no longer count.
            cursor, attempts = entries[-1].cursor, 0
            if not callbacks.delivered(round_id, token, cursor, len(batch)):
                return "another task took over"
            if time.monotonic() > give_back_at:
                # A slow receiver must not keep the others waiting; the scheduler comes back to this round
                # for as long as it has proofs to deliver.
                callbacks.finish(round_id, token)
                return f"{counted(posted, 'nonce')} delivered, {refused:,} refused; more to come"


def _give_up(backend: Backend, round_id: str, token: str, error: str) -> str:
    """End the callbacks of a round, as no further try would help."""
    backend.callbacks.give_up(round_id, token, error)
    logger.error("Round %s: no callbacks are sent. %s", round_id, error)
    return error
