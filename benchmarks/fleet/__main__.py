"""Hundreds of GPUs on one scheduler and one Redis, with only the forward passes made up.

    python -m benchmarks.fleet --output fleet.json --plot docs/scaling.png

For each size a new Redis, a real scheduler and one process of simulated GPUs (`process.py`) run twenty
rounds (`rounds.py`) for the given time; then the same with GPUs that die without a word and come back.
Every run is held against what the GPUs wrote down, nonce for nonce (`check.py`). The report is written
after each run, and the table of docs/scaling.md is printed at the end. Exits with code 1 if a
nonce was lost, came twice, or the books contradict each other. docs/scaling.md says how honest this is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fleet.check import audit, compare
from benchmarks.fleet.ledger import Books
from benchmarks.fleet.process import speeds
from benchmarks.fleet.report import figures, plot, table
from benchmarks.fleet.rounds import Timeline
from benchmarks.fleet.runner import BATCH_SIZE
from benchmarks.fleet.watch import Watch
from benchmarks.machine import describe
from pocqueue.local_stack import environment
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.settings import Settings

AUDIT_S = 10.0
#: After the last stop everything is idle within this, or the run has failed.
IDLE_TIMEOUT_S = 60.0


def main() -> None:
    """Parse the command line, run all sizes, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", default="10,50,200,1000", help="sizes, comma-separated")
    parser.add_argument("--seconds", type=float, default=330.0, help="length of each run")
    parser.add_argument(
        "--kill-share", type=float, default=0.1, help="part of the GPUs that die; 0: no such runs"
    )
    parser.add_argument(
        "--batch-ms",
        type=float,
        default=50.0,
        help="of the fastest GPU; the slowest takes ten times as long",
    )
    parser.add_argument("--output", type=Path, default=Path("fleet.json"))
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    # Ended from outside (a time limit, say), take Redis and scheduler along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report: dict[str, Any] = {"machine": describe(), "seconds": given.seconds, "runs": []}
    for kill_share in dict.fromkeys((0.0, given.kill_share)):
        for gpus in map(int, given.gpus.split(",")):
            began = time.monotonic()
            print(f"{gpus} GPUs, {kill_share:.0%} of them die …", flush=True)
            run = run_fleet(gpus, given.seconds, kill_share, given.batch_ms / 1000)
            report["runs"].append(run)
            given.output.write_text(json.dumps(report, indent=2) + "\n")
            print(summary(run, time.monotonic() - began), flush=True)
    print(table(report))
    if given.plot:
        plot(report, given.plot)
    if any(map(is_wrong, report["runs"])):
        sys.exit(1)


def run_fleet(
    num_gpus: int, seconds: float, kill_share: float, fastest_s: float = 0.05
) -> dict[str, Any]:
    """Run one size once; return its figures and what was found wrong.

    Args:
        num_gpus: GPU queues, one simulated GPU each.
        seconds: from the first round's start to the last one's stop.
        kill_share: part of the GPUs, 0 to 1, that die once and come back.
        fastest_s: seconds of the fastest GPU for a batch.
    """
    rate = sum(BATCH_SIZE / batch_s for batch_s in speeds(num_gpus, fastest_s))
    with tempfile.TemporaryDirectory(prefix="pq-fleet-") as name, contextlib.ExitStack() as at_end:
        folder = Path(name)
        settings = Settings.load().model_copy(update={"state_dir": folder, "redis_url": None})
        server = RedisServer(folder)
        server.ensure()
        at_end.callback(server.stop)
        backend = at_end.enter_context(Backend.open(settings))
        scheduler = at_end.enter_context(scheduler_process(settings, folder / "scheduler.log"))
        ledger = folder / "ledger.npz"
        fleet = at_end.enter_context(
            started(
                [
                    *[sys.executable, "-m", "benchmarks.fleet.process"],
                    *["--socket", str(server.socket_path), "--ledger", str(ledger)],
                    *["--gpus", str(num_gpus), "--seconds", str(seconds)],
                    *["--kill-share", str(kill_share), "--fastest", str(fastest_s)],
                ],
                folder / "simulator.log",
                dict(os.environ),
            )
        )
        pids = {
            "redis": int(backend.client.info("server")["process_id"]),
            "scheduler": scheduler.pid,
            "simulator": fleet.pid,
        }
        watch = Watch(pids, backend.client)
        timeline = Timeline(backend, seconds, rate * seconds)
        last_stop, wrong = _drive(timeline, watch, backend)
        _wait_idle(backend)
        statistics = {
            name.removeprefix("cmdstat_"): values
            for name, values in backend.client.info("commandstats").items()
        }
        assert fleet.stdin is not None
        fleet.stdin.close()
        if fleet.wait(timeout=60) != 0:
            raise RuntimeError((folder / "simulator.log").read_text()[-3000:])
        books = Books(ledger)
        rounds = {n: backend.store.status(r) for n, r in timeline.started.items()}
        found = compare(backend, list(timeline.started.values()), books)
        found["wrong"] = [*wrong, *found["wrong"], *books.failures]
        return {
            "gpus": num_gpus,
            "kill_share": kill_share,
            "seconds": seconds,
            "batch_ms": 1000 * fastest_s,
            "commits_per_s_at_best": rate / BATCH_SIZE,
            **figures(books, watch, rounds, last_stop),
            **found,
            "commandstats": statistics,
            "unacked_left": backend.client.hlen("unacked"),
        }


