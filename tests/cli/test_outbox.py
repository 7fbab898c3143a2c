"""`pocqueue node outbox`: what is listed, sent again and removed, beside a node or without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pocqueue.cli import app
from pocqueue.errors import OutboxError
from pocqueue.node.messages import NewMessage
from pocqueue.node.outbox import OUTBOX_NAME, Outbox


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["node", "outbox", *arguments])


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder."""
    monkeypatch.setenv("POCQUEUE_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def node(state_dir: Path) -> Iterator[Outbox]:
    """The outbox of a node that runs: one message refused, one held, one in vain, one not tried."""
    with Outbox(state_dir / OUTBOX_NAME) as outbox:
        for session_id, names in (("s", "abc"), ("cheat", "x")):
            outbox.open_session(session_id, "delegation", "{}")
            url = "http://chain:1/secret"
            new = [NewMessage(name, "generated", url, {"n": name}, range(5)) for name in names]
            outbox.accept(session_id, "", "1", new)
        outbox.hold("cheat")
        outbox.refused(1, "HTTP 404, nothing is there")
        outbox.failed(2, "no answer", 0.0)
        yield outbox


def states(node: Outbox) -> dict[int, str]:
    return {one["id"]: one["state"] for one in node.listed()}


def test_list(node: Outbox) -> None:
    """What wants somebody's attention, with its reason, and no secrets."""
    shown = run("list")
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["1", "refused"],
        ["2", "waiting"],
        ["4", "held"],
    ]
    assert "http://chain:1" in lines[1]
    assert "HTTP 404, nothing is there" in lines[1]
    assert lines[-1] == "3 of 4 messages in the outbox."
    assert "secret" not in shown.output
    found = json.loads(run("list", "--all", "--json").output)
    assert [one["id"] for one in found] == [1, 2, 3, 4]
    assert (found[0]["nonces"], found[0]["attempts"]) == (5, 1)


def test_resend(node: Outbox) -> None:
    """What was refused; an id that was not is named."""
    with pytest.raises(OutboxError, match="Message 4 is held"):
        raise run("resend", "1", "4").exception or AssertionError
    assert run("resend").output == "To be sent again: 1 message.\n"
    assert states(node) == {1: "waiting", 2: "waiting", 3: "waiting", 4: "held"}


def test_drop(node: Outbox) -> None:
    """Only what is named."""
    assert run("drop").exit_code == 2
    assert run("drop", "--all", "1").exit_code == 2
    assert isinstance(run("drop", "99").exception, OutboxError)
    assert states(node) == {1: "refused", 2: "waiting", 3: "waiting", 4: "held"}
    assert run("drop", "2").exit_code == 0
    assert run("drop", "--all").output == "Removed: 2 messages.\n"
    assert states(node) == {3: "waiting"}


def test_no_outbox(state_dir: Path) -> None:
    """There is nothing in it, and none is made."""
    assert run("list").output == "0 of 0 messages in the outbox.\n"
    assert json.loads(run("list", "--json").output) == []
    assert run("resend").exit_code == run("drop", "--all").exit_code == 0
    assert list(state_dir.iterdir()) == []
