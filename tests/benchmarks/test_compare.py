"""`benchmarks/compare.py OLD NEW`: ratios of two runs, and a warning where they say nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.stats import Figure, Sample

SCRIPT = Path(compare.__file__)


def result(cpu: str = "EPYC", **medians: float) -> dict[str, Any]:
    """Return a result of `make bench` with these figures, each 10 times its median in value."""
    figures = [
        Figure(name, Sample([median], "ms"), None, "", 10 * median, "reported", True).to_dict()
        for name, median in medians.items()
    ]
    return {"machine": {"cpu": cpu, "cores": 2}, "figures": figures}


def test_each_figure_has_its_ratio() -> None:
    """Of the values and of what was measured; figures of one run only are named."""
    lines = compare.comparison(result(a=2.0, gone=1.0), result(a=3.0, b=1.0)).splitlines()
    [line] = [line for line in lines if line.startswith("a ")]
    assert line.split() == ["a", "20", "30", "1.500", "1.500", "ms"]
    assert "b     only in the new run" in lines
    assert "gone  only in the old run" in lines


def test_other_hardware_is_said_first() -> None:
    """A ratio between two machines is no ratio between two commits."""
    text = compare.comparison(result(a=1.0), result(cpu="Xeon", a=1.0))
    assert text.startswith("cpu differs: EPYC and Xeon\n")


def test_a_figure_of_nothing_has_no_ratio() -> None:
    """Zero before: there is nothing to divide by."""
    assert " - " in compare.comparison(result(a=0.0), result(a=1.0))


def test_it_runs_as_the_script_that_it_is(tmp_path: Path) -> None:
    """With two files, from anywhere."""
    for name in ("old", "new"):
        (tmp_path / name).write_text(json.dumps(result(a=1.0)))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "old", "new"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1.000" in done.stdout


@pytest.mark.parametrize("content", [None, "", "[]", '{"figures": [{}]}', '{"figures": []}'])
def test_another_file_is_refused_in_one_sentence(tmp_path: Path, content: str | None) -> None:
    """Missing, empty, or JSON of something else."""
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"benchmarks.compare: {path} is no result of `make bench`")
    assert "Traceback" not in done.stderr
