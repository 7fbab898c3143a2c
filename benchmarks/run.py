"""`make bench`: run every benchmark, print a table, write JSON.

    python -m benchmarks.run --output bench.json
    python -m benchmarks.run --smoke --output smoke.json

The worker is a real one in processes of its own (`pocqueue.local_stack`), on the embedded model and
this machine's CPU or first GPU; nothing is simulated. `--smoke` does a little of everything but vLLM and
delegation, to see in about half a minute that the benchmarks work; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.artifact_receiver import artifact_callback
from benchmarks.artifacts import artifact_maths
from benchmarks.callbacks import callbacks
from benchmarks.delegation import delegation
from benchmarks.effort import FULL, SMOKE, Effort
from benchmarks.gpu_busy import gpu_busy
from benchmarks.imports import command_line
from benchmarks.kernels import kernels
from benchmarks.latency import commit_to_reader, start_to_first_valid
from benchmarks.machine import describe
from benchmarks.pipeline import pipeline
from benchmarks.queue_efficiency import batch_seconds, queue_efficiency
from benchmarks.range_gap import range_gap
from benchmarks.stats import Figure
from benchmarks.vllm_beside import vllm_beside
from benchmarks.vllm_engine import vllm_engine
from pocqueue.engine import load_local_engine
from pocqueue.engine.base import Engine
from pocqueue.local_stack import local_stack
from pocqueue.measure.samples import sample_draft, sample_engine
from pocqueue.measure.valid_rate import r_target_for
from pocqueue.rounds.backend import Backend
from pocqueue.settings import Settings


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    parser.add_argument("--smoke", action="store_true", help="see that it works; no figures")
    arguments = parser.parse_args()
    output: Path = arguments.output
    effort = SMOKE if arguments.smoke else FULL
    rows = _Rows()
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="pocqueue-bench-") as folder:
        settings = Settings.load().model_copy(
            update={
                "state_dir": Path(folder),
                "redis_url": None,
                "model": "embedded",
                "engine": "torch",
                "callback_private": True,
            }
        )
        rows.add(lambda: [command_line(effort)])
        rows.add(lambda: kernels(effort))
        rows.add(lambda: artifact_maths(effort))
        rows.add(lambda: pipeline(effort))
        engine = load_local_engine(settings)
        _with_stack(rows, settings, engine, Path(folder) / "logs", effort)
        if effort.is_full:
            rows.add(lambda: vllm_engine(engine, settings.state_dir))
            rows.add(vllm_beside)
            rows.add(callbacks)
    _print(rows, machine)
    content = {
        "machine": machine,
        "smoke": not effort.is_full,
        "figures": [figure.to_dict() for figure in rows.figures],
    }
    output.write_text(json.dumps(content, indent=2) + "\n")
    sys.stdout.write(f"\nWritten to {output}.\n")
    if rows.failed:
        sys.exit(f"{rows.failed} of the benchmarks failed, see above; the others' figures stand.")


class _Rows:
    """The figures so far. A benchmark that fails says why and takes no other's figures with it."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.failed = 0
        self.began = time.monotonic()

    def add(self, measure: Callable[[], list[Figure]]) -> None:
        """Run one benchmark and keep what it gives."""
        try:
            self.figures += measure()
        except Exception:  # noqa: BLE001  # whatever it was, the others are measured
            traceback.print_exc()
            self.failed += 1


def _with_stack(
    rows: _Rows, settings: Settings, engine: Engine, log_dir: Path, effort: Effort
) -> None:
    num_samples = 512 if effort.is_full else 128
    distances = sample_engine(engine, sample_draft("calibration"), num_samples)
    r_target = r_target_for(distances, 0.1).r_target
    batch_s = batch_seconds(engine)
    with (
        local_stack(settings, flower=False, log_dir=log_dir) as stack,
        Backend.open(settings) as backend,
    ):
        stack.wait_live(backend.pool, 300)
        rows.add(lambda: [queue_efficiency(backend, engine, effort)])
        rows.add(lambda: range_gap(backend, effort))
        rows.add(lambda: gpu_busy(backend, effort))
        rows.add(lambda: [commit_to_reader(backend, effort)])
        rows.add(lambda: [start_to_first_valid(backend, r_target, batch_s, effort)])
        rows.add(lambda: [artifact_callback(backend, effort)])
        if effort.is_full:
            rows.add(lambda: delegation(backend, settings, r_target, log_dir))


def _print(rows: _Rows, machine: dict[str, object]) -> None:
    print(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}")
    print(f"{machine['packages']}\n")
    for figure in rows.figures:
        print(f"{figure.name}")
        print(f"    measured   {figure.measured}")
        if figure.against is not None:
            print(f"    against    {figure.against}   {figure.against_name}")
        verdict = "reached" if figure.reached else "MISSED"
        print(f"    asked for  {figure.target}: {figure.value:.4g}, {verdict}")
    print(f"\n{time.monotonic() - rows.began:.0f} s in all")


if __name__ == "__main__":
    main()
