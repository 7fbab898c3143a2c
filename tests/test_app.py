"""What our Celery application does beyond configuration."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import redis

from pocqueue.app import OneLine, PatientConnection
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.redis_url import RedisUrl


def test_a_channel_outlives_its_transport(redis_server: RedisServer) -> None:
    """A task that ends after the connection was given up can still acknowledge its message."""
    broker = RedisUrl.parse(redis_server.url).broker()
    with PatientConnection(broker["broker_url"]) as connection:
        channel: Any = connection.channel()
        connection._do_close_transport()
        channel._disconnect_pools()
        with channel.conn_or_acquire() as client:
            assert client.ping()
        channel.close()


def test_what_redis_refuses_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Kombu shows the traceback of some of it again and again; of other errors it stays."""
    logger = logging.getLogger("a logger of kombu")
    logger.addFilter(OneLine())
    for exc in (redis.ResponseError("MISCONF no room"), KeyError("a mistake")):
        try:
            raise exc
        except Exception:
            logger.warning("%s, will retry", "refresh", exc_info=True)
    assert caplog.messages == [
        "refresh, will retry: ResponseError: MISCONF no room",
        "refresh, will retry",
    ]
    assert caplog.text.count("Traceback") == 1
