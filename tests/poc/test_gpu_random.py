"""What the golden values cannot show: edges of the arithmetic, independence, distances, devices."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from pocqueue.errors import InvalidRound
from pocqueue.poc.gpu_random import (
    compute_distances,
    generate_inputs,
    generate_permutations,
    generate_target,
    hash,
    logits_to_distances,
    normal,
    seed,
    uniform,
)

on_every_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ],
)


def test_seed_is_the_first_eight_hex_digits() -> None:
    """Also of text that is not ASCII."""
    for text in ("", "hash1_target", "pk-β"):
        assert seed(text) == int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


@on_every_device
@pytest.mark.parametrize(("seq_len", "dim"), [(1, 1), (7, 33), (16, 128), (256, 128)])
def test_inputs_do_not_depend_on_the_batch(device: str, seq_len: int, dim: int) -> None:
    """Alone, among others and in another place, a nonce has the same numbers bit for bit."""
    nonces = [3, 2**40, *range(100, 115), 2**63 - 1]
    batch = generate_inputs("b", "p", nonces, dim, seq_len, device)
    reverse = generate_inputs("b", "p", nonces[::-1], dim, seq_len, device)
    assert torch.equal(batch, reverse.flip(0))
    for i, nonce in enumerate(nonces):
        assert torch.equal(batch[i], generate_inputs("b", "p", [nonce], dim, seq_len, device)[0])


def test_inputs_are_cast_from_float32() -> None:
    """Half precision rounds the same numbers, and all of them."""
    full = generate_inputs("b", "p", [5, 6], 8, 4, "cpu")
    half = generate_inputs("b", "p", [5, 6], 8, 4, "cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.to(torch.bfloat16))


def test_inputs_of_no_nonces_are_empty() -> None:
    """An empty batch has a shape all the same."""
    assert generate_inputs("b", "p", [], 8, 4, "cpu").shape == (0, 4, 8)


@on_every_device
@given(data=st.data(), batch=st.integers(1, 5), vocab_size=st.integers(2, 200))
@settings(deadline=None, max_examples=30)
def test_distances_agree_with_float64(
    device: str, data: st.DataObject, batch: int, vocab_size: int
) -> None:
    """An independent computation in float64 numpy gives the same distances to float32's digits."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(3, 10, (batch, vocab_size)).astype(np.float32)
    permutations = np.stack([rng.permutation(vocab_size) for _ in range(batch)])
    target = rng.normal(size=vocab_size)
    target = (target / np.linalg.norm(target)).astype(np.float32)
    unit = logits.astype(np.float64) / np.linalg.norm(logits.astype(np.float64), axis=1)[:, None]
    expected = [
        np.linalg.norm(row[order] - target) for row, order in zip(unit, permutations, strict=True)
    ]
    got = compute_distances(
        torch.from_numpy(logits).to(device),
        torch.from_numpy(permutations).to(device),
        torch.from_numpy(target).to(device),
    )
    assert got.shape == (batch,)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.cpu(), expected, rtol=0, atol=2e-6)


def test_distances_span_zero_to_two() -> None:
    """Logits along the target are at 0, against it at 2, across it at sqrt(2)."""
    target = torch.tensor([1.0, 0.0, 0.0])
    logits = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    same = torch.arange(3).repeat(3, 1)
    assert compute_distances(logits, same, target).tolist() == pytest.approx([0, 2, np.sqrt(2)])


def test_distance_follows_the_permutation_and_leaves_logits_alone() -> None:
    """The logit at permutation[i] is compared with target[i]; the input is not changed."""
    target = torch.tensor([0.0, 0.0, 1.0])
    logits = torch.tensor([[0.0, 4.0, 0.0]])
    assert compute_distances(logits, torch.tensor([[0, 2, 1]]), target).item() == 0.0
    assert logits.tolist() == [[0.0, 4.0, 0.0]]


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_logits_without_a_direction_have_no_distance(bad: float) -> None:
    """All zero, NaN and infinite logits give NaN, and only in their own row."""
    logits = torch.tensor([[1.0, 2.0], [bad, bad]])
    distances = compute_distances(logits, torch.tensor([[0, 1], [0, 1]]), torch.tensor([1.0, 0.0]))
    assert torch.isfinite(distances).tolist() == [True, False]


@pytest.mark.parametrize("num_logits", [63, 65])
def test_another_vocabulary_is_refused(num_logits: int) -> None:
    """More logits than the round's vocabulary are not cut off quietly."""
    target = generate_target("b", 64, "cpu")
    with pytest.raises(InvalidRound, match="vocab_size is 64"):
        logits_to_distances("b", "p", [1], torch.randn(1, num_logits), target)


@on_every_device
def test_logits_to_distances_is_both_steps(device: str) -> None:
    """The one call gives what permutation and distance give."""
    logits = torch.stack([normal(seed, 50, device) for seed in (1, 2)])
    target = generate_target("b", 50, device)
    permutations = generate_permutations("b", "p", [4, 9], 50, device)
    expected = compute_distances(logits, permutations, target)
    got = logits_to_distances("b", "p", [4, 9], logits, target)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    """Integers exactly, floats to their last digits."""
    for n in (1, 33, 32768):
        bits = hash(1, n, "cuda").cpu()
        assert torch.equal(bits, hash(1, n, "cpu"))
        assert torch.equal(uniform(3, n, "cuda").cpu(), uniform(3, n, "cpu"))
        torch.testing.assert_close(
            normal(3, n, "cuda").cpu(), normal(3, n, "cpu"), rtol=1e-5, atol=2e-6
        )
    order = generate_permutations("b", "p", [1, 2], 151936, "cuda").cpu()
    assert torch.equal(order, generate_permutations("b", "p", [1, 2], 151936, "cpu"))