def is_wrong(run: dict[str, Any]) -> bool:
    """Say whether a run broke a promise."""
    return bool(run["lost"] or run["twice"] or run["foreign"] or run["wrong"])


def summary(run: dict[str, Any], took_s: float) -> str:
    """Return one line about a run."""
    return (
        f"  lost {run['lost_percent']:.2f} % of GPU time, Jain {run['jain_gpu_time']:.4f}, "
        f"{run['commits_per_s']:,.0f} commits/s, CPU scheduler {run['cpu']['scheduler']:.0f} % "
        f"Redis {run['cpu']['redis']:.0f} % simulator {run['cpu']['simulator']:.0f} %, "
        f"{run['redis_memory_mib']:.0f} MiB, commit p99 {run['commit_ms']['p99']:.1f} ms, "
        f"idle after {run['to_idle_s']:.2f} s, {run['ranges_returned']} ranges again, "
        f"lost {run['lost']} twice {run['twice']} foreign {run['foreign']} "
        f"wrong {len(run['wrong'])}; {took_s:.0f} s"
    )


def _drive(timeline: Timeline, watch: Watch, backend: Backend) -> tuple[float, list[str]]:
    """Start and stop rounds, sample and audit; return when the last one was stopped, and what was wrong."""
    wrong: list[str] = []
    audit_at, sample_at = time.monotonic() + AUDIT_S, time.monotonic()
    while True:
        if (last_stop := timeline.step()) is not None:
            return last_stop, wrong
        now = time.monotonic()
        if now >= sample_at:
            watch.sample()
            sample_at = now + 1.0
        if now >= audit_at:
            wrong += audit(backend, list(timeline.started.values()))
            audit_at = now + AUDIT_S
        time.sleep(max(0.0, min(timeline.next_event_s(), sample_at - time.monotonic())))


def _wait_idle(backend: Backend) -> None:
    """Wait until no live GPU holds a range, by two heartbeats of each."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    idle_since = float("inf")
    while time.monotonic() < idle_since + 2.5:
        if any(gpu.held for gpu in backend.pool.live()):
            idle_since = float("inf")
        else:
            idle_since = min(idle_since, time.monotonic())
        if time.monotonic() > deadline:
            raise TimeoutError(f"GPUs hold ranges {IDLE_TIMEOUT_S:.0f} s after the last stop")
        time.sleep(0.25)


@contextlib.contextmanager
def scheduler_process(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a scheduler, as users start it."""
    argv = [sys.executable, "-m", "pocqueue", "scheduler"]
    with started(argv, log, environment(settings)) as process:
        yield process


@contextlib.contextmanager
def started(argv: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its output in a file, and end it at the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=env
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        process.wait(timeout=30)


if __name__ == "__main__":
    main()
