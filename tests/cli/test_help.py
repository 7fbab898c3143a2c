"""`--help`: what it lists is there to its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pocqueue.cli import app
from pocqueue.errors import InvalidRound


def groups(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that has commands of its own."""
    commands = getattr(command, "commands", None)
    if commands is None:
        return
    yield path
    for name, one in commands.items():
        yield from groups(one, (*path, name))


@pytest.mark.parametrize("path", [*groups(typer.main.get_command(app))], ids=" ".join)
def test_no_line_of_a_list_of_commands_is_cut(path: tuple[str, ...]) -> None:
    """A sentence that is too long for the list ends in dots, mostly where it says something."""
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"}).output
    listed = shown.partition("Commands:\n")[2].splitlines()
    assert listed
    assert [line for line in listed if line.endswith("...")] == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["demo", "--window", "0"], "--window is 0.0; allowed: seconds"),
        (["demo", "--valid-rate", "1"], "--valid-rate is 1.0; allowed: a share"),
        (["calibrate", "--samples", "0"], "--samples is 0; allowed: a whole number"),
    ],
)
def test_options_are_named_as_they_were_written(argv: list[str], said: str) -> None:
    """Before anything is started."""
    done = CliRunner().invoke(app, argv)
    assert isinstance(done.exception, InvalidRound)
    assert str(done.exception).startswith(said)
