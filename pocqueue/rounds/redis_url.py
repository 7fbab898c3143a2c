"""The URL of a Redis, read in one place for all of its readers: our own clients, Celery's broker, Flower.

    redis://USER:PASSWORD@HOST:6379/0                                    rediss:// with TLS
    unix://USER:PASSWORD@/PATH/redis.sock?db=0                           or Celery's redis+socket://
    redis+sentinel://USER:PASSWORD@HOST:26379,HOST2:26379/0?master=NAME  rediss+sentinel:// with TLS,
                                                                         or Celery's sentinel://…;sentinel://…

An option behind the `?` has one name here, whatever its readers call it: it works for all of them, or it is
refused for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import parse_qsl, quote, unquote

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.sentinel
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    ValidationError,
)
from redis.backoff import NoBackoff
from redis.retry import Retry
from typing_extensions import override

from pocqueue.errors import SettingsError

#: Seconds to wait for a connection or a reply.
TIMEOUT_S = 5.0
#: The same for a sentinel, beside which there are others to ask.
SENTINEL_TIMEOUT_S = 1.0
#: One immediate retry takes care of a connection that the server closed while idle. Whoever wants to wait
#: for Redis does so in a loop of its own, where it can be told to stop.
_RETRIES = 1
_SOCKETS = {"unix", "redis+socket"}
_SENTINELS = {"redis+sentinel", "rediss+sentinel", "sentinel"}

_Checks = Annotated[
    Literal["required", "optional", "none"],
    BeforeValidator(lambda text: str(text).lower().removeprefix("cert_")),
]


class _Options(BaseModel):
    """What may stand behind the `?`, by redis-py's names; kombu has the same for timeouts and TLS."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    db: int = Field(default=0, ge=0, validation_alias=AliasChoices("db", "virtual_host"))
    username: str | None = None
    password: str | None = None
    # Some requests wait in Redis for two seconds.
    socket_timeout: float = Field(default=TIMEOUT_S, ge=3, le=3600)
    socket_connect_timeout: float = Field(default=TIMEOUT_S, ge=0.1, le=3600)
    # None unless asked for: a server with a full disk refuses the PING of it, and would then not be read either.
    health_check_interval: float = Field(default=0, ge=1, le=3600)
    ssl_cert_reqs: _Checks = "required"
    ssl_check_hostname: bool = True
    ssl_ca_certs: FilePath | None = None
    ssl_certfile: FilePath | None = None
    ssl_keyfile: FilePath | None = None
    #: What the sentinels call the primary; Celery's name for it is the other.
    master: str = Field(default="", validation_alias=AliasChoices("master", "master_name"))
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def some(self, prefix: str) -> dict[str, Any]:
        """Return those that were given and begin so."""
        given = self.model_dump(mode="json", include=self.model_fields_set, exclude_none=True)
        return {name: value for name, value in given.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class RedisUrl:
    """Where a Redis is and how to connect to it."""

    scheme: str
    #: Host and port of the server, or of each sentinel; none for a Unix socket.
    nodes: tuple[tuple[str, int], ...]
    path: str  #: of the Unix socket
    options: _Options = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            SettingsError: it cannot be read; says why, and nothing of what may be a secret.
        """
        try:
            return cls._parse(url)
        except ValidationError as exc:
            problem = exc.errors()[0]
            name = str(problem["loc"][0])
            # The name of an unknown option may be a part of a password with a `?` in it.
            known = ", ".join(_Options.model_fields)
            reason = f"its option {name} is wrong ({problem['msg']})"
            if problem["type"] == "extra_forbidden":
                reason = f"it has an unknown option; known are {known}"
        except ValueError as exc:
            reason = str(exc)
        raise SettingsError(
            f"POCQUEUE_REDIS_URL cannot be read: {reason}. Write redis://user:password@host:6379/0, with "
            "special characters of user and password percent-encoded (/ is %2F, @ is %40, % is %25)."
        )

    @classmethod
    def _parse(cls, url: str) -> Self:
        scheme, _, rest = url.partition("://")
        # Cut by hand: to `urlsplit` a password ends at its first `/`, `?` or `#`.
        rest, _, query = rest.partition("?")
        # Celery repeats scheme, user and password for each sentinel.
        first, *others = rest.split(";sentinel://")
        authority, _, path = first.partition("/")
        login, _, hosts = authority.rpartition("@")
        for other in others:
            more, _, path = other.rpartition("@")[2].partition("/")
            hosts += f",{more}"
        if any(mark in part for mark in "@#" for part in (path, query)) or "#" in authority:
            raise ValueError("user or password has a character that is not percent-encoded")
        given = dict(parse_qsl(query, keep_blank_values=True))
        username, _, password = login.partition(":")
        given |= {k: unquote(v) for k, v in (("username", username), ("password", password)) if v}
        if scheme not in _SOCKETS and path.strip("/"):
            given["db"] = path.strip("/")
        options = _Options.model_validate(given)
        if not scheme.startswith("rediss") and options.some("ssl_"):
            raise ValueError(
                "its ssl_ options are for TLS, and its scheme has to be so too (rediss)"
            )
        if scheme in _SENTINELS and not options.master:
            raise ValueError(
                "it has to say what the sentinels call the primary, such as ?master=mymaster"
            )
        if scheme not in _SENTINELS and (
            "," in hosts or options.master or options.some("sentinel_")
        ):
            raise ValueError("only redis+sentinel:// has several hosts and options for sentinels")
        if scheme in _SOCKETS:
            if hosts or not path:
                raise ValueError("a Unix socket has no host, and a path that begins with /")
            return cls(scheme, (), f"/{unquote(path)}", options)
        port = 26379 if scheme in _SENTINELS else 6379
        return cls(scheme, tuple(_node(host, port) for host in hosts.split(",")), "", options)

    @property
    def has_sentinels(self) -> bool:
        """Whether sentinels have to be asked which server is the primary."""
        return self.scheme in _SENTINELS

    @property
    def _tls(self) -> dict[str, Any]:
        """What TLS needs; empty without it."""
        if not self.scheme.startswith("rediss"):
            return {}
        return {"ssl_cert_reqs": self.options.ssl_cert_reqs, **self.options.some("ssl_")}

    @property
    def _sentinel_options(self) -> dict[str, Any]:
        """How to connect to the sentinels themselves."""
        login = self.options.some("sentinel_")
        return {
            **{name.removeprefix("sentinel_"): value for name, value in login.items()},
            **({"ssl": True, **self._tls} if self._tls else {}),
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        }

    def client(self, **more: Any) -> redis.Redis:
        """Return a client (RESP2, decoded replies); nothing is connected yet.

        Args:
            more: arguments of redis-py that go before those of the URL.
        """
        client: redis.Redis = self._client(_SYNC, more)
        return client

    def async_client(self, **more: Any) -> redis.asyncio.Redis:
        """Return a client for an event loop; see `client`."""
        client: redis.asyncio.Redis = self._client(_ASYNC, more)
        return client

    def _client(self, kit: _Kit, more: dict[str, Any]) -> Any:
        options = self.options
        arguments = {
            "decode_responses": True,
            "protocol": 2,
            "username": options.username,
            "password": options.password,
            "db": options.db,
            "socket_timeout": options.socket_timeout,
            "socket_connect_timeout": options.socket_connect_timeout,
            "health_check_interval": options.health_check_interval,
            "retry": kit.retry(NoBackoff(), _RETRIES),
        } | more
        if self.path:
            return kit.client(unix_socket_path=self.path, **arguments)
        arguments |= {"ssl": bool(self._tls), **self._tls}
        if not self.has_sentinels:
            [(host, port)] = self.nodes
            return kit.client(host=host, port=port, **arguments)
        # There are others to ask, so none of them is asked twice.
        asked = {**self._sentinel_options, "retry": kit.retry(NoBackoff(), 0)}
        sentinels = kit.sentinel(self.nodes, sentinel_kwargs=asked)
        return sentinels.master_for(options.master, kit.client, kit.pool, **arguments)

    def check_sentinels(self) -> None:
        """Ask the sentinels, if there are any, whether they could ever name the primary.

        Raises:
            SettingsError: those that answer know no primary of that name, or refuse user and password.
        """
        problems = []
        for host, port in self.nodes if self.has_sentinels else ():
            never = Retry(NoBackoff(), 0)
            client = redis.Redis(host=host, port=port, retry=never, **self._sentinel_options)
            try:
                with client as sentinel:
                    found: Any = sentinel.sentinel_masters()
            except (redis.AuthenticationError, redis.ResponseError):
                reason = (
                    "wants another user or password: mend sentinel_username and sentinel_password"
                )
            except (redis.ConnectionError, redis.TimeoutError):
                continue
            else:
                if self.options.master in found:
                    return
                names = ", ".join(sorted(found)) or "none at all"
                reason = f"knows no primary {self.options.master!r}: mend master (it knows {names})"
            problems.append(f"The sentinel at {host}:{port} {reason} in POCQUEUE_REDIS_URL.")
        if problems:
            raise SettingsError(problems[0])

    def broker(self) -> dict[str, Any]:
        """Return Celery's settings for a broker on this Redis: its URL, TLS and transport options."""
        options = self.options
        login = ""
        if options.username or options.password:
            login = f"{quote(options.username or '', '')}:{quote(options.password or '', '')}@"
        if self.path:
            url = f"redis+socket://{login}{quote(self.path)}?virtual_host={options.db}"
        else:
            scheme = "sentinel" if self.has_sentinels else self.scheme
            places = (f"{f'[{h}]' if ':' in h else h}:{port}" for h, port in self.nodes)
            url = ";".join(f"{scheme}://{login}{place}/{options.db}" for place in places)
        transport = options.some("socket_") | options.some("health_")
        if self.has_sentinels:
            transport |= {"master_name": options.master, "sentinel_kwargs": self._sentinel_options}
        tls = {"broker_use_ssl": self._tls} if self._tls else {}
        return {"broker_url": url, "broker_transport_options": transport, **tls}


class _AsyncPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """Closes its connections to the sentinels as well, which redis-py leaves to its caller."""

    @override
    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


class _Kit(NamedTuple):
    """Classes of redis-py that have a twin for asyncio."""

    client: Any
    retry: Any
    sentinel: Any
    pool: Any


_SYNC = _Kit(redis.Redis, Retry, redis.sentinel.Sentinel, redis.sentinel.SentinelConnectionPool)
_ASYNC = _Kit(
    redis.asyncio.Redis,
    redis.asyncio.retry.Retry,
    redis.asyncio.sentinel.Sentinel,
    _AsyncPool,
)


def _node(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port; an IPv6 address stands in brackets."""
    host, _, port = text.rpartition(":") if text.rpartition("]")[2].count(":") else (text, "", "")
    host = host.strip("[]")
    if not host or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise ValueError(
            "a host is a name or an address, with a port from 1 to 65535 behind it or none"
        )
    return host, int(port or default_port)
