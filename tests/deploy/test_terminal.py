"""Questions on a real terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import termios
from collections.abc import Iterator

import pytest

from pocqueue.deploy.terminal import ask
from tests.support.waiting import until


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where a person types; standard input is the other end."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield master
    os.close(master)


def is_shown(person: int) -> bool:
    """Say whether the terminal shows what is typed."""
    return bool(termios.tcgetattr(person)[3] & termios.ECHO)


async def test_others_go_on_while_a_question_stands(person: int) -> None:
    """One line is an answer; what is typed ahead is for the next question."""
    answer = asyncio.create_task(ask("really? "))
    await asyncio.sleep(0)
    assert not answer.done()
    os.write(person, "jä b\nnext\n".encode())
    assert await answer == "jä b"
    assert await ask("and? ") == "next"
    os.write(person, b"\x04")
    assert await ask("end? ") == ""


async def test_a_password_is_not_shown(person: int) -> None:
    """And the terminal is as before when Ctrl-C ends the question."""
    answer = asyncio.create_task(ask("password: ", is_hidden=True))
    await until(lambda: not is_shown(person))
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert is_shown(person)
    answer = asyncio.create_task(ask("password: ", is_hidden=True))
    await until(lambda: not is_shown(person))
    os.write(person, b"secret one\n")
    assert await answer == "secret one"
    assert is_shown(person)
