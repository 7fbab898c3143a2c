"""What commands share to show how something stands."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
from typing_extensions import override

from pocqueue.cli.output import EXIT_INTERRUPTED, interruptible, note_unlike, seconds, show_status
from pocqueue.cli.progress import progress
from pocqueue.errors import NodeError
from pocqueue.settings import Settings
from tests.support.factories import make_info
from tests.support.waiting import wait_until


def looks(*found: dict[str, Any] | BaseException) -> Callable[[], dict[str, Any]]:
    """Find these, one after the other; what can be raised is raised."""
    left: Iterator[dict[str, Any] | BaseException] = iter(found)

    def look() -> dict[str, Any]:
        one = next(left)
        if isinstance(one, BaseException):
            raise one
        return one

    return look


def test_one_look_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON or as what is made of it; what the first look raises comes out."""
    show_status(looks({"a": 1}), lambda found: f"a is {found['a']}", watch=False, as_json=False)
    assert capsys.readouterr().out == "a is 1\n"
    show_status(looks({"a": 1}), str, watch=False, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    with pytest.raises(NodeError):
        show_status(looks(NodeError("It is away.")), str, watch=True, as_json=False)


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_outlasts_an_outage(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    """Whoever watches wants to see it come back; Ctrl-C ends it."""
    look = looks({"a": 1}, NodeError("It is away."), {"a": 2}, KeyboardInterrupt())
    show_status(look, lambda found: f"a is {found['a']}", watch=True, as_json=as_json, every_s=0.0)
    shown = capsys.readouterr().out
    if as_json:
        assert shown.index('"a": 1') < shown.index("It is away.") < shown.index('"a": 2')
    else:
        assert shown == "a is 1\nIt is away.\na is 2\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.44, "0.4 s"),
        (119.4, "119 s"),
        (330, "5 min 30 s"),
        (7199, "119 min 59 s"),
        (18_200, "5 h 03 min"),
        (50 * 3600, "2 days"),
    ],
)
def test_durations_are_read_at_a_glance(value: float, shown: str) -> None:
    """Of what was an hour ago nobody wants the seconds."""
    assert seconds(value) == shown


def test_ctrl_c_ends_a_command_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    """And with a sentence, not a traceback."""
    with pytest.raises(typer.Exit) as caught, interruptible():
        raise KeyboardInterrupt
    assert caught.value.exit_code == EXIT_INTERRUPTED
    assert "Stopped; nothing is left running." in capsys.readouterr().err


class Terminal(io.StringIO):
    """A terminal."""

    @override
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """With what is done, of how much, and the time left; nothing more once it is done."""
    with progress("Sampling", 200, line_s=0) as tell:
        for done in (0, 50, 200):
            tell(done, 200)
    assert re.fullmatch(r"Sampling: 50 of 200, about [\d.]+ s left\n", capsys.readouterr().err)
    with progress("Sampling", 200) as tell:
        tell(50, 200)
    assert capsys.readouterr().err == "", "it has only begun"


@pytest.mark.parametrize("width", ["40", "120"])
def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    """In one line of it, which is gone afterwards."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "xterm")
    with progress("Sampling", 200) as tell:
        tell(50, 200)
        wait_until(lambda: " 25%" in stream.getvalue(), message="the bar")
    assert "left" in stream.getvalue()
    assert stream.getvalue().rstrip("\r").endswith("\x1b[2K")


def test_settings_that_the_pool_does_not_have_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what somebody asked for; a sentence each, with what is used instead."""
    info = make_info(dtype="bfloat16")
    monkeypatch.setenv("POCQUEUE_DTYPE", "auto")
    note_unlike(Settings.load(), info)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("POCQUEUE_DTYPE", "float32")
    monkeypatch.setenv("POCQUEUE_MODEL", info.model)
    note_unlike(Settings.load(), info)
    assert capsys.readouterr().err == (
        "POCQUEUE_DTYPE is float32, but the GPUs that run already have bfloat16, which is used. "
        "End what started them to have it otherwise.\n"
    )
