"""`pocqueue scheduler` as a process: its metrics, and what it says where it cannot serve them."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.support.waiting import wait_for_line

COMMAND = [sys.executable, "-m", "pocqueue", "scheduler"]


def test_metrics_are_served_where_a_port_is_set(child_env: dict[str, str], tmp_path: Path) -> None:
    """On loopback unless told otherwise; the option stands for the variable."""
    log = tmp_path / "scheduler.log"
    with (
        log.open("wb") as out,
        subprocess.Popen([*COMMAND, "--metrics-port", "0"], env=child_env, stderr=out) as process,
    ):
        try:
            found = wait_for_line(log, r"Metrics: (http://127\.0\.0\.1:\d+/metrics)")
            with urllib.request.urlopen(found[1], timeout=60) as answer:  # noqa: S310 - loopback
                page = answer.read().decode()
            assert "\npocqueue_up 1.0\n" in page
            assert "\nprocess_cpu_seconds_total " in page
        finally:
            process.terminate()
            assert process.wait(timeout=120) == 0


def test_a_taken_port_ends_it_with_a_sentence(child_env: dict[str, str]) -> None:
    """Exit code 2, as it cannot run the way it is set up."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = child_env | {"POCQUEUE_METRICS_PORT": str(port)}
        done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"Metrics cannot be served on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
