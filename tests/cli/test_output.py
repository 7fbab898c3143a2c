"""What commands share to show how something stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from pocqueue.cli.output import EXIT_INTERRUPTED, interruptible, show_status
from pocqueue.errors import NodeError


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


def test_ctrl_c_ends_a_command_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    """And with a sentence, not a traceback."""
    with pytest.raises(typer.Exit) as caught, interruptible():
        raise KeyboardInterrupt
    assert caught.value.exit_code == EXIT_INTERRUPTED
    assert "Stopped; nothing is left running." in capsys.readouterr().err
