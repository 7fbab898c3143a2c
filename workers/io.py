"""Callbacks: posts the valid nonces of a round to its callback URL.

`celery -A pocqueue worker -Q io` runs it. The scheduler sends a task when a round has proofs that its receiver did
not confirm. The task delivers them (`workers/delivery.py`), and stays with its round while that is searched, so that
what is found next goes out at once and nobody has to look for it. Of a worker's places one is kept for tasks that do not
stay: with more rounds than places, the others are served as often as the scheduler looks. A URL that leads to an
address which is not public is given up at once, unless POCQUEUE_CALLBACK_PRIVATE allows it: see
`pocqueue.rounds.callback_target`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import signals

from pocqueue.app import app
from pocqueue.errors import InvalidRound, StoreForbidden, StoreUnavailable, UnknownRound
from pocqueue.poc.callback import SIGNED_BELOW, UNSIGNED_BELOW, CallbackClient
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.callback_target import check_url, checked_connector
from pocqueue.rounds.task_names import DELIVER_PROOFS, IO_QUEUE
from pocqueue.settings import settings
from workers import boot
from workers.delivery import Delivery, give_up

logger = logging.getLogger(__name__)

#: Batches merged into one request, at most.
ENTRIES_PER_POST = 256
#: Tasks of an io worker at a time, unless it is told another number. Most of them wait.
TASKS = 16
#: Seconds between two tries if Redis is away or refuses.
RETRY_S = 1.0

#: Places for tasks that stay.
_places = threading.Semaphore(TASKS - 1)


@signals.worker_init.connect
def _make_room(sender: Any, **_: Any) -> None:
    """Give an io worker places for many tasks."""
    global _places
    is_ours = set(sender.app.amqp.queues.consume_from) == {IO_QUEUE}
    if is_ours and sender.concurrency == sender.app.conf.worker_concurrency:
        sender.concurrency = TASKS
    _places = threading.Semaphore(max(0, sender.concurrency - 1))


@app.task(name=DELIVER_PROOFS)
def deliver_proofs(*, round_id: str, token: str) -> str:
    """Post what the receiver has not confirmed yet, under the lease `token`.

    The broker may deliver a task once more while it runs; the copy finds that this run has taken the lease.
    """
    own = uuid.uuid4().hex
    private, backend = settings().callback_private, boot.backend()
    has_place = _places.acquire(blocking=False)
    is_away = False
    try:
        while True:
            try:
                return asyncio.run(
                    deliver(
                        *(backend, round_id, token, own),
                        allow_private=private,
                        stays=lambda: has_place and not boot.is_stopping(),
                    )
                )
            except (StoreUnavailable, StoreForbidden) as exc:
                if not is_away:
                    logger.warning("Round %s: its proofs wait. %s", round_id, exc)
                is_away = True
            # Once Redis is back this goes on with the first proof that nobody confirmed, unless another task has the
            # lease by then.
            if boot.is_stopping():
                return "Redis is away"
            time.sleep(RETRY_S)
    finally:
        if has_place:
            _places.release()


async def deliver(
    backend: Backend,
    round_id: str,
    token: str,
    own: str,
    *,
    allow_private: bool,
    entries_per_post: int = ENTRIES_PER_POST,
    stays: Callable[[], bool] = lambda: False,
) -> str:
    """Post the unconfirmed proofs of a round; return one line about it.

    To be run in an event loop of its own: calls to Redis hold it up.

    Args:
        round_id: whose proofs.
        token: of the lease, as it came with the task.
        own: token that only this run of the task knows, however often it tries; the lease is under it from now on.
        allow_private: post to addresses that are not public as well.
        entries_per_post: batches merged into one request, at most.
        stays: says, again and again, whether to wait for what is found next.
    """
    try:
        status = backend.store.status(round_id)
    except UnknownRound:
        return "the round is forgotten"
    url = status.spec.callback_url
    if url is None or not backend.callbacks.take(round_id, token, own):
        return "another task delivers"
    try:
        # Tells more than the connector does if the URL is odd as well.
        check_url(url, allow_private=allow_private)
    except InvalidRound as exc:
        return give_up(backend, round_id, own, str(exc))
    async with CallbackClient(
        connector=partial(checked_connector, allow_private),
        delivered_below=SIGNED_BELOW if status.spec.proof.is_signed else UNSIGNED_BELOW,
    ) as client:
        delivery = Delivery(
            *(backend, status, own, backend.callbacks.progress(round_id), client),
            entries_per_post=entries_per_post,
            stays=stays,
        )
        return await delivery.run()
