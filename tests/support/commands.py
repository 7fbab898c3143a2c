"""The `pocqueue` command as a process, with settings of a test's own alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from pocqueue.cli import app
from pocqueue.cli.output import EXIT_BAD_INPUT
from pocqueue.errors import PocqueueError
from pocqueue.settings import ALL

#: How every variable of ours begins.
PREFIXES = tuple(kind.variable("") for kind in ALL)


def without_settings() -> dict[str, str]:
    """Return the environment without any variable of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}


def pocqueue(state_dir: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command on the CPU; return how it ended and what it wrote."""
    own = {"POCQUEUE_STATE_DIR": str(state_dir), "POCQUEUE_DEVICE": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "pocqueue", *argv],
        env=without_settings() | own | variables,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )


def pocqueue_here(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which has torch already: that takes others seconds.

    For what `pocqueue` in a process of its own has shown to work.
    """
    done = CliRunner().invoke(app, argv, env=env)
    if isinstance(done.exception, PocqueueError):
        said = f"pocqueue: {done.exception}\n"
        return subprocess.CompletedProcess(argv, EXIT_BAD_INPUT, done.stdout, done.stderr + said)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(argv, done.exit_code, done.stdout, done.stderr)
