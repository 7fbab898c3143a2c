"""A child process that answers questions about the vLLM engine; vLLM changes its process for good.

    python -m tests.support.vllm_engine_probe STATE_DIR TENSOR_PARALLEL

Prints one line of JSON. Run by tests/engine/vllm/test_engine.py.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pocqueue.engine import EngineOptions
from pocqueue.engine.base import Engine
from pocqueue.engine.profiled import MatmulParameters
from pocqueue.engine.vllm.engine import load_vllm_engine
from pocqueue.errors import PocqueueError
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.batch import Batch
from pocqueue.rounds.spec import RoundSpec
from tests.support.factories import make_spec
from tests.support.vectors import Vectors

CONFIG = make_spec(block_hash="block", public_key="key", batch_size=16, seq_len=144)
NUM_NONCES = 64
EXTENSION = "tests.support.probe_worker.ProbeWorker"


def main() -> None:
    """Load the engine, ask it everything, print the answers."""
    state_dir, size = Path(sys.argv[1]), int(sys.argv[2])
    lines: list[str] = []
    options = EngineOptions(
        model="embedded", device="cpu", state_dir=state_dir, tensor_parallel=size
    )
    engine = load_vllm_engine(options, lines.append, extension=EXTENSION)
    answers: dict[str, Any] = {"info": engine.info.to_dict(), "progress": lines}
    batch = Batch.of(CONFIG, range(4))
    answers["parameters"] = asdict(not_none(engine.timer().num_matmul_parameters()))
    answers["stages"] = engine.timer().time_stages(batch, 2)
    answers["forward_s"] = engine.timer().time_forward(batch, 2)
    answers |= _ask(engine)
    answers["vectors"] = engine.values(vectors_of(range(4)))
    answers["artifacts"] = engine.values(artifacts_of(range(16)))
    answers["artifact_alone"] = engine.values(artifacts_of(range(3, 4)))
    answers["unsupported"] = engine.call_ranks("probe_unsupported")[0]
    answers["token_ids"] = engine.call_ranks("probe_token_ids")[0]
    answers["other_layers"] = engine.call_ranks("probe_other_layers")[0]
    answers["scratch"] = engine.call_ranks("probe_scratch")[0]
    answers["failure"] = engine.call_ranks("probe_failure")
    engine.call_ranks("probe_infinite", True)
    answers["infinite"] = [math.isnan(distance) for distance in engine.values(batch)]
    engine.call_ranks("probe_infinite", False)
    answers["cache"] = engine.call_ranks("probe_served_cache", 32, 256)
    answers["distances_of_four"] = engine.values(batch)
    engine.close()
    try:
        engine.values(Batch.of(CONFIG, [0]))
    except PocqueueError as exc:
        answers["closed"] = str(exc)
    # Behind a mark, as vLLM prints to standard output too.
    sys.stdout.write(f"\nANSWERS {json.dumps(answers)}\n")


def vectors_of(nonces: range) -> Batch:
    """Return a batch of another proof scheme, whose values are vectors of the hidden state."""
    return replace(Batch.of(CONFIG, nonces), scheme=Vectors.name, options=Vectors(size=8).options)


def artifacts_of(nonces: range) -> Batch:
    """Return a batch whose values are artifacts."""
    return replace(Batch.of(CONFIG, nonces), scheme=Artifact.name, options=Artifact().options)


def not_none(parameters: MatmulParameters | None) -> MatmulParameters:
    assert parameters is not None
    return parameters


def _ask(engine: Engine) -> dict[str, Any]:
    batches = [range(first, first + 16) for first in range(0, NUM_NONCES, 16)]
    distances = [d for batch in batches for d in engine.values(Batch.of(CONFIG, batch))]
    shuffled = [*range(15, -1, -1)]
    small = CONFIG.model_copy(update={"batch_size": 5, "seq_len": 130})
    return {
        "distances": distances,
        "again": [d for batch in batches[:2] for d in engine.values(Batch.of(CONFIG, batch))],
        "alone": [engine.values(Batch.of(CONFIG, [nonce]))[0] for nonce in range(4)],
        "shuffled": engine.values(Batch.of(CONFIG, shuffled))[::-1],
        "small": engine.values(Batch.of(small, range(5))),
        "large_again": engine.values(Batch.of(CONFIG, batches[0])),
        "small_again": engine.values(Batch.of(small, range(5))),
        "none": engine.values(Batch.of(CONFIG, [])),
        "refusals": [
            _refusal(engine, CONFIG.model_copy(update={"seq_len": 4097}), [0]),
            _refusal(engine, CONFIG.model_copy(update={"batch_size": 1025}), [0]),
            _refusal(engine, CONFIG, range(17)),
        ],
    }


def _refusal(engine: Engine, config: RoundSpec, nonces: Any) -> str:
    try:
        engine.values(Batch.of(config, nonces))
    except PocqueueError as exc:
        return str(exc)
    return "none"


if __name__ == "__main__":
    main()
