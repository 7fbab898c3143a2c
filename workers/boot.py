"""What every Celery worker of ours does when it starts, whatever its queue."""

from __future__ import annotations

import logging
import sys
import warnings
from functools import cache
from typing import Any, NoReturn

import redis
from celery import bootsteps, signals
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer
from typing_extensions import override

from pocqueue.app import app
from pocqueue.engine.devices import parse_queue
from pocqueue.errors import PocqueueError, SettingsError, StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.refusals import check_rights, store_error
from pocqueue.rounds.task_names import HOSTS_QUEUE, IO_QUEUE, RELAY_PREFIX
from pocqueue.settings import settings

logger = logging.getLogger(__name__)


def is_stopping() -> bool:
    """Say whether this worker process is to end."""
    return celery_state.should_stop is not None or celery_state.should_terminate is not None


def refuse(exc: PocqueueError, code: int = 2) -> NoReturn:
    """End this worker with one sentence.

    Args:
        exc: what is wrong.
        code: of the process; 2: only a person can mend it, and no supervisor is to start it again.
    """
    sys.__stderr__.write(f"pocqueue: {exc}\n")  # type: ignore[union-attr]
    raise SystemExit(code) from exc


@cache
def backend() -> Backend:
    """Return this process's connection to rounds; a Redis that is away is put up with."""
    return Backend.open(settings(), service=True)


@signals.celeryd_init.connect
def _name_worker(instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Give workers of one host different names without `-n`: ``gpu0@host``, ``io@host``."""
    name, _at, host = instance.hostname.partition("@")
    names = _queues(options)
    if name == "celery" and names:
        instance.hostname = f"{names[0]}@{host}"


@signals.celeryd_init.connect
def _refuse_unknown_queues(options: dict[str, Any], **_: Any) -> None:
    """Refuse a queue that nothing is sent to: behind a slip of its name a GPU would be idle, and nobody told."""
    for name in _queues(options):
        is_ours = name in {IO_QUEUE, HOSTS_QUEUE} or name.startswith(RELAY_PREFIX)
        if not is_ours and parse_queue(name) is None:
            refuse(
                SettingsError(
                    f"-Q names {name!r}, and nothing is sent there; allowed: gpu0, gpu1 and so on, HOST.gpu0 on several "
                    f"hosts, {IO_QUEUE}, {HOSTS_QUEUE}, {RELAY_PREFIX}NAME."
                )
            )


def _queues(options: dict[str, Any]) -> list[str]:
    queues = options.get("queues") or []
    return queues.split(",") if isinstance(queues, str) else list(queues)


@signals.celeryd_init.connect
def _refuse_autoscale(options: dict[str, Any], **_: Any) -> None:
    """Refuse an option that would end the worker later, with a traceback: its pool is of threads."""
    if bounds := options.get("autoscale"):
        refuse(
            SettingsError(
                f"--autoscale is {bounds[0]},{bounds[1]}; allowed: no such option. A GPU worker has one range at "
                "work and one that waits, an io worker has sixteen tasks at a time: start more workers for more."
            )
        )


@signals.worker_init.connect
def _mind_own_business(sender: Any, **_: Any) -> None:
    """Spare workers each other's events: with hundreds of GPUs they would cost more than the work.

    Mingle also delays every start by a second. Nothing of ours needs either.
    """
    sender.options.update(without_mingle=True, without_gossip=True)


class OurConsumer(Consumer):
    """A consumer that waits for a Redis that refuses, unless it never did anything else.

    What an operator takes away from a worker at work may come back; its model stays loaded for that.
    """

    conninfo: Any
    _was_ready = False

    @override
    def on_ready(self) -> None:
        self._was_ready = True
        super().on_ready()

    @override
    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if isinstance(exc, redis.RedisError) and not self._was_ready:
            error = store_error(exc, self.conninfo.as_uri())
            if not isinstance(error, StoreUnavailable):
                refuse(error)
        with warnings.catch_warnings():
            # What Celery means to change one day says nothing to whoever reads that Redis is away.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)


class StoreStep(bootsteps.StartStopStep):
    """Boot step that refuses a Redis which will never do; one that is away for now is for later steps."""

    requires = ("celery.worker.components:Pool",)

    @override
    def start(self, parent: Any) -> None:
        try:
            check_rights(backend().client, backend().url)
        except StoreUnavailable as exc:
            logger.warning("Waiting: %s", exc)
        except PocqueueError as exc:
            refuse(exc)


assert app.steps is not None
app.steps["worker"].add(StoreStep)
