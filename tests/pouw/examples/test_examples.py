"""The examples of the node's documentation, as they stand there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_DOCUMENT = Path(__file__).parents[2] / "data" / "pouw_node.md"
# A network of its own, so that ports 8000 to 8010 are free and names lead nowhere.
_UNSHARED = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
_LOOPBACK_UP = """
import fcntl, socket, struct, sys, runpy
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket() as sock:
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
sys.argv = sys.argv[1:]
runpy.run_module("tests.pouw.examples.run", run_name="__main__")
"""


def test_every_example_does_what_it_says() -> None:
    """Basic miner, supervisor, client, test network, security, production, health loop, tuning."""
    if shutil.which("unshare") is None or subprocess.run([*_UNSHARED, "true"]).returncode:
        if os.environ.get("CI"):
            pytest.fail("a network namespace cannot be made here, which this test runs in")
        pytest.skip("a network namespace cannot be made here (unshare --net)")
    done = subprocess.run(
        [*_UNSHARED, sys.executable, "-c", _LOOPBACK_UP, "run", str(_DOCUMENT)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["network"]["last"] > seen["network"]["first"]
    assert seen["supervisor"]
    assert seen["miner"] == {"mining": True, "tuned": True, "threshold": 0.25}
    assert seen["client"] == ["image_classification_001"]
    assert seen["production"]
    # The names of the documentation lead nowhere; a node says so and goes on.
    assert "Failed to connect to peer supervisor_002.pouw.network:8002" in done.stderr
