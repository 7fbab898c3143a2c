"""The `pocqueue` command as a process, with settings of a test's own alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
        timeout=500,
        check=False,
    )
