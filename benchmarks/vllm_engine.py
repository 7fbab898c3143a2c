"""What the proof costs around vLLM's forward pass, and vLLM against transformers; on the same model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.stats import Figure, Sample
from benchmarks.vllm_child import BATCH_SIZE
from pocqueue.engine.base import Engine
from pocqueue.poc.batch import Batch
from pocqueue.rounds.start import draft_spec

#: Short turns, many of them, in alternating order: a noisy machine's moods fall on all sides.
NUM_TURNS = 10
BATCHES_PER_TURN = 8


def vllm_engine(torch_engine: Engine, state_dir: Path) -> list[Figure]:
    """Nonces per second of the vLLM engine, of its bare pass, and of the torch engine, in turns.

    The two runtimes have a process each and the same number of threads; while one works the other
    waits. The bare pass is vLLM's on inputs in memory, logits included, called in the same way.
    """
    torch_rates, engine_rates, bare_rates = [], [], []
    with _child(state_dir, torch_engine.info.device) as child:
        sides: list[Callable[[], None]] = [
            lambda: engine_rates.append(_turn(child, "engine")),
            lambda: bare_rates.append(_turn(child, "bare")),
            lambda: torch_rates.append(_torch_turn(torch_engine)),
        ]
        for turn in range(NUM_TURNS):
            for side in sides if turn % 2 == 0 else reversed(sides):
                side()
    measured = Sample(engine_rates, "nonces/s")
    over_bare = _median_ratio(engine_rates, bare_rates)
    over_torch = _median_ratio(engine_rates, torch_rates)
    return [
        Figure(
            "vLLM engine over its forward pass",
            measured,
            Sample(bare_rates, "nonces/s"),
            "the bare pass in a loop",
            over_bare,
            "ratio at least 0.9",
            over_bare >= 0.9,
        ),
        Figure(
            "vLLM engine over torch engine",
            measured,
            Sample(torch_rates, "nonces/s"),
            "torch engine in a loop",
            over_torch,
            "ratio at least 1",
            over_torch >= 1,
        ),
    ]


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    return Sample([a / b for a, b in zip(ours, theirs, strict=True)], "").median


def _torch_turn(engine: Engine) -> float:
    config = draft_spec(block_hash="bare", public_key="bench")
    began = time.perf_counter()
    for batch in range(BATCHES_PER_TURN):
        engine.values(Batch.of(config, range(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)))
    return BATCHES_PER_TURN * BATCH_SIZE / (time.perf_counter() - began)


def _turn(child: subprocess.Popen[str], kind: str) -> float:
    assert child.stdin is not None
    child.stdin.write(f"{kind} {BATCHES_PER_TURN}\n")
    child.stdin.flush()
    return BATCHES_PER_TURN * BATCH_SIZE / float(_line(child))


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"The vLLM process ended with {child.wait()}; it says why above.")
    return line


@contextmanager
def _child(state_dir: Path, device: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "benchmarks.vllm_child", str(state_dir), device]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert _line(child) == "ready\n"
        yield child
        assert child.stdin is not None
        child.stdin.close()
