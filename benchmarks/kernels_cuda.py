"""The CUDA kernels of the proof's maths: do they agree with the reference, and how long do they take?

    python -m benchmarks.kernels_cuda

Needs a CUDA GPU. Times are the GPU's own, by CUDA events, medians of many; the GPU is kept busy while
the launches are queued, so that they are not part of it. What a call costs the CPU is shown beside it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from benchmarks.stats import Sample
from pocqueue.poc.kernels import reference
from pocqueue.poc.kernels.base import Kernels
from pocqueue.poc.kernels.reference import ReferenceKernels

ROWS, VOCAB_SIZE = 32, 151_936
SHAPES = ((256, 1024), (64, 128))
NUM_SAMPLES, CALLS_PER_SAMPLE = 30, 10
#: Longer than the CPU needs to queue a sample's calls.
HEAD_START_CYCLES = 20_000_000

ABSENT = 2


def main() -> int:
    """Check, measure, print. Returns the exit code."""
    if not torch.cuda.is_available():
        print("No CUDA device: run this on a host with a GPU and a CUDA build of torch.")
        return ABSENT
    # Here, as Triton is there only where a CUDA build of torch is.
    from pocqueue.poc.kernels.cuda.kernels import CudaKernels

    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    kernels = CudaKernels(device)
    with torch.inference_mode():
        agree = _agreement(kernels, ReferenceKernels(device), device)
        for seq_len, dim in SHAPES:
            _inputs(kernels, seq_len * dim, f"{ROWS}x{seq_len}x{dim} bfloat16", device)
        _permutations_and_distances(kernels, device)
    return 0 if agree else 1


def _agreement(kernels: Kernels, judge: Kernels, device: torch.device) -> bool:
    """Print how the kernels differ from the reference. Returns whether within the promises of `base`."""
    seeds = list(range(ROWS))
    got, expected = (
        torch.empty(ROWS, 256 * 1024, dtype=torch.bfloat16, device=device) for _ in range(2)
    )
    kernels.write_inputs(seeds, got)
    judge.write_inputs(seeds, expected)
    different = 1e5 * (got != expected).double().mean().item()
    permutations = kernels.permutations(seeds, VOCAB_SIZE)
    equal = torch.equal(permutations, judge.permutations(seeds, VOCAB_SIZE))
    logits, target = _logits_and_target(device)
    distances = [
        each.distances(logits, each.prepare(seeds, VOCAB_SIZE), target) for each in (kernels, judge)
    ]
    off = (distances[0] - distances[1]).abs().max().item()
    print(f"against the reference: inputs {different:.2f} in 100,000 differ (at most 1)")
    print(
        f"  permutations {'equal' if equal else 'DIFFER'}; distances {off:.1e} off (at most 2e-6)"
    )
    return different <= 1 and equal and off <= 2e-6


def _inputs(kernels: Kernels, n: int, shape: str, device: torch.device) -> None:
    seeds = list(range(ROWS))
    out = torch.empty(ROWS, n, dtype=torch.bfloat16, device=device)
    fill = gpu_us(lambda: out.fill_(1.0))
    write = gpu_us(lambda: kernels.write_inputs(seeds, out))
    print(f"inputs {shape}: {write}")
    print(f"  against a fill of the same bytes: {fill}; ratio {write.median / fill.median:.2f}")
    print(f"  CPU per call: {_cpu_us(lambda: kernels.write_inputs(seeds, out))}")


def _permutations_and_distances(kernels: Kernels, device: torch.device) -> None:
    seeds = list(range(ROWS))
    logits, target = _logits_and_target(device)
    logits = logits.to(torch.bfloat16)
    prepared = kernels.prepare(seeds, VOCAB_SIZE)
    keys = torch.stack([reference.hash(seed, VOCAB_SIZE, device) for seed in seeds])
    prepare = gpu_us(lambda: kernels.prepare(seeds, VOCAB_SIZE))
    sort = gpu_us(lambda: torch.sort(keys, dim=1, stable=True))
    distances = gpu_us(lambda: kernels.distances(logits, prepared, target))
    both = (prepare.median + distances.median) / 1000
    print(f"permutations {ROWS}x{VOCAB_SIZE}: {prepare}")
    print(f"  against torch.sort of ready keys: {sort}; ratio {sort.median / prepare.median:.2f}")
    print(f"  CPU per call: {_cpu_us(lambda: kernels.prepare(seeds, VOCAB_SIZE))}")
    print(f"distances {ROWS}x{VOCAB_SIZE}, bfloat16 logits: {distances}")
    print(f"permutations and distances: {both:.3f} ms (under 2)")


def _logits_and_target(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.stack([reference.normal(seed, VOCAB_SIZE, device) for seed in range(ROWS)])
    target = reference.normal(ROWS, VOCAB_SIZE, device)
    return logits, target / reference.norm(target)


def gpu_us(call: Callable[[], object]) -> Sample:
    """Time a call on the GPU."""
    call()
    times = []
    for _ in range(NUM_SAMPLES):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(CALLS_PER_SAMPLE):
            call()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / CALLS_PER_SAMPLE)
    return Sample(times, "µs")


def _cpu_us(call: Callable[[], object]) -> Sample:
    """Time what a call costs the calling thread."""
    times = []
    for _ in range(NUM_SAMPLES):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(CALLS_PER_SAMPLE):
            call()
        times.append(1e6 * (time.perf_counter() - began) / CALLS_PER_SAMPLE)
    torch.cuda.synchronize()
    return Sample(times, "µs")


if __name__ == "__main__":
    sys.exit(main())
