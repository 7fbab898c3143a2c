"""The Lua scripts of `lua/`, each run as one atomic step of Redis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from typing import Any

import redis
import redis.asyncio

from pocqueue.rounds.connection import store_errors


class Scripts:
    """All scripts on one client, known by their file names; sent to Redis again when it forgets."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self._client = client
        self._url = url

    def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run `lua/{name}.lua`; return its reply.

        Raises:
            StoreError: Redis is away, full or refuses the script.
        """
        with store_errors(self._url):
            return self._registered[name](keys=keys, args=args)

    def run_many(
        self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """Run one script many times, in order, each an atomic step of its own; return the replies.

        All of it is one round trip. After a failure it is not known which of them ran.

        Args:
            name: of the script.
            calls: keys and arguments of each run.

        Raises:
            StoreError: Redis is away, full or refuses the script.
        """
        script = self._registered[name]
        with store_errors(self._url):
            try:
                return self._pipelined(script.sha, calls)
            except redis.exceptions.NoScriptError:
                # Redis was restarted. None of them ran: they are all the same script.
                self._client.script_load(script.script)
                return self._pipelined(script.sha, calls)

    def _pipelined(
        self, sha: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        # No transaction: a full Redis would refuse it as a whole.
        with self._client.pipeline(transaction=False) as pipe:
            for keys, args in calls:
                pipe.evalsha(sha, len(keys), *keys, *args)
            return pipe.execute()

    @cached_property
    def _registered(self) -> dict[str, Any]:
        return register_scripts(self._client)


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
