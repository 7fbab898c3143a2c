"""What only a GPU can show of artifacts: the order of a pick, CUDA's arithmetic against the CPU's, and rates.

    python -m benchmarks.artifact_cuda
    python -m benchmarks.artifact_cuda --model /path/to/model --batch-size 32 --seq-len 1024 --seconds 10

Needs a CUDA GPU; ends with 2 where there is none, with 1 if a check fails. Rates are those of engine torch, and of vLLM
where it is installed, each over its bare pass, which has the reflections in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.artifacts import reflections
from benchmarks.kernels_cuda import ABSENT, gpu_us
from benchmarks.stats import Sample
from pocqueue.engine import EngineOptions, load_engine
from pocqueue.engine.base import Engine
from pocqueue.engine.torch_model.engine import TorchEngine
from pocqueue.errors import InvalidRound, PocqueueError
from pocqueue.poc.artifact import reference
from pocqueue.poc.artifact.data import decode, encode
from pocqueue.poc.artifact.scheme import MAX_K_DIM
from pocqueue.poc.artifact.seeds import pick_seeds
from pocqueue.poc.artifact.vectors import artifact_vectors, layer_vectors, pick_dims, reflect
from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels import kernels_for
from pocqueue.poc.kernels.reference import ReferenceKernels, hash
from pocqueue.poc.seeds import input_seeds, input_words
from pocqueue.rounds.start import draft_spec

#: Of MiniMax-M2.7, Qwen3-235B and Kimi-K2.6.
HIDDEN_SIZES = (3072, 4096, 7168)
K_DIMS = (12, MAX_K_DIM)
NUM_TURNS = 8
BLOCK, KEY = "9F2C" * 16, "02ab"
#: How far a row may be from the CPU's, over its norm: a rounding or two of its dtype.
REFLECTED_WITHIN = {torch.bfloat16: 2.0**-8, torch.float32: 1e-6}


@dataclass(frozen=True)
class Check:
    """Something that has to be so, as it was found."""

    text: str
    is_so: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Check, measure, print. Returns the exit code."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        batch = artifact_batch(given.batch_size, given.seq_len)
    except InvalidRound as exc:
        parser.error(str(exc))
    if not torch.cuda.is_available():
        print("No CUDA device: run this on a host with a GPU and a CUDA build of torch.")
        return ABSENT
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    agree = True
    for check in checks(device):
        agree &= check.is_so
        print(f"{'' if check.is_so else 'WRONG: '}{check.text}", flush=True)
    for line in times(device):
        print(line, flush=True)
    with tempfile.TemporaryDirectory(prefix="pocqueue-artifacts-") as folder:
        options = EngineOptions(model=given.model, device=str(device), state_dir=Path(folder))
        for line in rates(options, batch, given.seconds):
            print(line, flush=True)
    return 0 if agree else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="embedded", help="of the rates: a name or a folder")
    parser.add_argument("--batch-size", type=int, default=32, help="nonces of a pass")
    parser.add_argument("--seq-len", type=int, default=1024, help="positions of a nonce")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each rate is measured")
    return parser


def checks(device: torch.device, num_rows: int = 32) -> Iterator[Check]:
    """Compare what a device computes with the reference on the CPU."""
    for hidden_size in HIDDEN_SIZES:
        for k_dim in K_DIMS:
            yield from pick_checks(device, num_rows, hidden_size, k_dim)
        for dtype in REFLECTED_WITHIN:
            yield reflection_check(device, num_rows, hidden_size, dtype)
        yield artifact_check(device, num_rows, hidden_size, K_DIMS[0])
    for is_stronger in (False, True):
        yield input_check(device, num_rows, is_stronger=is_stronger)


def pick_checks(
    device: torch.device, num_rows: int, hidden_size: int, k_dim: int
) -> Iterator[Check]:
    """Compare picks with the reference's, and with `torch.topk`, whose order the network has taken over.

    On a CPU top-k has another order, so the second check fails there.
    """
    nonces = range(num_rows)
    ours = pick_dims(BLOCK, KEY, nonces, hidden_size, k_dim, device)
    expected = [reference.pick(BLOCK, KEY, nonce, hidden_size, k_dim) for nonce in nonces]
    title = f"pick of {k_dim} from {hidden_size}, {num_rows} nonces"
    yield Check(f"{title}: as the reference has it", torch.equal(ours.cpu(), torch.stack(expected)))
    keys = scores(pick_seeds(BLOCK, KEY, nonces, k_dim), hidden_size, device)
    # torch takes other kernels for one row than for many.
    at_once = _top(keys, k_dim)
    one_by_one = torch.stack([_top(row, k_dim) for row in keys])
    same = [int((found == ours).all(dim=1).sum()) for found in (at_once, one_by_one)]
    yield Check(
        f"{title}: torch.topk gives the same order for {same[0]} of them as rows of one tensor, "
        f"for {same[1]} one by one",
        same == [num_rows, num_rows],
    )


def scores(seeds: Sequence[int], n: int, device: torch.device) -> torch.Tensor:
    """Return the unsigned hashes of 0 … n-1, int64 ``[len(seeds), n]``."""
    return torch.stack([hash(seed, n, device).to(torch.int64) & 0xFFFFFFFF for seed in seeds])


def _top(keys: torch.Tensor, k: int) -> torch.Tensor:
    return torch.topk(keys, k, dim=-1, largest=False, sorted=False).indices


def reflection_check(
    device: torch.device, num_rows: int, hidden_size: int, dtype: torch.dtype
) -> Check:
    """Compare a reflection with the CPU's."""
    x = _normal_rows(num_rows, hidden_size).to(dtype)
    (v,) = layer_vectors(BLOCK, 1, hidden_size)
    expected = reference.reflect(x, v)
    found = reflect(x.to(device), v.to(device)).cpu()
    off = (found - expected).double().norm(dim=1) / expected.double().norm(dim=1)
    worst, share = off.max().item(), (found != expected).double().mean().item()
    within = REFLECTED_WITHIN[dtype]
    return Check(
        f"reflection of {num_rows} x {hidden_size} in {_name(dtype)}: {100 * share:.2g} % of the numbers differ from "
        f"the CPU's; a row is {worst:.1e} of its norm off at most (allowed: {within:.1e})",
        worst <= within,
    )


