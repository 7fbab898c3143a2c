"""The command in this process, where its own process and that of an engine are not what a test is about."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocqueue.engine.base import OnProgress
from tests.support.commands import pocqueue_here, without_settings

Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """Return a function that runs the command on the CPU; engines are loaded in this process as well."""

    def run_here(_name: str, work: Callable[[OnProgress], Any], on_progress: OnProgress) -> Any:
        return work(on_progress)

    monkeypatch.setattr("pocqueue.measure.child.run_in_child", run_here)
    env = without_settings() | {"POCQUEUE_STATE_DIR": str(tmp_path), "POCQUEUE_DEVICE": "cpu"}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return pocqueue_here(env, *argv)

    return run
