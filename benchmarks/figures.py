"""All benchmarks, in their order."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.artifact_receiver import artifact_callback
from benchmarks.artifacts import artifact_maths
from benchmarks.callbacks import callbacks
from benchmarks.delegation import delegation
from benchmarks.effort import Effort
from benchmarks.gpu_busy import gpu_busy
from benchmarks.hosts import hosts, hosts_alone, hosts_stack
from benchmarks.imports import command_line
from benchmarks.kernels import kernels
from benchmarks.latency import commit_to_reader, start_to_first_valid
from benchmarks.pipeline import pipeline
from benchmarks.pouw_bls import pouw_bls
from benchmarks.pouw_chain import pouw_chain
from benchmarks.pouw_links import pouw_links
from benchmarks.pouw_network import pouw_network
from benchmarks.pouw_training import pouw_training
from benchmarks.queue_efficiency import batch_seconds, queue_efficiency
from benchmarks.range_gap import range_gap
from benchmarks.stats import Figure
from benchmarks.vllm_beside import vllm_beside
from benchmarks.vllm_engine import vllm_engine
from pocqueue.engine import load_local_engine
from pocqueue.engine.base import Engine
from pocqueue.local_stack import LocalStack, local_stack
from pocqueue.measure.samples import sample_draft, sample_engine
from pocqueue.measure.valid_rate import r_target_for
from pocqueue.rounds.backend import Backend
from pocqueue.settings import Settings


@dataclass
class Figures:
    """The figures so far. A benchmark that fails says why and takes no other's figures with it."""

    rows: list[Figure] = field(default_factory=list)
    failed: int = 0  #: benchmarks

    def add(self, name: str, measure: Callable[[], list[Figure]]) -> None:
        """Run one benchmark, keep what it gives, and say on standard error how long it took."""
        began, before = time.monotonic(), os.times()
        try:
            self.rows += measure()
        except Exception:  # noqa: BLE001  # whatever it was, the others are measured
            traceback.print_exc()
            self.failed += 1
        # Of this process and its children that have ended.
        cpu_s = sum(os.times()[:4]) - sum(before[:4])
        took = f"{time.monotonic() - began:.1f} s, {cpu_s:.1f} s of a core"
        print(f"{name}: {took}", file=sys.stderr, flush=True)


def measure_all(settings: Settings, log_dir: Path, effort: Effort) -> Figures:
    """Measure everything.

    Args:
        settings: with a state folder of its own.
        log_dir: gets the logs of processes.
        effort: how much of it.
    """
    figures = Figures()
    with contextlib.ExitStack() as at_end:
        stack, gateway = None, None
        if not effort.is_full:
            # One stack for all, whose worker loads its model while others are measured: the figures mean nothing.
            stack, gateway = at_end.enter_context(hosts_stack(settings, log_dir))
        figures.add("command line", lambda: [command_line(effort)])
        figures.add("kernels", lambda: kernels(effort))
        figures.add("artifacts", lambda: artifact_maths(effort))
        figures.add("pipeline", lambda: pipeline(effort))
        figures.add("pouw BLS", lambda: pouw_bls(effort))
        figures.add("pouw chain", lambda: pouw_chain(effort))
        figures.add("pouw links", lambda: pouw_links(effort))
        figures.add("pouw training", lambda: pouw_training(effort))
        figures.add("pouw network", lambda: pouw_network(effort))
        engine = load_local_engine(settings)
        if stack is None:
            stack = at_end.enter_context(local_stack(settings, flower=False, log_dir=log_dir))
        _with_stack(figures, stack, settings, engine, effort)
        if gateway is not None:
            figures.add("GPU hosts", lambda: hosts(gateway, settings.state_dir, effort))
    if effort.is_full:
        figures.add("GPU hosts", lambda: hosts_alone(effort))
        figures.add("vLLM engine", lambda: vllm_engine(engine, settings.state_dir))
        figures.add("vLLM beside completions", vllm_beside)
        figures.add("vLLM callbacks", callbacks)
    return figures


def _with_stack(
    figures: Figures, stack: LocalStack, settings: Settings, engine: Engine, effort: Effort
) -> None:
    num_samples = 512 if effort.is_full else 128
    distances = sample_engine(engine, sample_draft("calibration"), num_samples)
    r_target = r_target_for(distances, 0.1).r_target
    batch_s = batch_seconds(engine, effort)
    log_dir = stack.log_dir
    assert log_dir is not None
    with Backend.open(settings) as backend:
        stack.wait_live(backend.pool, 300)
        figures.add("queue", lambda: [queue_efficiency(backend, engine, effort)])
        figures.add("gaps", lambda: range_gap(backend, effort))
        figures.add("busy", lambda: gpu_busy(backend, effort))
        figures.add("commits", lambda: [commit_to_reader(backend, effort)])
        figures.add("starts", lambda: [start_to_first_valid(backend, r_target, batch_s, effort)])
        figures.add("callback", lambda: [artifact_callback(backend, effort)])
        if effort.is_full:
            figures.add("delegation", lambda: delegation(backend, settings, r_target, log_dir))
