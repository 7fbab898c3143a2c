"""Connections to Redis: forms of URL, and one helpful sentence for everything that can be wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from pocqueue.errors import (
    PocqueueError,
    StoreError,
    StoreForbidden,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnfit,
)
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.connection import connect, redis_url
from pocqueue.rounds.records import Outcome
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.refusals import shown_url, store_errors
from tests.support.factories import make_gpu, make_spec
from tests.support.fixtures import SettingsFactory
from tests.support.rounds import assign, check_books, commit


def _sentence(error: PocqueueError) -> str:
    """Return an error's message after checking that it is one line without a secret."""
    message = str(error)
    assert "\n" not in message
    assert "hunter2" not in message
    assert message.endswith(".")
    return message


# URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:hunter2@host:6379/0", "redis://host:6379/0"),
        ("redis://:hunter2@host", "redis://host"),
        ("redis://:hunter2@with@host/0", "redis://host/0"),
        ("redis://:12/hunter2@host:1/0", "redis://host:1/0"),
        ("redis://:12?hunter2@host:1/0", "redis://host:1/0"),
        ("redis://:12#hunter2@host:1/0", "redis://host:1/0"),
        ("redis://host/0?password=hunter2", "redis://host/0"),
        ("unix://:hunter2@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock"),
        ("redis+sentinel://:hunter2@a:1,b/0?master=m", "redis+sentinel://a:1,b/0"),
        ("sentinel://:hunter2@a:1;sentinel://:hunter2@b:2/0", "sentinel://b:2/0"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    """Whatever characters the password has."""
    assert shown_url(url) == shown


def test_without_a_url_and_without_a_server_the_ways_to_get_one_are_named(
    settings_for: SettingsFactory, tmp_path: Path
) -> None:
    """A command that only looks starts nothing and leaves nothing behind."""
    with pytest.raises(StoreUnavailable) as caught:
        redis_url(settings_for(redis_url=None, state_dir=tmp_path / "state"))
    message = _sentence(caught.value)
    assert "`pocqueue up`" in message
    assert "POCQUEUE_REDIS_URL" in message
    assert list(tmp_path.iterdir()) == []


def test_without_a_url_a_service_starts_the_bundled_server(
    own_redis: RedisServer, settings_for: SettingsFactory
) -> None:
    """And a command that looks finds it."""
    state_dir = own_redis.folder.parent
    own_redis.stop()
    settings = settings_for(redis_url=None, state_dir=state_dir)
    with Backend.open(settings, service=True) as backend:
        assert backend.url == own_redis.url
    with Backend.open(settings) as backend:
        assert backend.store.list_ids() == []


def test_a_service_says_that_it_uses_the_bundled_server(
    own_redis: RedisServer,
    settings_for: SettingsFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once; under systemd with what may have become of the URL. Whoever has a URL hears nothing."""
    with caplog.at_level("WARNING"):
        redis_url(settings_for(redis_url=SecretStr(own_redis.url)), start=True)
        assert not caplog.messages
        settings = settings_for(redis_url=None, state_dir=own_redis.state_dir)
        redis_url(settings)
        assert not caplog.messages
        monkeypatch.setenv("INVOCATION_ID", "of systemd")
        for _ in range(2):
            redis_url(settings, start=True)
    [message] = caplog.messages
    assert "POCQUEUE_REDIS_URL is not set" in message
    assert str(own_redis.state_dir) in message
    assert "a % in `Environment=` has to be %%" in message
    assert "`EnvironmentFile=`" in message


# What can be wrong


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A loopback port that nobody listens on and nobody else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_redis_down_is_said_with_its_address(refusing_port: int, tmp_path: Path) -> None:
    """By TCP and by Unix socket; the password is not."""
    for url, place in [
        (f"redis://:hunter2@127.0.0.1:{refusing_port}/0", f"redis://127.0.0.1:{refusing_port}/0"),
        (f"unix://:hunter2@{tmp_path}/none.sock", f"unix://{tmp_path}/none.sock"),
    ]:
        with pytest.raises(StoreUnavailable) as caught:
            connect(url)
        message = _sentence(caught.value)
        assert f"Redis at {place} does not answer" in message
        assert "check that it runs" in message
        assert isinstance(caught.value, ConnectionError)


def test_a_service_may_open_a_redis_that_is_away(refusing_port: int) -> None:
    """It waits in its own loop; the first command says that Redis is away."""
    url = f"redis://127.0.0.1:{refusing_port}"
    with connect(url, service=True) as client, pytest.raises(StoreUnavailable), store_errors(url):
        client.ping()


def test_a_server_that_never_replies_is_unavailable() -> None:
    """It took the connection and is silent: the wait has an end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnavailable, match="does not answer"):
            connect(f"redis://127.0.0.1:{port}", timeout_s=0.1)


@pytest.mark.parametrize("userinfo", ["", ":hunter2wrong@", "nobody:hunter2@"])
def test_a_wrong_or_missing_password_is_said(own_redis: RedisServer, userinfo: str) -> None:
    """With where to mend it."""
    with connect(own_redis.url) as admin:
        admin.config_set("requirepass", "correct")
        try:
            with pytest.raises(StoreForbidden) as caught:
                connect(f"unix://{userinfo}{own_redis.socket_path}", service=True)
            message = _sentence(caught.value)
            assert "user or password" in message
            assert "POCQUEUE_REDIS_URL" in message
            with connect(f"unix://:correct@{own_redis.socket_path}") as client:
                assert client.ping()
        finally:
            admin.config_set("requirepass", "")


def test_a_user_without_the_rights_is_said(own_redis: RedisServer) -> None:
    """With what Redis does not let them do, and where the rights are listed."""
    with connect(own_redis.url) as admin:
        admin.execute_command("ACL", "SETUSER", "guest", "on", ">guest", "+info", "+ping")
    url = f"unix://guest:guest@{own_redis.socket_path}"
    with connect(url) as client:
        expected = pytest.raises(StoreForbidden, match=r"'get' command.*docs/operating\.md")
        with expected, store_errors(url):
            client.get("key")


@pytest.mark.parametrize("version", ["6.0.16", "5.0.7", "2.8.24"])
def test_a_redis_that_is_too_old_is_refused(
    version: str, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its version and the one that is needed."""
    monkeypatch.setattr(redis.Redis, "info", lambda *_: {"redis_version": version})
    with pytest.raises(StoreUnfit) as caught:
        connect(own_redis.url)
    message = _sentence(caught.value)
    assert f"is version {version}; 6.2 or newer is needed" in message


@pytest.mark.parametrize("version", ["6.2.0", "6.2.14", "7.2.4", "8.0.0", "10.1"])
def test_newer_ones_will_do(
    version: str, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are compared as numbers."""
    monkeypatch.setattr(redis.Redis, "info", lambda *_: {"redis_version": version})
    connect(own_redis.url).close()


def test_a_full_redis_refuses_new_work_and_goes_on_when_it_has_room(own_backend: Backend) -> None:
    """It says so in one sentence, reading works, and what is done is done whole.

    Redis asks for room before the first write of a script that may need some; a script that begins
    with removing something (the last batch of a range) goes through to its end.
    """
    store, client = own_backend.store, own_backend.client
    round_id = store.create(make_spec(callback_url="http://h/"))
    out = assign(store, round_id, 20)
    commit(store, round_id, out.range_id, 0, 10, [1])
    client.config_set("maxmemory", 1)
    writes: list[Any] = [
        lambda: store.create(make_spec()),
        lambda: commit(store, round_id, out.range_id, 10, 15, [11]),
        lambda: store.lead("a scheduler", 3.0),
        lambda: own_backend.pool.beat(make_gpu()),
        lambda: own_backend.callbacks.claim_due(60.0),
    ]
    for write in writes:
        with pytest.raises(StoreReadOnly) as caught:
            write()
        message = _sentence(caught.value)
        assert "takes no more writes" in message
        assert "raise maxmemory" in message
    assert check_books(store, round_id).checked == 10
    assert store.list_ids() == [round_id]
    assert own_backend.callbacks.progress(round_id).lease == ""
    client.config_set("maxmemory", 0)
    assert own_backend.pool.all() == []
    assert commit(store, round_id, out.range_id, 10, 20, [11]).outcome is Outcome.COMMITTED
    assert check_books(store, round_id).valid == 2
    assert own_backend.callbacks.claim_due(60.0)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (redis.ConnectionError("refused"), StoreUnavailable),
        (redis.TimeoutError("slow"), StoreUnavailable),
        (redis.BusyLoadingError("loading"), StoreUnavailable),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), StoreUnavailable),
        (redis.ResponseError("UNBLOCKED force unblock, instance state changed"), StoreUnavailable),
        (redis.ResponseError("BUSY Redis is busy running a script"), StoreUnavailable),
        (redis.AuthenticationError("hunter2"), StoreForbidden),
        (redis.ResponseError("NOAUTH Authentication required."), StoreForbidden),
        (redis.ResponseError("WRONGPASS invalid"), StoreForbidden),
        (redis.ResponseError("NOPERM this user"), StoreForbidden),
        (redis.exceptions.NoPermissionError("User b has no permissions"), StoreForbidden),
        (redis.ReadOnlyError("You can't write against a replica"), StoreReadOnly),
        (redis.ResponseError("ERR Error running script: -READONLY You can't"), StoreReadOnly),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), StoreReadOnly),
        (redis.OutOfMemoryError("command not allowed"), StoreReadOnly),
        (redis.ResponseError("-OOM command not allowed"), StoreReadOnly),
        (redis.ResponseError("MISCONF Redis is configured to save"), StoreReadOnly),
        (redis.ResponseError("WRONGTYPE Operation"), StoreError),
    ],
)
def test_every_failure_of_the_client_is_one_of_ours(
    raised: Exception, expected: type[StoreError]
) -> None:
    """The rest of the program knows our own errors only."""
    with pytest.raises(StoreError) as caught, store_errors("redis://:hunter2@host:1/0"):
        raise raised
    assert type(caught.value) is expected
    assert "redis://host:1/0" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_other_errors_pass_unchanged() -> None:
    """A mistake of ours is not blamed on Redis."""
    with pytest.raises(ZeroDivisionError), store_errors("redis://host"):
        raise ZeroDivisionError
