"""What a worker is refused for when it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("queue", ["gpu0", "io"])
def test_autoscale_is_refused_with_a_sentence(queue: str, child_env: dict[str, str]) -> None:
    """Celery would start, and end it with a traceback at the first task: threads cannot be scaled."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "pocqueue",
            "worker",
            "-Q",
            queue,
            "--autoscale=4,1",
        ],
        env=child_env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "pocqueue: --autoscale is 4,1; allowed: no such option." in done.stderr
    assert "Traceback" not in done.stderr
