"""The vLLM side of `benchmarks.vllm_engine`: a process that takes one turn for each line it reads.

    python -m benchmarks.vllm_child STATE_DIR DEVICE

Reads ``engine N`` or ``bare N`` and answers with the seconds that N batches took, until its input ends.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pocqueue.engine import EngineOptions
from pocqueue.engine.vllm.engine import VllmEngine, load_vllm_engine
from pocqueue.poc.batch import Batch
from pocqueue.rounds.start import draft_spec

BATCH_SIZE, SEQ_LEN = 32, 256


def main() -> None:
    """Load, then take turns."""
    # vLLM prints to standard output; the answers have a file of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    options = EngineOptions(model="embedded", device=sys.argv[2], state_dir=Path(sys.argv[1]))
    engine = load_vllm_engine(options, lambda _line: None)
    engine.warm_up(BATCH_SIZE, SEQ_LEN)
    _bare(engine, 1)
    answers.write("ready\n")
    for line in sys.stdin:
        kind, num = line.split()
        seconds = _engine(engine, int(num)) if kind == "engine" else _bare(engine, int(num))
        answers.write(f"{seconds}\n")
    engine.close()


def _engine(engine: VllmEngine, num_batches: int) -> float:
    config = draft_spec(block_hash="bare", public_key="bench")
    began = time.perf_counter()
    for batch in range(num_batches):
        engine.values(Batch.of(config, range(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)))
    return time.perf_counter() - began


def _bare(engine: VllmEngine, num_batches: int) -> float:
    config = draft_spec(block_hash="bare", public_key="bench")
    return engine.timer().time_forward(Batch.of(config, range(BATCH_SIZE)), num_batches)


if __name__ == "__main__":
    main()
