"""Task messages on a real Redis: what a scheduler sends is what a Celery worker takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from pydantic import SecretStr

from pocqueue import app as pocqueue_app
from pocqueue.errors import StoreUnavailable
from pocqueue.rounds.records import AssignedRange, RoundStatus
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.scheduler_process import CelerySender
from pocqueue.rounds.task_names import HOSTS_QUEUE, RUN_RANGE, SWEEP_HOSTS
from tests.support.factories import make_status
from tests.support.fixtures import SettingsFactory


@pytest.fixture
def app(
    own_redis: RedisServer, settings_for: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Celery]:
    """An application with our configuration, on a Redis that the test may stop."""
    settings = settings_for(redis_url=SecretStr(own_redis.url))
    monkeypatch.setattr(pocqueue_app, "settings", lambda: settings)
    with Celery("test", set_as_current=False) as app:
        app.conf.update(pocqueue_app.configuration() | {"include": []})
        yield app


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator[redis.Redis]:
    """A client of that Redis."""
    path = str(own_redis.socket_path)
    with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
        yield client


def _ranges(num: int) -> list[tuple[str, RoundStatus, AssignedRange]]:
    status = make_status("round-1")
    return [(f"gpu{n}", status, AssignedRange(n + 1, 100 * n, 100 * n + 100)) for n in range(num)]


def _lengths(client: redis.Redis, num: int) -> list[int]:
    return [int(client.llen(f"gpu{n}")) for n in range(num)]


def test_gateways_get_their_sweep(app: Celery, client: redis.Redis) -> None:
    """One message on the queue that they share."""
    CelerySender(app).send_sweep()
    texts: Any = client.lrange(HOSTS_QUEUE, 0, -1)
    [message] = map(json.loads, texts)
    assert message["headers"]["task"] == SWEEP_HOSTS


def test_every_queue_gets_its_message(app: Celery, client: redis.Redis) -> None:
    """With the task, its arguments, and what Flower shows."""
    CelerySender(app).send_ranges(_ranges(3))
    for number in range(3):
        texts: Any = client.lrange(f"gpu{number}", 0, -1)
        (message,) = map(json.loads, texts)
        start = 100 * number
        assert message["headers"]["task"] == RUN_RANGE
        assert message["headers"]["kwargsrepr"] == f"{start}..{start + 99} of round round-1"
        _, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        given = {"round_id": "round-1", "range_id": number + 1, "start": start, "stop": start + 100}
        assert kwargs == given
    assert _lengths(client, 4) == [1, 1, 1, 0]


def test_our_settings_allow_many_messages_in_one_round_trip(app: Celery) -> None:
    """Kombu sends them one by one, without a word, where a connection is set to repeat commands."""
    with app.producer_or_acquire() as producer:
        assert producer.supports_batch_publish


def test_a_connection_that_was_closed_meanwhile_loses_nothing(
    app: Celery, client: redis.Redis
) -> None:
    """The first failure is not the last word; nor does a message come twice for it."""
    CelerySender(app).send_ranges(_ranges(5))
    client.client_kill_filter(_type="normal", skipme=True)
    CelerySender(app).send_ranges(_ranges(5))
    assert _lengths(client, 5) == [2] * 5


def test_a_redis_that_is_away_is_told_in_our_words(app: Celery, own_redis: RedisServer) -> None:
    """And sending works again when it is back."""
    CelerySender(app).send_ranges(_ranges(1))
    own_redis.stop()
    with pytest.raises(StoreUnavailable, match="Celery cannot send to the GPU queues"):
        CelerySender(app).send_ranges(_ranges(1))
    own_redis.ensure()
    CelerySender(app).send_ranges(_ranges(1))
