"""Normal numbers of the uniform numbers that are hard: 0, 1 and quarter turns. And rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocqueue.poc.kernels import reference
from pocqueue.poc.kernels.cpu.bits import unhash
from pocqueue.poc.kernels.cpu.kernels import CpuKernels
from pocqueue.poc.kernels.cpu.normal import _float16_bits
from tests.support.murmur import murmur

FAST = CpuKernels()


def mixed(number: int) -> int:
    """Return what the hash of a number has of the number: the seed is xored with it."""
    k = number * 0xCC9E2D51 % 2**32
    return (k << 15 | k >> 17) * 0x1B873593 % 2**32


def seed_with(number: int, wanted_hash: int) -> int:
    """Return the seed with which a number has a given hash: all of the hash can be undone."""
    seed = mixed(int(unhash(np.uint32(wanted_hash), np.uint32(0)))) ^ mixed(number)
    assert murmur(number, seed) == wanted_hash
    return seed


def pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one cosine and one sine, by the kernels and by the judge."""
    out = torch.empty(1, 2)
    FAST.write_inputs([seed], out)
    return out[0], reference.normal(seed, 2, "cpu")


@pytest.mark.parametrize(
    "u1_hash", [0, 1, 2, 2**31, 0xB504F333, 0xB504F334, 2**32 - 2**8, 2**32 - 129, 2**32 - 1]
)
def test_the_radius_at_its_ends(u1_hash: int) -> None:
    """Zero is raised to 1e-10, the largest hashes round up to 1, where the logarithm is 0."""
    seed = seed_with(0, u1_hash)
    got, expected = pair(seed)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    if u1_hash == 0:
        assert got.norm().item() == pytest.approx(np.sqrt(-2 * np.log(1e-10)), rel=1e-6)
    if u1_hash == 2**32 - 1:
        assert got.abs().tolist() == [0, 0]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("step", [-1024, -129, -64, -1, 0, 1, 64, 129, 1024])
def test_angles_near_quarter_turns_keep_their_digits(quarters: int, step: int) -> None:
    """There a sine or cosine is all but 0: that of the angle that the judge has rounded to float32."""
    u2_hash = min(max(quarters * 2**30 + step, 0), 2**32 - 1)
    got, expected = pair(seed_with(1, u2_hash))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_float16_rounds_as_torch_does() -> None:
    """Every float16 that a normal number can become, both halves between neighbours, and nearby."""
    exact = torch.arange(0x4700, dtype=torch.int16).view(torch.float16).float()  # 0 … 7
    middle = (exact[1:] + exact[:-1]) / 2
    infinity = torch.tensor(torch.inf)
    positive = torch.cat(
        [exact, middle, torch.nextafter(middle, infinity), torch.nextafter(middle, -infinity)]
    )
    numbers = torch.cat([positive, -positive])
    bits = numbers.numpy().view(np.uint32)
    got = np.array([_float16_bits(word) for word in bits[::7]], dtype=np.uint16)
    expected = numbers[::7].to(torch.float16).numpy().view(np.uint16)
    np.testing.assert_array_equal(got, expected)
