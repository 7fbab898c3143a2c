"""What the parts that keep something in Redis have in common: one client, its errors, and the Lua scripts of `lua/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from importlib import resources
from typing import Any, TypeAlias

import redis
import redis.asyncio
from redis.client import Pipeline

from pocqueue.rounds.connection import store_errors

#: Keys and arguments of one run of a script.
Call: TypeAlias = tuple[Sequence[str], Sequence[Any]]


class OnRedis:
    """Something kept in Redis, on one client. Safe to share between threads.

    Whatever asks Redis raises `StoreError` if it is away, full or refuses.

    Args:
        client: of the server.
        url: its address, for messages.
    """

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client = client
        self.url = url

    def _errors(self) -> AbstractContextManager[None]:
        return store_errors(self.url)

    @contextmanager
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
