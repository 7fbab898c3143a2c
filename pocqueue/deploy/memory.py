"""What was read of a server since the last change to it: each thing is asked once, however many steps want to know it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from pocqueue.deploy.result import Result
from pocqueue.deploy.words import Command


class Memory:
    """Answers of commands that change nothing."""

    def __init__(self) -> None:
        self._answers: dict[Command, Result] = {}
        self._asked = defaultdict[Command, asyncio.Lock](asyncio.Lock)

    async def look(
        self, command: Command, ask: Callable[[Command], Awaitable[Result]], *, anew: bool
    ) -> Result:
        """Return a command's answer; of several that want it at once one asks, and the others wait for that.

        Args:
            command: changes nothing.
            ask: has it run.
            anew: time alone may have changed its answer.
        """
        async with self._asked[command]:
            if anew or command not in self._answers:
                self._answers[command] = await ask(command)
            return self._answers[command]

    def clear(self) -> None:
        """Know nothing, as something was or may have been changed."""
        self._answers.clear()
