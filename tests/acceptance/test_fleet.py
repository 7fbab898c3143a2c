"""A handful of simulated GPUs for a few seconds: the benchmark works, and the promises hold in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fleet.__main__ import is_wrong, main, run_fleet
from benchmarks.fleet.report import plot, table
from benchmarks.fleet.rounds import PLANS


def test_nothing_is_lost_nor_twice_while_gpus_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real scheduler, store and Redis; two of five GPUs die and come back."""
    monkeypatch.delenv("POCQUEUE_REDIS_URL", raising=False)
    run = run_fleet(5, 12.0, 0.4)
    assert run["wrong"] == []
    assert (run["lost"], run["twice"], run["foreign"]) == (0, 0, 0)
    assert not is_wrong(run)
    assert run["deaths"] == 2
    assert run["valid"] > 0
    assert run["commits"] > 0
    assert run["checked"] > 9 * run["valid"] > 0.7 * run["checked"]
    report = {"runs": [run]}
    assert "5 GPUs, 50 ms, deaths" in table(report)
    plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_written_after_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a broken promise is code 1."""
    output = tmp_path / "fleet.json"
    seen = []

    def run(gpus: int, _seconds: float, kill_share: float, _fastest_s: float) -> dict[str, object]:
        written = json.loads(output.read_text())["runs"] if output.exists() else []
        seen.append((gpus, kill_share, len(written)))
        return {"gpus": gpus, "lost": gpus == 3, "twice": 0, "foreign": 0, "wrong": []}

    monkeypatch.setattr("benchmarks.fleet.__main__.run_fleet", run)
    monkeypatch.setattr("benchmarks.fleet.__main__.summary", lambda *_: "a line")
    monkeypatch.setattr("benchmarks.fleet.__main__.table", lambda _: "the table")
    arguments = ["fleet", "--gpus", "2,3", "--output", str(output)]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert seen == [(2, 0.0, 0), (3, 0.0, 1), (2, 0.1, 2), (3, 0.1, 3)]
    assert capsys.readouterr().out.endswith("the table\n")


@pytest.mark.long
def test_twenty_rounds_of_which_some_are_alike() -> None:
    """Jain's index needs equals; every way for a round to end is there."""
    assert len(PLANS) == 20
    alike = [plan for plan in PLANS if plan.group.startswith("equal")]
    assert len(alike) == 9
    assert {plan.group for plan in PLANS} >= {"counted", "stopped", "short"}
    assert max(plan.stop or 0.0 for plan in PLANS) == 1.0
    assert all(plan.stop or plan.nonces or plan.start + plan.window <= 1.0 for plan in PLANS)
