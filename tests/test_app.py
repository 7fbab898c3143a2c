"""What our Celery application does beyond configuration."""

from __future__ import annotations

from typing import Any

from pocqueue.app import PatientConnection
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
