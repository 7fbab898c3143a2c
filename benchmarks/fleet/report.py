"""The figures of a fleet's run: computed, as a Markdown table, and as a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fleet.ledger import Books, overlap_s
from benchmarks.fleet.rounds import PLANS
from benchmarks.fleet.watch import Watch
from pocqueue.rounds.records import RoundStatus

Run = dict[str, Any]

#: Rows of the table: name, the figure of a run, what it has to be at 200 GPUs.
ROWS: tuple[tuple[str, Callable[[Run], str], str], ...] = (
    ("GPU time lost waiting", lambda r: f"{r['lost_percent']:.2f} %", "≤ 1 %"),
    ("of it for work / for commits", lambda r: f"{r['no_work_percent']:.2f} / {r['on_commit_percent']:.2f} %", ""),
    ("GPU time for batches that did not count", lambda r: f"{r['dropped_percent']:.2f} %", ""),
    ("Jain's index, GPU time (least of the groups)", lambda r: f"{r['jain_gpu_time']:.4f}", "≥ 0.99"),
    ("Jain's index, nonces", lambda r: f"{r['jain_nonces']:.4f}", ""),
    ("commits a second, of what all these GPUs can do", lambda r: f"{r['commits_per_s']:,.0f} of {r['commits_per_s_at_best']:,.0f}", ""),
    ("ranges a second", lambda r: f"{r['ranges_per_s']:,.0f}", ""),
    ("scheduler, CPU of a core", lambda r: f"{r['cpu']['scheduler']:.1f} %", "≤ 20 %"),
    ("Redis, CPU of a core", lambda r: f"{r['cpu']['redis']:.1f} %", "≤ 50 %"),
    ("Redis, memory at most", lambda r: f"{r['redis_memory_mib']:.0f} MiB", "≤ 500 MB"),
    ("commit, median / p99", lambda r: f"{r['commit_ms']['median']:.2f} / {r['commit_ms']['p99']:.1f} ms", ""),
    ("last stop to idle", lambda r: f"{r['to_idle_s']:.2f} s", ""),
    ("ranges given again", lambda r: f"{r['ranges_returned']:,} of {r['ranges_made']:,}", ""),
    ("GPUs that died", lambda r: f"{r['deaths']}", ""),
    ("valid nonces: lost, twice, foreign", lambda r: f"{r['lost']}, {r['twice']}, {r['foreign']} of {r['valid']:,}", "0"),
    ("contradictions in the books", lambda r: f"{len(r['wrong'])}", "0"),
    ("simulator, CPU of a core", lambda r: f"{r['cpu']['simulator']:.0f} %", ""),
    ("all cores of the machine", lambda r: f"{r['machine_cpu']:.0f} %", ""),
    ("simulator late, median / p99", lambda r: f"{r['late_ms']['median']:.2f} / {r['late_ms']['p99']:.1f} ms", ""),
)  # fmt: skip


def jain_index(values: list[float]) -> float:
    """Return Jain's index of fairness: 1 if all are equal, 1/n if one has all.

    R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness, DEC-TR-301, 1984.
    """
    return float(sum(values) ** 2 / (len(values) * sum(value * value for value in values)))


def figures(books: Books, watch: Watch, rounds: dict[int, RoundStatus], last_stop: float) -> Run:
    """Return what is measured in a run, from the ledger, the watch and the rounds at its end."""
    periods = active_periods(list(rounds.values()))
    active_s = sum(stop - start for start, stop in periods)
    busy_s = sum(books.spent_s.values())
    no_work_s = overlap_s(books.no_work, periods)
    on_commit_s = overlap_s(books.on_commit, periods)
    commits = sum(len(batches) for batches in books.committed.values())
    ranges = sum(status.ranges_made for status in rounds.values())
    groups: dict[str, list[int]] = {}
    for number, plan in enumerate(PLANS):
        if plan.group.startswith("equal"):
            groups.setdefault(plan.group, []).append(number)
    spent = [[books.spent_s.get(rounds[n].round_id, 0.0) for n in g] for g in groups.values()]
    checked = [[float(rounds[n].checked) for n in group] for group in groups.values()]
    # On the clocks of the GPUs, which fall behind if the simulator does not keep up.
    gpu_s = busy_s + no_work_s + on_commit_s
    return {
        "active_s": round(active_s, 2),
        "lost_percent": 100 * (no_work_s + on_commit_s) / gpu_s,
        "no_work_percent": 100 * no_work_s / gpu_s,
        "on_commit_percent": 100 * on_commit_s / gpu_s,
        "dropped_percent": 100 * sum(books.dropped_s.values()) / gpu_s,
        "jain_gpu_time": min(map(jain_index, spent)),
        "jain_nonces": min(map(jain_index, checked)),
        "commits": commits,
        "commits_per_s": commits / active_s,
        "ranges_per_s": ranges / active_s,
        "cpu": {name: float(np.mean(values)) for name, values in watch.cpu.items()},
        "machine_cpu": float(np.mean(watch.machine_cpu[1:] or [0.0])),
        "cpu_p95": {name: float(np.percentile(v, 95)) for name, v in watch.cpu.items()},
        "redis_memory_mib": max(watch.memory["redis"]),
        "redis_used_mib": max(watch.redis_used),
        "connections": watch.connections,
        "ping_ms": _spread(np.array(watch.ping_s)),
        "commit_ms": _spread(books.commit_s),
        "late_ms": _spread(books.late_s),
        "to_idle_s": max(0.0, books.last_ack - last_stop),
        "deaths": books.deaths,
        "tasks": books.tasks,
        "dropped_s": books.dropped_s,
        "failures": books.failures,
    }


def active_periods(rounds: list[RoundStatus]) -> list[tuple[float, float]]:
    """Return when at least one round was active, as disjoint periods in Unix seconds."""
    periods: list[tuple[float, float]] = []
    for status in sorted(rounds, key=lambda s: s.created_ms):
        start, stop = status.created_ms / 1000, min(status.ended_ms, status.deadline_ms) / 1000
        if periods and periods[-1][1] >= start:
            periods[-1] = (periods[-1][0], max(periods[-1][1], stop))
        else:
            periods.append((start, stop))
    return periods


def table(report: dict[str, Any]) -> str:
    """Return the runs of a report as a Markdown table, one column a run."""
    runs = report["runs"]
    heads = [
        f"{r['gpus']} GPUs, {r['batch_ms']:.0f} ms" + (", deaths" if r["kill_share"] else "")
        for r in runs
    ]
    lines = [
        "| | " + " | ".join(heads) + " | asked for at 200 |",
        "| --- |" + " ---: |" * len(runs) + " --- |",
    ]
    lines += [
        f"| {name} | " + " | ".join(show(run) for run in runs) + f" | {target} |"
        for name, show, target in ROWS
    ]
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw cost against GPUs: processors on one side, lost time on the other; logarithms both."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for with_deaths, style in ((False, "-o"), (True, "--x")):
        runs = [run for run in report["runs"] if bool(run["kill_share"]) is with_deaths]
        if not runs:
            continue
        gpus, extra = [run["gpus"] for run in runs], ", with deaths" if with_deaths else ""
        for name, color in (("redis", "C3"), ("scheduler", "C0"), ("simulator", "C7")):
            left.plot(gpus, [r["cpu"][name] for r in runs], style, color=color, label=name + extra)
        lost = [max(0.001, run["lost_percent"]) for run in runs]
        right.plot(gpus, lost, style, color="C2", label="GPU time lost, %" + extra)
        p99 = [run["commit_ms"]["p99"] for run in runs]
        right.plot(gpus, p99, style, color="C1", label="commit p99, ms" + extra)
    left.axhline(100, color="0.8", linewidth=1)
    left.set_ylabel("per cent of a core")
    right.axhline(1, color="0.8", linewidth=1)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("GPUs")
        axes.legend(fontsize=8)
        axes.grid(visible=True, which="both", linewidth=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _spread(values: npt.NDArray[Any]) -> dict[str, float]:
    if len(values) == 0:
        return {"median": 0.0, "p99": 0.0, "max": 0.0}
    median, p99, top = np.percentile(values.astype(np.float64), [50, 99, 100]) * 1000
    return {"median": float(median), "p99": float(p99), "max": float(top)}
