"""`make soak-pouw`: the network with nobody in charge, under chaos of twenty seeds, one after the other.

    python -m benchmarks.pouw_soak --seeds 20 --output docs/pouw-soak.md

Each is `pocqueue pouw testnet --chaos` as anybody can run it. The report is written anew after each seed, so a run
that is ended early leaves one of what it had.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

_ROLES = {"supervisors": 4, "miners": 3, "verifiers": 1, "evaluators": 1}
#: A run that takes longer hangs.
_LIMIT_S = 600.0


@dataclass(frozen=True)
class Run:
    """What came of one seed."""

    seed: int
    seconds: float
    said: dict[str, Any]  #: the command's object; empty: it did not get so far
    failure: str  #: what it said instead

    @property
    def is_well(self) -> bool:
        """Say whether the network did everything as it should, and its honest nodes agree."""
        if not self.said:
            return False
        chaos = self.said["chaos"]
        return bool(chaos["is_well"] and chaos["is_done"] and self.said["agreement"]["agree"])

    @property
    def deeds(self) -> list[dict[str, Any]]:
        """Return what was done."""
        return list(self.said["chaos"]["deeds"]) if self.said else []

    @property
    def sentence(self) -> str:
        """Return what is to be said of it in a line."""
        if not self.said:
            return self.failure
        wrong = [
            f"{deed['text']}: {deed['found']}" for deed in self.deeds if deed["holds"] is not True
        ]
        missing = self.said["chaos"]["planned"] - len(self.deeds)
        if missing:
            wrong.append(f"{missing} acts were not begun")
        return "; ".join([*wrong, self.said["agreement"]["sentence"]])


def main() -> None:
    """Parse the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--output", type=Path, default=Path("docs/pouw-soak.md"))
    given = parser.parse_args()
    machine, runs = describe(), list[Run]()
    for seed in range(given.first, given.first + given.seeds):
        runs.append(_run(seed))
        sys.stdout.write(f"seed {seed}: {'well' if runs[-1].is_well else 'NOT WELL'}, {runs[-1].sentence}\n")  # fmt: skip
        sys.stdout.flush()
        given.output.write_text(report(runs, machine, planned=given.seeds))
    if not all(run.is_well for run in runs):
        sys.exit(1)


def report(runs: Sequence[Run], machine: dict[str, Any], *, planned: int) -> str:
    """Return the page of these runs."""
    well = sum(run.is_well for run in runs)
    roles = ", ".join(
        f"{number} {role if number > 1 else role[:-1]}" for role, number in _ROLES.items()
    )
    lines = [
        "# Networks with nobody in charge, under chaos",
        "",
        "`make soak-pouw` runs `pocqueue pouw testnet --chaos` with one seed after the other and leaves with code 1 where a",
        "network did not do what it should; [pouw.md](pouw.md) says what that is. Each network has",
        f"{roles}, all of them processes of one machine.",
        "",
        f"Report of {machine['date'][:10]} ({machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux",
        f"{machine['kernel']}, Python {machine['python']}, commit {str(machine['commit'])[:12]}): {len(runs)} of {planned} seeds were run,",
        f"{well} of these were as they should be.",
        "",
        "| seed | as it should be | lasted | blocks | slots | at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        agreement = run.said.get("agreement", {})
        lines.append(
            f"| {run.seed} | {'yes' if run.is_well else 'NO'} | {run.seconds:.0f} s | {agreement.get('height', '')} "
            f"| {agreement.get('turn', '')} | {run.sentence} |"
        )
    lines += [
        "",
        "| what was done | times | as it should be | all nodes go on after it (median, most) |",
    ]
    lines += ["| --- | --- | --- | --- |"]
    for kind, deeds in sorted(_by_kind(runs).items()):
        waits = [deed["goes_on_s"] for deed in deeds if deed["goes_on_s"] is not None]
        shown = f"{statistics.median(waits):.1f} s, {max(waits):.1f} s" if waits else ""
        right = sum(deed["holds"] is True for deed in deeds)
        lines.append(f"| {kind} | {len(deeds)} | {right} | {shown} |")
    return "\n".join([*lines, ""])


def _by_kind(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        for deed in run.deeds:
            roles = sorted(name.partition("_")[0] for name in deed["nodes"])
            who = ", ".join(f"{roles.count(role)} {role}" for role in sorted({*roles}))
            name = f"cheat: {deed['cheat']}" if deed["cheat"] else f"{deed['kind']} {who}"
            found[name].append(deed)
    return found


def _run(seed: int) -> Run:
    argv = [sys.executable, "-m", "pocqueue", "pouw", "testnet", "--chaos", "--json"]
    argv += ["--seed", str(seed)]
    for role, number in _ROLES.items():
        argv += [f"--{role}", str(number)]
    began = time.monotonic()
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return Run(seed, _LIMIT_S, {}, f"it did not end within {_LIMIT_S:.0f} s")
    seconds = time.monotonic() - began
    try:
        return Run(seed, seconds, json.loads(done.stdout), "")
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return Run(seed, seconds, {}, lines[-1])


if __name__ == "__main__":
    main()
