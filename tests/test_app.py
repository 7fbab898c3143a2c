"""What our Celery application does beyond configuration."""

from __future__ import annotations

from typing import Any

from pocqueue.app import PatientConnection
from pocqueue.rounds.connection import broker_url
from pocqueue.rounds.redis_server import RedisServer


def test_a_channel_outlives_its_transport(redis_server: RedisServer) -> None:
    """A task that ends after the connection was given up can still acknowledge its message."""
    with PatientConnection(broker_url(redis_server.url)) as connection:
        channel: Any = connection.channel()
        connection._do_close_transport()
        channel._disconnect_pools()
        with channel.conn_or_acquire() as client:
            assert client.ping()
        channel.close()
