"""Connections to Redis: which server, and what those that keep something there have in common.

`redis_url` decides which server (`redis_url.py` reads what its URL says); `connect` opens a checked client
(`refusals.py` has what can be wrong with a server). `OnRedis` runs the Lua scripts of `lua/`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import redis
import redis.asyncio
from redis.client import Pipeline

from pocqueue.errors import StoreError, StoreUnavailable
from pocqueue.processes.stack_lock import stack_pid
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.redis_url import RedisUrl
from pocqueue.rounds.refusals import check_eviction, check_version, store_errors
from pocqueue.settings import Settings

logger = logging.getLogger(__name__)


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
        _say_bundled(settings.state_dir)
    elif not server.is_running():
        raise StoreUnavailable(
            f"Nothing runs here: POCQUEUE_REDIS_URL is not set and {settings.state_dir} has no "
            "running Redis. Start everything on this machine with `pocqueue up`, or set "
            "POCQUEUE_REDIS_URL."
        )
    return server.url


@cache
def _say_bundled(state_dir: Path) -> None:
    """Say once in a service that nobody set a URL; to a pool on other hosts it would be lost without a word."""
    if stack_pid(state_dir) is not None:
        return  # `pocqueue up` has said which Redis it runs
    own = f"POCQUEUE_REDIS_URL is not set: this process uses the bundled Redis of {state_dir}, which no other host reaches"
    if "INVOCATION_ID" in os.environ:
        logger.error(
            "%s. If its unit sets one, systemd has dropped the line (see the journal): a %% in `Environment=` "
            "has to be %%%%. Put the variables into a file, and name that with `EnvironmentFile=`.",
            own,
        )
    else:
        logger.warning("%s.", own)


def connect(url: str, *, service: bool = False, timeout_s: float | None = None) -> redis.Redis:
    """Open a client (RESP2, decoded replies) and check that the server will do.

    Args:
        url: as `RedisUrl` reads it.
        service: for a process that runs for long: a server that is away or refuses for now will do, and one
            that may forget rounds will not. Commands only warn of that: they may be to end a round there.
        timeout_s: seconds to wait for a connection or a reply; None: as the URL says, or 5.

    Raises:
        StoreUnavailable, StoreForbidden, StoreUnfit, SettingsError: see the classes.
    """
    waits = ("socket_timeout", "socket_connect_timeout")
    address = RedisUrl.parse(url)
    client = address.client(**({} if timeout_s is None else dict.fromkeys(waits, timeout_s)))
    try:
        check_version(client, url)
        check_eviction(client, url, warn=True, refuse=service)
    except StoreError as exc:
        address.check_sentinels()
        if not (service and isinstance(exc, StoreUnavailable)):
            client.close()
            raise
    return client


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

    def _now_ms(self) -> int:
        """Return the time of Redis's own clock."""
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

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