def input_check(device: torch.device, num_rows: int, *, is_stronger: bool) -> Check:
    """Compare inputs in bfloat16 with the reference's on the CPU."""
    made = []
    for kernels, where in ((kernels_for(device), device), (_REFERENCE, torch.device("cpu"))):
        out = torch.empty(num_rows, 64 * 1024, dtype=torch.bfloat16, device=where)
        words = input_words(BLOCK, KEY, range(num_rows))
        kernels.write_pieces(words if is_stronger else [word[:1] for word in words], out)
        made.append(out.cpu())
    different = 1e5 * (made[0] != made[1]).double().mean().item()
    return Check(
        f"inputs by the {'stronger' if is_stronger else 'legacy'} RNG: {different:.2f} in 100,000 differ from the "
        "CPU's (allowed: 10)",
        different <= 10,
    )


def artifact_check(device: torch.device, num_rows: int, hidden_size: int, k_dim: int) -> Check:
    """Compare artifacts of the same hidden states with the reference's on the CPU."""
    hidden = _normal_rows(num_rows, hidden_size)
    found = encode(artifact_vectors(hidden.to(device), BLOCK, KEY, range(num_rows), k_dim).cpu())
    expected = encode(
        torch.stack([reference.artifact(row, BLOCK, KEY, n, k_dim) for n, row in enumerate(hidden)])
    )
    pairs = list(zip(found, expected, strict=True))
    apart = max(float(abs(decode(a) - decode(b)).max()) for a, b in pairs)
    return Check(
        f"artifacts of {num_rows} hidden states of {hidden_size}: {sum(a == b for a, b in pairs)} equal to the CPU's, "
        f"{apart:.1e} apart in a number at most (allowed: 1e-3)",
        apart <= 1e-3,
    )


