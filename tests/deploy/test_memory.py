"""What was read is asked once between two changes, by however many steps."""

from __future__ import annotations

import asyncio

import pytest

from pocqueue.deploy.errors import OutcomeUnknown
from pocqueue.deploy.memory import Memory
from pocqueue.deploy.result import Result
from pocqueue.deploy.words import Command

LS, ID = Command(("ls",)), Command(("id",))


class Asked:
    """Answers with the number of the question, as soon as it may."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.may = asyncio.Event()
        self.may.set()
        self.fails = 0

    async def __call__(self, command: Command) -> Result:
        self.commands.append(command)
        number = len(self.commands)
        await self.may.wait()
        if self.fails:
            self.fails -= 1
            raise OutcomeUnknown(command.shown())
        return Result(0, f"{number}", "")


async def test_several_that_want_it_at_once_share_one_answer() -> None:
    """Each command is asked once; after a change, or where time may have changed it, once more."""
    memory, ask = Memory(), Asked()

    async def look(command: Command, *, anew: bool = False) -> str:
        return (await memory.look(command, ask, anew=anew)).stdout

    ask.may.clear()
    looks = [asyncio.create_task(look(command)) for command in (LS, ID, LS, LS, ID)]
    await asyncio.sleep(0)
    ask.may.set()
    assert await asyncio.gather(*looks) == ["1", "2", "1", "1", "2"]
    assert (await look(LS), await look(LS, anew=True), await look(LS)) == ("1", "3", "3")
    memory.clear()
    assert (await look(ID), await look(LS)) == ("4", "5")


async def test_what_has_no_answer_is_asked_again() -> None:
    """By each of those that wait: one of them is given up, or one connection breaks, and the others are not."""
    memory, ask = Memory(), Asked()
    ask.fails = 1
    ask.may.clear()
    looks = [asyncio.create_task(memory.look(LS, ask, anew=False)) for _ in range(4)]
    await asyncio.sleep(0)
    looks[1].cancel()
    ask.may.set()
    first, given_up, *others = await asyncio.gather(*looks, return_exceptions=True)
    assert isinstance(first, OutcomeUnknown)
    assert isinstance(given_up, asyncio.CancelledError)
    assert {each.stdout for each in others if isinstance(each, Result)} == {"2"}
    ask.fails = 1
    with pytest.raises(OutcomeUnknown):
        await memory.look(ID, ask, anew=False)
    assert (await memory.look(ID, ask, anew=False)).stdout == "4"
