"""The Celery application: `celery -A pocqueue worker -Q gpu0` and `celery -A pocqueue flower`.

Celery does delivery, routing, acknowledgement, revocation and events; this module only configures it.
Settings that are not Celery's defaults stand here with the reason for them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from functools import cache
from typing import Any

import redis
from celery import Celery, signals
from celery.app.amqp import AMQP
from kombu import Connection
from typing_extensions import override

from pocqueue.errors import PocqueueError, first_line
from pocqueue.rounds.connection import redis_url
from pocqueue.rounds.redis_url import RedisUrl
from pocqueue.rounds.refusals import PROBE_KEY
from pocqueue.rounds.spec import MAX_WINDOW_S
from pocqueue.rounds.task_names import IO_QUEUE
from pocqueue.settings import settings


def configuration() -> dict[str, Any]:
    """Return Celery's configuration; called when it is first needed, not on import.

    Ends the process with one sentence and code 2 if a setting is wrong or the bundled Redis cannot
    be started: nobody above, in Celery's or Flower's command line, would print it so.
    """
    try:
        broker = RedisUrl.parse(redis_url(settings(), start=True)).broker()
    except PocqueueError as exc:
        sys.stderr.write(f"pocqueue: {exc}\n")
        raise SystemExit(2) from None
    return broker | {
        "broker_connection_retry_on_startup": True,
        # A worker outlasts any outage of Redis, and a Redis that answers but refuses, which to Celery is an
        # error of a channel.
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "worker_consumer": "workers.boot:OurConsumer",
        "broker_transport_options": {
            # Redelivery by time is the last resort only: the scheduler gives the ranges of a dead
            # worker to others within seconds. It must not strike while a round can still run.
            "visibility_timeout": 2 * MAX_WINDOW_S,
            # A connection that died without a word (a failover, a forgetful NAT) is noticed within
            # seconds: without a timeout a send would wait on it for ever, and Linux alone would
            # take two hours.
            "health_check_interval": 15,
            "socket_timeout": 10.0,
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
            "socket_keepalive_options": {
                socket.TCP_KEEPIDLE: 15,
                socket.TCP_KEEPINTVL: 5,
                socket.TCP_KEEPCNT: 3,
            },
            **broker["broker_transport_options"],
        },
        "include": ["workers.gpu", "workers.hosts", "workers.io"],
        "task_default_queue": IO_QUEUE,
        # JSON only, both ways: no pickle from anybody.
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        # Results live in rounds/store.py.
        "task_ignore_result": True,
        # A range is acknowledged when it is done, so a worker that dies gives it back. How often a
        # range is tried is bounded by the store (MAX_ATTEMPTS), not by the broker.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # CUDA does not survive a fork. Two task threads share one engine: one range runs, one has
        # been received and opened and waits, and nothing more is prefetched.
        "worker_pool": "threads",
        "worker_concurrency": 2,
        "worker_prefetch_multiplier": 1,
        "worker_enable_prefetch_count_reduction": False,
        # What runs when the connection breaks goes on; its commits are safe to repeat.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # SIGTERM: the running batch is finished and committed, the rest handed back, well within.
        "worker_soft_shutdown_timeout": 10.0,
        # What Flower shows.
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        # The scheduler waits for Redis in its own loop.
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0.1},
    }


class PatientConnection(Connection):
    """A broker connection that comes back soon after an outage.

    Kombu waits 2 s longer after each try, up to 30 s, and has no setting for it; half a minute in
    which a GPU does nothing is a tenth of a round.
    """

    @override
    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        pace = {"interval_start": 0.25, "interval_step": 0.25, "interval_max": 1.0}
        return super().ensure_connection(*args, **(pace | kwargs))

    @override
    def get_transport_cls(self) -> Any:
        transport: Any = super().get_transport_cls()
        return _probing(transport)

    @override
    def _do_close_transport(self) -> None:
        transport = getattr(self, "_transport", None)
        super()._do_close_transport()
        if transport is not None:
            # Kombu lets go of us here, also if an event could not be sent, while a channel of this
            # transport is still in use: to acknowledge a message, or to give one back, that asks for the
            # host and ended the worker with an AttributeError instead of the outage it can wait out.
            transport.client = self


@cache
def _probing(transport: Any) -> Any:
    """Return a transport whose connections are established once the server takes writes.

    Otherwise a worker on a Redis that fails over, or whose disk is full, would connect, fail to declare its
    queue and begin again, many times a second.
    """

    class Probing(transport):  # type: ignore[misc]
        @override
        def establish_connection(self) -> Any:
            connection = super().establish_connection()
            with contextlib.closing(self.create_channel(connection)) as channel:
                channel.client.set(PROBE_KEY, "", px=1)
            return connection

    return Probing


class PatientAMQP(AMQP):
    """Makes such connections."""

    Connection = PatientConnection


app = Celery("pocqueue", amqp=PatientAMQP)
app.config_from_object("pocqueue.app:CONFIGURATION")


def __getattr__(name: str) -> Any:
    # `config_from_object` resolves this path on first use of the configuration, not on import.
    if name == "CONFIGURATION":
        return configuration()
    raise AttributeError(f"module 'pocqueue.app' has no attribute {name!r}")


class OneLine(logging.Filter):
    """Makes a line of what Redis refuses, where kombu shows a traceback of it every second that it lasts."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        exc = record.exc_info[1] if record.exc_info else None
        if isinstance(exc, redis.RedisError):
            record.msg, record.args = f"{record.getMessage()}: {first_line(exc)}", ()
            record.exc_info = record.exc_text = None
        return True


@signals.after_setup_logger.connect
def _show_our_messages(**_: Any) -> None:
    """Log our own messages from `POCQUEUE_LOG_LEVEL` on, whatever level Celery runs at."""
    logging.getLogger("kombu.transport.redis").addFilter(OneLine())
    for name in ("pocqueue", "workers"):
        logging.getLogger(name).setLevel(settings().log_level)
