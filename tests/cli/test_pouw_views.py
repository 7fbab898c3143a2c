"""What others have called things is shown as it is: nothing of it is markup."""

from __future__ import annotations

from typing import Any

import pytest

from pocqueue.cli import pouw, pouw_security

_NAME = "x [/b] [red]"


def _says(monkeypatch: pytest.MonkeyPatch, module: Any, answer: Any) -> None:
    """Have a node answer so."""
    monkeypatch.setattr(module, "ask", lambda *_args, **_more: answer)
    monkeypatch.setenv("COLUMNS", "160")


def test_tasks_of_any_name_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With brackets as they are."""
    task = {
        **{"id": "ab" * 32, "name": _NAME, "data": "digits", "reward": 50.0},
        **{"slots": 3, "accuracy": None, "state": "waiting"},
    }
    _says(monkeypatch, pouw, [task])
    pouw.tasks()
    assert _NAME in capsys.readouterr().out


def test_a_block_of_a_task_of_any_name_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name stands among what was checked."""
    block = {
        **{"height": 3, "id": "ab" * 32, "parent": "cd" * 32, "time": "now", "miner": "02" * 33},
        **{"lane": 0, "proof": f"trained: {_NAME}", "transactions": [], "is_final": True},
        "checks": [{"rule": "task", "holds": True, "what": f"'{_NAME}' of a client."}],
    }
    _says(monkeypatch, pouw, block)
    pouw.block(3)
    assert f"'{_NAME}' of a client." in capsys.readouterr().out


def test_alerts_about_anything_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was noticed quotes what others sent."""
    alert = {
        **{"type": "invalid_block", "source_peer": "02" * 33, "detail": f"task {_NAME}"},
        **{"height": 3, "slot": 9, "time": "2026-11-30T05:00:00+00:00", "evidence": ""},
    }
    _says(monkeypatch, pouw_security, {"threat_level": "LOW", "alerts": [alert]})
    pouw_security.alerts()
    assert f"task {_NAME}" in capsys.readouterr().out
