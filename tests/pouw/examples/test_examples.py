"""The examples of the node's documentation and of our own, as they stand there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[3]
# A network of its own, so that ports 8000 to 8010 are free and names lead nowhere.
_UNSHARED = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
_LOOPBACK_UP = """
import fcntl, socket, struct, sys, runpy
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket() as sock:
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def _seen(module: str, document: str) -> tuple[dict[str, Any], str]:
    """Run a document's programs; return what was seen, and their log."""
    if shutil.which("unshare") is None or subprocess.run([*_UNSHARED, "true"]).returncode:
        if os.environ.get("CI"):
            pytest.fail("a network namespace cannot be made here, which this test runs in")
        pytest.skip("a network namespace cannot be made here (unshare --net)")
    done = subprocess.run(
        [*_UNSHARED, sys.executable, "-c", _LOOPBACK_UP, module, document],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_every_example_does_what_it_says() -> None:
    """Basic miner, supervisor, client, test network, security, production, health loop, tuning."""
    seen, log = _seen("tests.pouw.examples.run", "tests/data/pouw_node.md")
    assert seen["network"]["last"] > seen["network"]["first"]
    assert seen["supervisor"]
    assert seen["miner"] == {"mining": True, "tuned": True, "threshold": 0.25}
    assert seen["client"] == ["image_classification_001"]
    assert seen["production"]
    # The names of the documentation lead nowhere; a node says so and goes on.
    assert "Failed to connect to peer supervisor_002.pouw.network:8002" in log


@pytest.mark.long
def test_our_own_programs_do_what_they_say() -> None:
    """A network until a block was trained, files of data, a private task, a client's order, a node that is watched over."""
    seen, _log = _seen("tests.pouw.examples.run_own", "docs/pouw.md")
    assert seen["num"] == 5
    assert seen["sizes"] == [1000, 100, 20]
    assert seen["private laps"] == 40
    [*tickets, height, ordered, escrow] = seen["said"]
    assert [line.partition(" ")[0] for line in tickets] == ["supervisor", "miner"]
    assert height.endswith("of them trained")
    assert (ordered, escrow) == ("ordered", "in escrow")
    assert seen["alerts"] == ["isolated at height 1: a try"]
