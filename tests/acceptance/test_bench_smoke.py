"""The benchmarks work: a little of each, less than a minute on a quiet machine, no figure is looked at."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import QUICK

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(3600)
@pytest.mark.long
def test_a_smoke_run_gives_every_figure(tmp_path: Path) -> None:
    """Real processes end to end; the result says that it is no measurement."""
    output = tmp_path / "smoke.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--smoke", "--output", str(output)],
        cwd=ROOT,
        env=os.environ | QUICK,
        capture_output=True,
        text=True,
        check=False,
        timeout=3500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads(output.read_text())
    assert content["smoke"] is True
    assert content["machine"]["packages"]["torch"]
    names = [figure["name"] for figure in content["figures"]]
    assert len(set(names)) == len(names)
    for part in (
        "--help",
        "permutation",
        "forward pass",
        "re-executed",
        "through the trainer",
        "queue",
        "gap",
        "commit",
        "first valid",
        "artifact",
        "dial to link",
        "question to answer",
        "hosts: memory",
        "hosts: heartbeat",
        "hosts: job submitted",
        "a transaction of",
        "a block of",
        "a slot",
        "verified by all",
        "page",
        "gateway killed",
    ):
        assert any(part.lower() in name.lower() for name in names), part
    for figure in content["figures"]:
        assert math.isfinite(figure["value"]), figure
        assert figure["value"] > 0, figure
        assert figure["name"] in done.stdout
