"""Connections to Redis: which server, is it good enough, and what its failures mean.

`redis_url` decides which server (`redis_url.py` reads what its URL says); `connect` opens a checked client; `store_errors` turns the
client library's exceptions into ours, each with a sentence for the operator. `OnRedis` is what the
parts that keep something there have in common, the Lua scripts of `lua/` among it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, TypeAlias

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.client import Pipeline

from pocqueue.errors import StoreError, StoreFull, StoreTooOld, StoreUnavailable
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.redis_url import RedisUrl
from pocqueue.settings import Settings

OLDEST_REDIS = (6, 2)

#: What a Redis client raises while the server is away, restarting or loading its data.
UNAVAILABLE = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)


#: What it raises while sentinels have not agreed on a primary yet.
NO_PRIMARY = (redis.sentinel.MasterNotFoundError, redis.asyncio.sentinel.MasterNotFoundError)


def redis_url(settings: Settings, *, start: bool = False) -> str:
    """Return the URL of the Redis server to use.

    Args:
        start: start the bundled server if no URL is set and none runs. Services do that;
            commands that only look do not, so that they leave nothing behind.

    Raises:
        SettingsError: the URL cannot be read.
        StoreUnavailable: no URL is set, no bundled server runs and `start` is False.
        ProcessError: the bundled server could not be started.
    """
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
        RedisUrl.parse(url)
        return url
    server = RedisServer(settings.state_dir)
    if start:
        server.ensure()
    elif not server.is_running():
        raise StoreUnavailable(
            f"Nothing runs here: POCQUEUE_REDIS_URL is not set and {settings.state_dir} has no "
            "running Redis. Start everything on this machine with `pocqueue up`, or set "
            "POCQUEUE_REDIS_URL."
        )
    return server.url


def connect(url: str, *, check: bool = True, timeout_s: float | None = None) -> redis.Redis:
    """Open a client (RESP2, decoded replies) and check that the server will do.

    Args:
        url: as `RedisUrl` reads it.
        check: ask the server for its version now. Services that wait for Redis pass False.
        timeout_s: seconds to wait for a connection or a reply; None: as the URL says, or 5.

    Raises:
        StoreUnavailable, StoreTooOld, SettingsError: see the classes.
    """
    waits = ("socket_timeout", "socket_connect_timeout")
    client = RedisUrl.parse(url).client(
        **({} if timeout_s is None else dict.fromkeys(waits, timeout_s))
    )
    if check:
        with store_errors(url):
            version = str(client.info("server")["redis_version"])
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < OLDEST_REDIS:
            client.close()
            raise StoreTooOld(
                f"Redis at {shown_url(url)} is version {version}; 6.2 or newer is needed. "
                "Upgrade it, or unset POCQUEUE_REDIS_URL to use the bundled one."
            )
    return client


@contextlib.contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Raise our own errors for what Redis or the way to it can do wrong."""
    try:
        yield
    except redis.AuthenticationError:
        raise _forbidden(url) from None
    except UNAVAILABLE as exc:
        raise StoreUnavailable(
            f"Redis at {shown_url(url)} does not answer ({_reason(exc)}): check that it runs and "
            "that POCQUEUE_REDIS_URL is right."
        ) from exc
    except redis.ResponseError as exc:
        message = str(exc)
        # The client takes the code off the errors it knows, OOM and NOPERM among them; scripts keep it.
        if isinstance(exc, redis.OutOfMemoryError) or "OOM" in message or "MISCONF" in message:
            raise StoreFull(
                f"Redis at {shown_url(url)} takes no more writes ({_reason(exc)}): free its memory or "
                "disk or raise maxmemory; running rounds go on when it has room again."
            ) from exc
        forbidden = isinstance(exc, redis.exceptions.NoPermissionError)
        if forbidden or any(code in message for code in ("NOAUTH", "WRONGPASS", "NOPERM")):
            raise _forbidden(url) from None
        raise StoreError(f"Redis at {shown_url(url)} refused a command: {message}") from exc


#: Keys and arguments of one run of a script.
Call: TypeAlias = tuple[Sequence[str], Sequence[Any]]


@dataclass(eq=False, repr=False)
class OnRedis:
    """Something kept in Redis, on one client. Safe to share between threads.

    Whatever asks Redis raises `StoreError` if it is away, full or refuses.
    """

    client: redis.Redis
    url: str  #: of the server, for messages

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return store_errors(self.url)

    @contextlib.contextmanager
    def _pipeline(self) -> Iterator[Pipeline]:
        """Collect commands for one round trip."""
        # No transaction: a full Redis refuses those even if they only read.
        with self._errors(), self.client.pipeline(transaction=False) as pipe:
            yield pipe

    def _each(self, command: str, keys: Sequence[str]) -> list[Any]:
        """Run a command of one key on many, in one round trip; return the replies."""
        with self._pipeline() as pipe:
            for key in keys:
                pipe.execute_command(command, key)  # type: ignore[no-untyped-call]
            return pipe.execute()

    def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run `lua/{name}.lua` as one atomic step; return its reply."""
        with self._errors():
            return self._scripts[name](keys=keys, args=args)

    def _run_many(self, name: str, calls: Sequence[Call]) -> list[Any]:
        """Run one script many times, in order, each an atomic step of its own; return the replies.

        After a failure it is not known which of them ran.
        """
        script = self._scripts[name]
        with self._pipeline() as pipe:
            for keys, args in calls:
                script(keys=keys, args=args, client=pipe)
            return pipe.execute()

    @cached_property
    def _scripts(self) -> dict[str, Any]:
        return register_scripts(self.client)


def register_scripts(client: redis.Redis | redis.asyncio.Redis) -> dict[str, Any]:
    """Return every script by its name, to be called (or awaited) with keys and args on this client."""
    return {name: client.register_script(text) for name, text in read_scripts().items()}


def read_scripts() -> dict[str, str]:
    """Return the text of each script in `lua/`, by its name without the ending."""
    folder = resources.files("pocqueue.rounds") / "lua"
    return {
        file.name.removesuffix(".lua"): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }


def shown_url(url: str) -> str:
    """Return `url` without user and password, for messages and logs."""
    # Cut by hand: a password with a `/` in it would be a part of the path to `urlsplit`.
    scheme, _, rest = url.partition("://")
    place = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return f"{scheme}://{place}"


def _reason(exc: Exception) -> str:
    if isinstance(exc, NO_PRIMARY):
        # Theirs describes every connection to every sentinel.
        return "its sentinels name no primary"
    return str(exc).rstrip(".") or type(exc).__name__


def _forbidden(url: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"Redis at {shown_url(url)} wants another user or password: mend POCQUEUE_REDIS_URL "
        "(redis://user:password@host:6379/0)."
    )
