"""One URL for all that read it: our own clients, blocking and not, and Celery's broker."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection
from kombu.exceptions import OperationalError

from pocqueue.errors import SettingsError, StoreUnavailable
from pocqueue.rounds.connection import connect
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.redis_url import RedisUrl
from tests.support.sentinels import MASTER, QUOTED, failing_over
from tests.support.tls import make_certificate
from tests.support.tls_proxy import tls_proxy
from tests.support.waiting import until

#: Everything that needs encoding in a URL.
PASSWORD = "p@ss:w/o?r#d%41"
ENCODED = "p%40ss%3Aw%2Fo%3Fr%23d%2541"


class Places:
    """One server with a password, and the ways to it."""

    def __init__(self, server: RedisServer, port: int, tls_port: int, folder: Path) -> None:
        self.words = {
            "SOCKET": str(server.socket_path),
            "PLAIN": f"127.0.0.1:{port}",
            "TLS": f"127.0.0.1:{tls_port}",
            "CA": str(folder / "cert.pem"),
            "WORD": ENCODED,
        }

    def url(self, pattern: str) -> str:
        """Fill in a URL."""
        for name, value in self.words.items():
            pattern = pattern.replace(name, value)
        return pattern


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """A server by its Unix socket, by TCP, and behind TLS with an authority of its own; users default and ann."""
    with tempfile.TemporaryDirectory(prefix="pq-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = RedisServer(Path(folder))
        server.ensure()
        with RedisUrl.parse(server.url).client() as admin:
            admin.config_set("port", port)
            admin.execute_command(
                "ACL", "SETUSER", "ann", "on", f">{PASSWORD}", "~*", "&*", "+@all"
            )
            admin.config_set("requirepass", PASSWORD)
            certificates = tmp_path_factory.mktemp("tls")
            with tls_proxy(str(server.socket_path), *make_certificate(certificates)) as tls_port:
                yield Places(server, port, tls_port, certificates)
            admin.config_set("requirepass", "")
        server.stop()


def channel_of(url: str, connection_options: dict[str, Any] | None = None) -> Any:
    """Return a channel as Celery opens one with these settings."""
    broker = RedisUrl.parse(url).broker()
    connection = Connection(
        broker["broker_url"],
        ssl=broker.get("broker_use_ssl", False),
        transport_options=broker["broker_transport_options"] | (connection_options or {}),
    )
    return connection.default_channel


async def told_by_all(url: str) -> list[tuple[str, int]]:
    """Return the user and the database that each reader of a URL comes as."""
    with RedisUrl.parse(url).client() as client:
        infos: list[Any] = [client.client_info()]
    async with RedisUrl.parse(url).async_client() as waiting:
        infos.append(await waiting.client_info())
    channel = channel_of(url)
    infos.append(channel.client.client_info())
    channel.connection.client.release()
    return [
        ((info := {_text(k): _text(v) for k, v in found.items()})["user"], int(info["db"]))
        for found in infos
    ]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(
    ("pattern", "user", "db"),
    [
        ("redis://:WORD@PLAIN", "default", 0),
        ("redis://:WORD@PLAIN/3", "default", 3),
        ("redis://ann:WORD@PLAIN/3", "ann", 3),
        ("redis://PLAIN/3?password=WORD", "default", 3),
        ("redis://PLAIN?username=ann&password=WORD&db=2", "ann", 2),
        ("redis://PLAIN?username=ann&password=WORD&virtual_host=2", "ann", 2),
        ("unix://:WORD@SOCKET", "default", 0),
        ("unix://ann:WORD@SOCKET?db=1", "ann", 1),
        ("redis+socket://ann:WORD@SOCKET?virtual_host=1", "ann", 1),
        ("redis+socket://SOCKET?username=ann&password=WORD", "ann", 0),
        ("rediss://ann:WORD@TLS/1?ssl_ca_certs=CA", "ann", 1),
        ("rediss://ann:WORD@TLS/1?ssl_cert_reqs=none", "ann", 1),
        ("rediss://ann:WORD@TLS/1?ssl_cert_reqs=CERT_NONE", "ann", 1),
        ("rediss://ann:WORD@TLS/1?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=CA", "ann", 1),
        ("rediss://ann:WORD@TLS?ssl_ca_certs=CA&ssl_check_hostname=false", "ann", 0),
    ],
)
async def test_all_readers_come_as_the_same_user(
    places: Places, pattern: str, user: str, db: int
) -> None:
    """To the same database, whatever the way and however it is written."""
    assert await told_by_all(places.url(pattern)) == [(user, db)] * 3


def test_a_server_of_an_unknown_authority_is_refused_by_all(places: Places) -> None:
    """Unless the URL says that nobody checks it."""
    url = places.url("rediss://:WORD@TLS")
    with RedisUrl.parse(url).client() as client, pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises((redis.ConnectionError, OperationalError)):
        channel_of(url)


@pytest.mark.parametrize(
    "pattern",
    [
        "redis://:WORD@PLAIN?OPTIONS",
        "unix://:WORD@SOCKET?OPTIONS",
        "rediss://:WORD@TLS?ssl_ca_certs=CA&OPTIONS",
    ],
)
def test_timeouts_of_the_url_are_those_of_all_readers(places: Places, pattern: str) -> None:
    """A broker's connection knows them by the same names."""
    options = "socket_timeout=7&health_check_interval=3"
    url = places.url(pattern.replace("OPTIONS", options))
    with RedisUrl.parse(url).client() as client:
        found = [client.connection_pool.connection_kwargs]
    found.append(channel_of(url, {"socket_timeout": 7}).pool.connection_kwargs)
    for arguments in found:
        assert (arguments["socket_timeout"], arguments["health_check_interval"]) == (7.0, 3.0)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:hunter2/x@host:6379/0", "not percent-encoded"),
        ("redis://:hunter2#x@host:6379/0", "not percent-encoded"),
        ("redis://:hunter2?x@host:6379/0", "not percent-encoded"),
        ("redis://:hunter2?x=1@host:6379/0", "not percent-encoded"),
        ("redis://host:hunter2", "a port from 1 to 65535"),
        ("redis://host:99999", "a port from 1 to 65535"),
        ("redis://:hunter2@", "a host is"),
        ("redis://host/hunter2", "option db is wrong"),
        ("redis://host/-1", "option db is wrong"),
        ("redis://host?socket_timeout=hunter2", "option socket_timeout is wrong"),
        ("redis://host?socket_timeout=1", "option socket_timeout is wrong"),
        ("redis://host?health_check_interval=0", "option health_check_interval is wrong"),
        ("redis://host?hunter2=1", "an unknown option; known are db, username"),
        ("redis://host?ssl_cert_reqs=none", "are for TLS"),
        ("rediss://host?ssl_cert_reqs=hunter2", "option ssl_cert_reqs is wrong"),
        ("rediss://host?ssl_ca_certs=/no/such/hunter2", "option ssl_ca_certs is wrong"),
        ("redis://one,two", "only redis+sentinel://"),
        ("redis://host?master=name", "only redis+sentinel://"),
        ("redis+sentinel://:hunter2@one,two", "such as ?master=mymaster"),
        ("unix://run/redis.sock", "a Unix socket has no host"),
        ("unix://", "a Unix socket has no host"),
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str, said: str) -> None:
    """The message says what is wrong, how to write one, and nothing of what may be a secret."""
    with pytest.raises(SettingsError) as caught:
        RedisUrl.parse(url)
    message = str(caught.value)
    assert message.startswith("POCQUEUE_REDIS_URL cannot be read: ")
    assert said in message
    assert "redis://user:password@host:6379/0" in message
    assert message.endswith(".")
    assert "\n" not in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://ann:WORD@one:1,two,[::1]:3/4?master=m",
        "sentinel://ann:WORD@one:1;sentinel://ann:WORD@two;sentinel://ann:WORD@[::1]:3/4?master_name=m",
    ],
)
def test_sentinels_are_written_in_our_form_or_in_celerys(url: str) -> None:
    """The same comes out for Celery: each sentinel with user, password and database."""
    broker = RedisUrl.parse(url.replace("WORD", ENCODED)).broker()
    login = f"ann:{ENCODED}"
    assert broker["broker_url"].split(";") == [
        f"sentinel://{login}@{place}/4" for place in ("one:1", "two:26379", "[::1]:3")
    ]
    assert broker["broker_transport_options"]["master_name"] == "m"


