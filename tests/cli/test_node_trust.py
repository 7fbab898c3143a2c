"""`pocqueue node trust`: what it lists, and whom it clears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pocqueue.cli import app
from pocqueue.errors import DelegationError, OutboxError, SettingsError
from pocqueue.node.trust import TRUST_NAME, TrustFile

URL = "http://big.example:9090"


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrustFile:
    """The file of this machine, with a big node in it."""
    monkeypatch.setenv("POCQUEUE_STATE_DIR", str(tmp_path))
    trust = TrustFile(tmp_path / TRUST_NAME)
    trust.add(URL, "session-1", "[bold] 3 of 40 recomputed nonces are invalid")
    return trust


def run(*argv: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(app, ["node", "trust", *argv])


def test_list(trust: TrustFile) -> None:
    """Who, when, in which session, and how; what comes from elsewhere is no markup."""
    shown = run("list")
    assert shown.exit_code == 0
    [_, line] = shown.output.splitlines()
    assert line.startswith(URL)
    assert "session-1" in line
    assert "[bold] 3 of 40 recomputed" in line
    [found] = json.loads(run("list", "--json").output)
    assert (found["url"], found["session_id"]) == (URL, "session-1")


def test_clear(trust: TrustFile) -> None:
    """One that was caught, by any spelling of its URL; or all of them."""
    done = run("clear", "http://other:9090")
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception) == (
        f"url is 'http://other:9090', which was not caught; those that were: {URL}."
    )
    assert run("clear", "HTTP://Big.Example:9090/").output.strip() == f"Trusted again: {URL}."
    assert run("list").output.strip() == "No big node was caught cheating."
    trust.add(URL, "session-2", "again")
    trust.add("http://other", "session-3", "too")
    assert run("clear", "--all").exit_code == 0
    assert trust.read() == []
    for argv in (["clear"], ["clear", URL, "--all"]):
        assert isinstance(run(*argv).exception, SettingsError)


def test_one_entry_a_big_node(trust: TrustFile) -> None:
    """The latest; and a default port is no other big node."""
    trust.add(f"{URL}/", "session-2", "again")
    assert [cheat.session_id for cheat in trust.read()] == ["session-2"]
    trust.add("https://[::1]", "session-3", "too")
    with pytest.raises(DelegationError, match="it cheated"):
        trust.check("https://[::1]:443/")
    trust.check("http://[::1]:443/")


def test_a_file_that_cannot_be_used(trust: TrustFile) -> None:
    """Is no reason to trust anybody."""
    trust.path.write_text('{"mended": "by hand"}')
    with pytest.raises(OutboxError, match="is no list of big nodes"):
        trust.check("http://other:9090")
    assert isinstance(run("list").exception, OutboxError)
    trust.path.unlink()
    trust.path.mkdir()
    with pytest.raises(OutboxError, match="cannot be read"):
        trust.check("http://other:9090")