def times(device: torch.device) -> Iterator[str]:
    """Time the maths on a CUDA device, without a model; yield lines for people."""
    nonces, hidden_size = range(32), HIDDEN_SIZES[0]
    kernels = kernels_for(device)
    out = torch.empty(len(nonces), 1024 * hidden_size, dtype=torch.bfloat16, device=device)
    seeds, words = input_seeds(BLOCK, KEY, nonces), input_words(BLOCK, KEY, nonces)
    legacy = gpu_us(partial(kernels.write_inputs, seeds, out))
    stronger = gpu_us(partial(kernels.write_pieces, words, out))
    yield f"inputs 32x1024x{hidden_size} bfloat16, legacy RNG: {legacy}"
    yield f"  stronger RNG: {stronger}; ratio {stronger.median / legacy.median:.2f} (at most 1.1)"
    for hidden_size in HIDDEN_SIZES:
        x = torch.ones(32 * 1024, hidden_size, dtype=torch.bfloat16, device=device)
        v = layer_vectors(BLOCK, 1, hidden_size, device)[0].to(x.dtype)
        took, copy = gpu_us(partial(reflect, x, v)), gpu_us(x.clone)
        yield f"reflection 32x1024x{hidden_size} bfloat16: {took}"
        yield f"  against a copy of the same: {copy}; ratio {took.median / copy.median:.1f}"
        vectors = gpu_us(partial(artifact_vectors, x[:32].float(), BLOCK, KEY, nonces, K_DIMS[0]))
        yield f"pick and rotation of 32 hidden states of {hidden_size}: {vectors}"


def artifact_batch(batch_size: int, seq_len: int) -> Batch:
    """Return a whole batch of artifacts.

    Raises:
        InvalidRound: a size is out of bounds.
    """
    draft = draft_spec(
        scheme="artifact",
        block_hash=BLOCK,
        public_key=KEY,
        batch_size=batch_size,
        seq_len=seq_len,
    )
    return Batch.of(draft, range(batch_size))


def rates(
    options: EngineOptions,
    batch: Batch,
    seconds: float,
    engines: Sequence[str] = ("torch", "vllm"),
) -> Iterator[str]:
    """Measure engines on one model, one after the other; yield lines for people."""
    for name in engines:
        try:
            with closing(load_engine(name, options)) as engine:
                yield from _rate(engine, batch, seconds)
        except PocqueueError as exc:
            # vLLM may not be there, or not take such a batch.
            yield f"artifacts, {name}: not measured. {exc}"


def _rate(engine: Engine, batch: Batch, seconds: float) -> Iterator[str]:
    size = batch.batch_size
    title = f"{engine.info.engine}, {engine.info.model}, {size}x{batch.seq_len}"
    timer = engine.timer()
    assert timer is not None
    engine.values(batch)  # what is compiled or allocated at the first pass is there from now on
    # In turns: a GPU gets slower as it gets warm.
    num = max(1, round(seconds / NUM_TURNS / timer.time_forward(batch, 1)))
    bare, whole = [], []
    for _ in range(NUM_TURNS):
        bare.append(num * size / timer.time_forward(batch, num))
        whole.append(size / _seconds_a_batch(engine, batch, num))
    measured, against = Sample(whole, "nonces/s"), Sample(bare, "nonces/s")
    ratio = measured.median / against.median
    yield f"artifacts, {title}: {measured}"
    yield f"  over the bare pass, reflections included: {against}; ratio {ratio:.3f}"
    if isinstance(engine, TorchEngine):
        figure = reflections(engine, batch, NUM_TURNS, title)
        yield f"  {figure.name}: {figure.value:.3f}; pass {figure.measured}, without {figure.against}"


def _seconds_a_batch(engine: Engine, batch: Batch, num: int) -> float:
    """Run batches as a worker does, each told of the next one."""
    size = batch.batch_size
    batches = [
        replace(batch, nonces=tuple(range(i * size, (i + 1) * size))) for i in range(num + 1)
    ]
    engine.values(batches[0], batches[0])
    began = time.perf_counter()
    for one, following in pairwise(batches):
        engine.values(one, following)
    return (time.perf_counter() - began) / num


def _normal_rows(num_rows: int, n: int) -> torch.Tensor:
    out = torch.empty(num_rows, n)
    _REFERENCE.write_inputs(range(num_rows), out)
    return out


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_REFERENCE = ReferenceKernels(torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(main())
