"""What artifacts cost around a pass on the CPU: pick, rotation and encoding, inputs by either RNG, reflections.

    python -m benchmarks.artifacts

The maths is measured in a process of its own, as that of distances is; see `benchmarks.kernels`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.effort import FULL, Effort
from benchmarks.kernels import in_turns
from benchmarks.stats import Figure, Sample
from pocqueue.poc.batch import Batch

if TYPE_CHECKING:
    import torch

    from pocqueue.engine.torch_model.engine import TorchEngine
    from pocqueue.poc.artifact.maths import ArtifactMaths

NUM_NONCES, SEQ_LEN, DIM = 32, 256, 1024
#: Kimi-K2.6's, the widest of the network's models.
HIDDEN_SIZE, K_DIM = 7168, 12
_NUM_TURNS = 9


def artifact_maths(effort: Effort = FULL) -> list[Figure]:
    """Measure the maths around a pass; about three seconds."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.artifacts"),
            *(str(effort.runs(_NUM_TURNS)), str(effort.size(NUM_NONCES))),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found, num = json.loads(done.stdout), effort.size(NUM_NONCES)
    (stronger, legacy), (ours, judge) = (
        [Sample(side, "ms") for side in found[row]] for row in ("inputs", "artifacts")
    )
    ratio = stronger.median / legacy.median
    return [
        Figure(
            f"inputs by the stronger RNG, {num} x {SEQ_LEN} x {DIM}, {found['threads']} threads",
            stronger,
            legacy,
            "inputs by the legacy RNG",
            ratio,
            "at most 1.1 times as long",
            ratio <= 1.1,
        ),
        Figure(
            f"pick, rotation and encoding, {num} x {HIDDEN_SIZE:,}, k_dim {K_DIM}, 1 thread",
            ours,
            judge,
            "the reference, nonce by nonce",
            ours.median,
            "median under 1 ms",
            ours.median < 1,
        ),
    ]


def reflections(engine: TorchEngine, batch: Batch, num_turns: int, title: str) -> Figure:
    """Measure what the reflections take of a pass: the pass with them and without, in turns.

    Args:
        engine: to be called from the thread that loaded it.
        batch: of artifacts.
        title: names model and shape.
    """
    import torch

    from pocqueue.engine.stages import synchronize
    from pocqueue.poc.artifact.maths import ArtifactMaths
    from pocqueue.poc.kernels import kernels_for

    info, device = engine.info, torch.device(engine.info.device)
    maths = ArtifactMaths(kernels_for(device), info.hidden_size, info.vocab_size, device)
    shape = (batch.batch_size, batch.seq_len, info.hidden_size)
    inputs = torch.empty(shape, dtype=getattr(torch, info.dtype), device=device)
    maths.write_inputs(maths.seeds(batch.padded()), inputs.view(batch.batch_size, -1))
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(-1, num_turns):
        # A B, B A …: a noisy machine's moods fall on both. The first turn is not counted.
        for is_reflected in (True, False) if turn % 2 == 0 else (False, True):
            given = inputs.clone()
            synchronize(device)
            began = time.perf_counter()
            engine.forward(given, "hidden", maths.after_layer(batch) if is_reflected else None)
            synchronize(device)
            if turn >= 0:
                times[is_reflected].append(1000 * (time.perf_counter() - began))
    shares = [1 - b / a for a, b in zip(times[True], times[False], strict=True)]
    share = Sample(shares, "").median
    return Figure(
        f"reflections' share of the pass, {title}",
        Sample(times[True], "ms"),
        Sample(times[False], "ms"),
        "the same pass without",
        share,
        "at most 0.05",
        share <= 0.05,
    )


def main(num_turns: int = _NUM_TURNS, num_nonces: int = NUM_NONCES) -> None:
    """Print a line of JSON: threads, and the ms of both sides of each row."""
    import torch

    from pocqueue.poc.artifact.data import encode
    from pocqueue.poc.artifact.maths import ArtifactMaths
    from pocqueue.poc.artifact.reference import artifact
    from pocqueue.poc.kernels.cpu.kernels import CpuKernels
    from pocqueue.poc.kernels.reference import normal
    from pocqueue.poc.seeds import input_seeds, input_words

    kernels, nonces = CpuKernels(), range(num_nonces)
    names = ("9F2C" * 16, "02ab" * 16 + "02")  # as long as those of the network
    out = torch.empty(num_nonces, SEQ_LEN * DIM, dtype=torch.bfloat16)
    found: dict[str, object] = {"threads": torch.get_num_threads()}
    found["inputs"] = in_turns(
        num_turns,
        lambda: kernels.write_pieces(input_words(*names, nonces), out),
        lambda: kernels.write_inputs(input_seeds(*names, nonces), out),
    )
    # Last, as the process stays at one thread.
    torch.set_num_threads(1)
    maths = ArtifactMaths(kernels, HIDDEN_SIZE, 1, torch.device("cpu"))
    options = (("k_dim", K_DIM), ("stronger_rng", False))
    batch = Batch(*names, tuple(nonces), num_nonces, 1, "artifact", options)
    hidden = torch.stack([normal(nonce, HIDDEN_SIZE, "cpu") for nonce in nonces])
    with torch.inference_mode():
        found["artifacts"] = in_turns(
            num_turns,
            lambda: _artifacts(maths, batch, hidden),
            lambda: encode(
                torch.stack(
                    [artifact(row, *names, n, K_DIM) for n, row in enumerate(hidden)]
                ).numpy()
            ),
        )
    print(json.dumps(found))


def _artifacts(maths: ArtifactMaths, batch: Batch, hidden: torch.Tensor) -> list[str]:
    """Do what is done of a batch around its pass, but for the inputs: seeds, pick, rotation, encoding."""
    prepared = maths.prepare(maths.seeds(batch))
    return maths.written(maths.values(batch, prepared, hidden).tolist())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