def test_sentinels_may_want_a_password_and_tls(tmp_path: Path) -> None:
    """Their password is another one; the scheme says TLS for them and for the server."""
    make_certificate(tmp_path)
    broker = RedisUrl.parse(
        f"rediss+sentinel://one/0?master=m&sentinel_username=watch&sentinel_password=word&ssl_ca_certs={tmp_path}/cert.pem"
    ).broker()
    asked = broker["broker_transport_options"]["sentinel_kwargs"]
    assert (asked["username"], asked["password"], asked["ssl"]) == ("watch", "word", True)
    assert (
        asked["ssl_ca_certs"] == broker["broker_use_ssl"]["ssl_ca_certs"] == f"{tmp_path}/cert.pem"
    )


def test_sentinels_that_will_never_name_the_primary_are_said(tmp_path: Path) -> None:
    """Another name, or another password of theirs, is for a person to mend; silence is waited for."""
    with failing_over(tmp_path) as servers:
        with pytest.raises(SettingsError) as caught:
            connect(servers.url.replace(MASTER, "another"), service=True)
        assert f"knows no primary 'another': mend master (it knows {MASTER})" in str(caught.value)
        for name in ("one", "two", "three"):
            with servers.client(name) as sentinel:
                sentinel.execute_command("ACL", "SETUSER", "default", "resetpass", ">word")
        for more in ("", "&sentinel_password=hunter2"):
            with pytest.raises(SettingsError) as caught:
                connect(servers.url + more, service=True)
            assert "mend sentinel_username and sentinel_password" in str(caught.value)
            assert "hunter2" not in str(caught.value)
        connect(f"{servers.url}&sentinel_password=word").close()
        for name in ("one", "two", "three"):
            servers.kill(name)
        connect(servers.url, service=True).close()
        with pytest.raises(StoreUnavailable, match="no sentinel that answers knows"):
            connect(servers.url)


async def test_all_readers_follow_a_failover(tmp_path: Path) -> None:
    """They ask the sentinels, one of which is gone, and come to the new primary by themselves."""
    with failing_over(tmp_path) as servers:
        celerys = servers.url.replace(",", f";sentinel://:{QUOTED}@").replace("redis+", "", 1)
        assert await told_by_all(servers.url) == [("default", 0)] * 3
        assert await told_by_all(celerys) == [("default", 0)] * 3
        with RedisUrl.parse(servers.url).client() as client:
            client.set("key", "value")
            client.wait(1, 0)
        servers.kill("one")
        servers.kill("primary")

        async def follow() -> bool:
            # Until the sentinels agree there is no primary, and a new one closes what is connected.
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, OperationalError):
                with RedisUrl.parse(servers.url).client() as client:
                    found = client.get("key")
                return (found, await told_by_all(servers.url)) == ("value", [("default", 0)] * 3)
            return False

        await until(follow)
