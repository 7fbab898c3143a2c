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
    began = time.monotonic()
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
        figures = [command_line(effort), *kernels(effort), *artifact_maths(effort)]
        figures += pipeline(effort)
        engine = load_local_engine(settings)
        figures += _with_stack(settings, engine, Path(folder) / "logs", effort)
        if effort.is_full:
            figures += vllm_engine(engine, settings.state_dir)
            figures += [*vllm_beside(), *callbacks()]
    _print(figures, machine, time.monotonic() - began)
    content = {
        "machine": machine,
        "smoke": not effort.is_full,
        "figures": [figure.to_dict() for figure in figures],
    }
    output.write_text(json.dumps(content, indent=2) + "\n")
    sys.stdout.write(f"\nWritten to {output}.\n")


def _with_stack(settings: Settings, engine: Engine, log_dir: Path, effort: Effort) -> list[Figure]:
    num_samples = 512 if effort.is_full else 128
    distances = sample_engine(engine, sample_draft("calibration"), num_samples)
    r_target = r_target_for(distances, 0.1).r_target
    with (
        local_stack(settings, flower=False, log_dir=log_dir) as stack,
        Backend.open(settings) as backend,
    ):
        stack.wait_live(backend.pool, 300)
        figures = [
            queue_efficiency(backend, engine, effort),
            *range_gap(backend, effort),
            *gpu_busy(backend, effort),
            commit_to_reader(backend, effort),
            start_to_first_valid(backend, r_target, batch_seconds(engine), effort),
            artifact_callback(backend, effort),
        ]
        if effort.is_full:
            figures += delegation(backend, settings, r_target, log_dir)
        return figures


def _print(figures: list[Figure], machine: dict[str, object], seconds: float) -> None:
    print(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}")
    print(f"{machine['packages']}\n")
    for figure in figures:
        print(f"{figure.name}")
        print(f"    measured   {figure.measured}")
        if figure.against is not None:
            print(f"    against    {figure.against}   {figure.against_name}")
        verdict = "reached" if figure.reached else "MISSED"
        print(f"    asked for  {figure.target}: {figure.value:.4g}, {verdict}")
    print(f"\n{seconds:.0f} s in all")


if __name__ == "__main__":
    main()
