"""The proof's maths around the forward pass, as fast as the device at hand allows.

`kernels_for` chooses at run time: numba on the CPU, Triton on CUDA, the reference elsewhere
and if the fast ones do not work. They are tried on a few small rows first: kernels that a compiler
got wrong would make an honest node's nonces look like fraud. Nothing heavy is imported before that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch

from pocqueue.errors import first_line
from pocqueue.poc.kernels.base import Kernels
from pocqueue.poc.kernels.reference import ReferenceKernels, norm, normal

__all__ = ["Kernels", "kernels_for"]

logger = logging.getLogger(__name__)

_chosen: dict[torch.device, Kernels] = {}
_lock = threading.Lock()


def kernels_for(device: torch.device | str) -> Kernels:
    """Return the kernels of a device, the same object in the whole process.

    The first call compiles them, or loads them from disk, and checks them: about a second, or some
    more if nothing is on disk yet.

    Args:
        device: "cuda" without an index means the calling thread's present device.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    kernels = _chosen.get(device)
    if kernels is None:
        with _lock:
            kernels = _chosen.get(device) or working_kernels(device)
            _chosen[device] = kernels
    return kernels


def fast_kernels(device: torch.device) -> Kernels | None:
    """Make the kernels that are meant for a device; None: there are none for such devices."""
    if device.type == "cpu":
        from pocqueue.poc.kernels.cpu.kernels import CpuKernels

        return CpuKernels()
    if device.type == "cuda":
        from pocqueue.poc.kernels.cuda.kernels import CudaKernels

        return CudaKernels(device)
    return None


def working_kernels(
    device: torch.device, make: Callable[[torch.device], Kernels | None] = fast_kernels
) -> Kernels:
    """Return what `make` makes if that works and agrees with the reference; otherwise that."""
    try:
        kernels = make(device)
        wrong = None if kernels is None else _disagreement(kernels, device)
    except Exception as exc:  # noqa: BLE001 - compilers and drivers can fail in any way
        kernels, wrong = None, first_line(exc)
    if wrong is not None:
        logger.warning(
            "The fast kernels for %s cannot be used, so the reference takes their place; inputs and "
            "distances are right but take many times longer. %s",
            device,
            wrong,
        )
    return kernels if kernels is not None and wrong is None else ReferenceKernels(device)


@torch.inference_mode()
def _disagreement(kernels: Kernels, device: torch.device) -> str | None:
    """Say how kernels differ from the reference on a few small rows; None if they do not."""
    reference = ReferenceKernels(device)
    seeds = [7, 2**32 - 1, 0]
    for dtype, tolerance, share in (
        # One unit in the last place of the largest numbers, 4 to 7, and how many may be off by it.
        (torch.float32, 2e-6, 1.0),
        (torch.bfloat16, 2.0**-5, 1e-3),
        (torch.float16, 2.0**-8, 1e-2),
    ):
        expected, got = (torch.zeros(len(seeds), 2999, dtype=dtype, device=device) for _ in "ab")
        reference.write_inputs(seeds, expected)
        kernels.write_inputs(seeds, got)
        off = (got.double() - expected.double()).abs()
        # Compared in this way round, so that NaN is found too.
        if not (off.max().item() <= tolerance and (off > 0).double().mean().item() <= share):
            return f"Inputs in {dtype} differ from the reference by {off.max().item():.3g}."
    vocab_size = 3001
    if not torch.equal(
        kernels.permutations(seeds, vocab_size), reference.permutations(seeds, vocab_size)
    ):
        return "Permutations differ from the reference."
    logits = torch.stack([normal(seed + 1, vocab_size, device) for seed in (5, 6, 7)])
    target = normal(1, vocab_size, device)
    target = target / norm(target)
    expected = reference.distances(logits, reference.prepare(seeds, vocab_size), target)
    got = kernels.distances(logits, kernels.prepare(seeds, vocab_size), target)
    if not bool(((got - expected).abs() <= 2e-6).all()):
        return f"Distances {got.tolist()} are {expected.tolist()} by the reference."
    k, hidden = 12, logits
    picks = reference.pick(seeds, vocab_size, k)
    if not torch.equal(kernels.pick(seeds, vocab_size, k), picks):
        return "Picks differ from the reference."
    vectors = torch.stack([normal(seed, (k - 1) * k, device) for seed in seeds]).view(-1, k - 1, k)
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    expected = reference.rotated(hidden, picks, vectors)
    got = kernels.rotated(hidden, picks, vectors)
    if not bool(((got - expected).abs() <= 2e-6).all()):
        return "Rotated vectors differ from the reference."
    return None
