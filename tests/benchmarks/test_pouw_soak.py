"""The report of `make soak-pouw`: what went wrong is in it, seed by seed."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import describe
from benchmarks.pouw_soak import Run, report


def _said(*, holds: bool) -> dict[str, Any]:
    deed = {
        **{"kind": "cut", "nodes": ["supervisor_001", "supervisor_003"], "cheat": None},
        **{"text": "cut two off", "found": "3 slots nevertheless", "holds": holds},
        "goes_on_s": 1.5,
    }
    return {
        "agreement": {"agree": True, "sentence": "9 nodes agree.", "height": 31, "turn": 250},
        "chaos": {"is_well": holds, "is_done": True, "planned": 1, "deeds": [deed]},
    }


def test_the_report_says_what_was_not_as_it_should_be() -> None:
    """A run that is well, one that is not, one that did not end: each in a line, and what was done by kind."""
    runs = [
        Run(1, 120.0, _said(holds=True), ""),
        Run(2, 130.0, _said(holds=False), ""),
        Run(3, 600.0, {}, "it did not end within 600 s"),
    ]
    assert [run.is_well for run in runs] == [True, False, False]
    page = report(runs, describe(), planned=20)
    assert "3 of 20 seeds were run" in " ".join(page.split())
    assert "1 of these were as they should be" in " ".join(page.split())
    assert "| 1 | yes | 120 s | 31 | 250 | 9 nodes agree. |" in page
    assert (
        "| 2 | NO | 130 s | 31 | 250 | cut two off: 3 slots nevertheless; 9 nodes agree. |" in page
    )
    assert "| 3 | NO | 600 s |  |  | it did not end within 600 s |" in page
    assert "| cut 2 supervisor | 2 | 1 | 1.5 s, 1.5 s |" in page
