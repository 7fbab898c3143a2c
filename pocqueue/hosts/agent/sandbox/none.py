"""No sandbox: nothing of strangers is run, as a process without one sees the owner's files and network."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

from typing_extensions import override

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.sandbox.base import Command, EndedBy, Outcome, Sandbox

_SECONDS = re.compile(r"\d{1,4}(\.\d{1,3})?")


class NoSandbox(Sandbox):
    """Takes the test job of a new node alone, `sleep N`, and waits itself instead of starting a program.

    Args:
        why: there is no sandbox.
    """

    name = "none"
    takes_images = False
    bounds = "nothing"

    def __init__(self, why: str) -> None:
        self.why = why

    @override
    async def run(self, command: Command, stop: asyncio.Event) -> Outcome:
        match command.argv:
            case ("sleep", seconds) if _SECONDS.fullmatch(seconds):
                began_s = time.monotonic()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), min(float(seconds), command.limits.wall_s))
                ended_by: EndedBy = "cancelled" if stop.is_set() else "itself"
                waited_s = time.monotonic() - began_s
                return Outcome(143 if stop.is_set() else 0, ended_by, waited_s, "", 0)
        raise SandboxUnavailable(self.why)

    @override
    def clean(self) -> None:
        """Do nothing: nothing is ever left behind."""
