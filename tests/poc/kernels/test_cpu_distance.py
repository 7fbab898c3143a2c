"""Reading logits of half precision, and where the shorter formula of a distance fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocqueue.poc.kernels.cpu.distance import _widened
from pocqueue.poc.kernels.cpu.kernels import CpuKernels
from pocqueue.poc.kernels.cpu.normal import BFLOAT16, FLOAT16
from pocqueue.poc.kernels.reference import norm, normal, permutation

FAST = CpuKernels()
N, SEED = 4096, 9


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, BFLOAT16), (torch.float16, FLOAT16)])
def test_half_precision_is_read_exactly(dtype: torch.dtype, kind: int) -> None:
    """Every 16 bits there are; what is infinite counts as not a number, as a distance would be."""
    bits = torch.arange(2**16).to(torch.int16)
    expected = bits.view(dtype).float()
    if dtype == torch.float16:
        expected[expected.isinf()] = torch.nan
    got = [_widened(np.uint16(word), kind) for word in range(2**16)]
    np.testing.assert_array_equal(np.array(got, dtype=np.float32), expected.numpy())


def logits_at(wanted: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return logits (float32) that are so far from a target, the target, and how far exactly."""
    target = normal(1, N, "cpu")
    target = target / norm(target)
    exact = target.double() / target.double().norm()
    aside = normal(2, N, "cpu").double()
    aside -= (aside @ exact) * exact
    angle = 2 * np.arcsin(wanted / 2)
    permuted = (30 * (np.cos(angle) * exact + np.sin(angle) * aside / aside.norm())).float()
    difference = permuted.double() / permuted.double().norm() - target.double()
    logits = torch.empty(1, N)
    logits[0, permutation(SEED, N, "cpu")] = permuted
    return logits, target, float(difference.norm())


@pytest.mark.parametrize("wanted", [2.0, 1.0, 1e-1, 1e-2, 1e-4, 1e-6, 0.0])
def test_a_distance_has_all_of_float32s_digits(wanted: float) -> None:
    """Seven of them, however small it is."""
    logits, target, exact = logits_at(wanted)
    got = FAST.distances(logits, FAST.prepare([SEED], N), target).item()
    assert got == pytest.approx(exact, rel=1e-7, abs=0)


@pytest.mark.parametrize(
    ("wanted", "lost_in_float32", "lost_in_float64"),
    [(1.0, False, False), (1e-2, True, False), (1e-3, True, True), (1e-4, True, True)],
)
def test_where_the_root_of_2_less_2_dots_loses_digits(
    wanted: float, lost_in_float32: bool, lost_in_float64: bool
) -> None:
    """More than 2e-6: in float32 below a tenth, in float64 below a hundredth.

    float64 does not help by itself, as the norm of a float32 target is not exactly 1.
    """
    logits, target, exact = logits_at(wanted)
    permuted = logits[0, permutation(SEED, N, "cpu")]

    def off(dtype: torch.dtype) -> float:
        values = permuted.to(dtype)
        dot = (values / torch.linalg.vector_norm(values)) @ target.to(dtype)
        shorter: float = (2 - 2 * dot).clamp(min=0).sqrt().item()
        return abs(shorter - exact)

    assert (off(torch.float32) > 2e-6) == lost_in_float32
    assert (off(torch.float64) > 2e-6) == lost_in_float64
