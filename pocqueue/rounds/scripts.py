"""The Lua scripts of `lua/`, each run as one atomic step of Redis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from typing import Any

import redis

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

    @cached_property
    def _registered(self) -> dict[str, Any]:
        folder = resources.files("pocqueue.rounds") / "lua"
        return {
            file.name.removesuffix(".lua"): self._client.register_script(file.read_text("utf-8"))
            for file in folder.iterdir()
            if file.name.endswith(".lua")
        }
