"""What artifacts promise beyond golden values: independence of the batch, NaN, bad texts, bounds, imports."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from pocqueue.errors import InvalidRound
from pocqueue.poc import artifact
from pocqueue.poc.artifact import reference
from pocqueue.poc.artifact.seeds import pick_seeds
from pocqueue.poc.kernels import Kernels
from pocqueue.poc.kernels.cpu.kernels import CpuKernels
from pocqueue.poc.kernels.reference import ReferenceKernels

_BLOCK, _KEY = "a block", "a key"
_KERNELS = (CpuKernels(), ReferenceKernels(torch.device("cpu")))


def test_artifacts_do_not_depend_on_their_batch() -> None:
    """Bit for bit, in any company and order."""
    hidden = torch.randn(5, 384, generator=torch.Generator().manual_seed(1))
    together = artifact.artifact_vectors(hidden, _BLOCK, _KEY, [7, 3, 900, 4, 2**31 - 1], 12)
    for i, nonce in enumerate([7, 3, 900, 4, 2**31 - 1]):
        (alone,) = artifact.artifact_vectors(hidden[i : i + 1], _BLOCK, _KEY, [nonce], 12)
        assert torch.equal(alone, together[i])
        expected = reference.artifact(hidden[i], _BLOCK, _KEY, nonce, 12)
        assert torch.allclose(alone, expected, rtol=0, atol=3e-6)
    assert together.norm(dim=1).tolist() == pytest.approx([1] * 5, abs=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_nan_in_its_row_only(broken: float) -> None:
    """Wherever in the hidden state it stands, picked or not."""
    hidden = torch.ones(3, 64)
    picked = artifact.pick_dims(_BLOCK, _KEY, [1], 64, 12)[0].tolist()
    hidden[1, next(i for i in range(64) if i not in picked)] = broken
    vectors = artifact.artifact_vectors(hidden, _BLOCK, _KEY, [0, 1, 2], 12)
    assert vectors[1].isnan().all()
    assert vectors[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_hidden_state_is_used_as_float32(dtype: torch.dtype) -> None:
    hidden = torch.randn(2, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
    got = artifact.artifact_vectors(hidden, _BLOCK, _KEY, [1, 2], 6)
    assert torch.equal(got, artifact.artifact_vectors(hidden.float(), _BLOCK, _KEY, [1, 2], 6))


@pytest.mark.parametrize("k_dim", [0, -1, 65])
def test_impossible_numbers_of_dimensions_are_refused(k_dim: int) -> None:
    with pytest.raises(InvalidRound, match="k_dim"):
        artifact.pick_dims(_BLOCK, _KEY, [1], 64, k_dim)
    for kernels in _KERNELS:
        with pytest.raises(InvalidRound, match="k_dim"):
            kernels.pick([7], 64, k_dim)


def test_every_nonce_needs_a_hidden_state() -> None:
    with pytest.raises(InvalidRound, match="nonces"):
        artifact.artifact_vectors(torch.ones(2, 64), _BLOCK, _KEY, [1], 12)


def test_a_reflection_undoes_itself_and_keeps_norms() -> None:
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(3))
    (v,) = artifact.layer_vectors(_BLOCK, 1, 128)
    once = artifact.reflect(x, v)
    assert torch.allclose(once.norm(dim=-1), x.norm(dim=-1), rtol=1e-4)
    assert torch.allclose(artifact.reflect(once, v), x, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("text", ["", "AAA", "====", "AA==", "not base64", "AAAA\nAAAA", "ä"])
def test_texts_that_are_no_artifact_are_mismatches(text: str) -> None:
    computed = torch.ones(12) / math.sqrt(12)
    assert artifact.is_mismatch(computed, text, 2.5, 12)


@pytest.mark.parametrize("text", ["AAA", "AA==", "not base64", "ä"])
def test_texts_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="vector_b64"):
        artifact.decode_vector(text)


def test_the_threshold_itself_is_no_mismatch() -> None:
    computed, received = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.0])
    text = artifact.encode_vector(received)
    assert not artifact.is_mismatch(computed, text, 0.5, 2)
    assert artifact.is_mismatch(computed, text, 0.499, 2)


def test_a_vector_that_could_not_be_computed_matches_nothing() -> None:
    text = artifact.encode_vector(torch.ones(12))
    assert artifact.is_mismatch(torch.full((12,), torch.nan), text, 2.5, 12)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (1023, 12), (1025, 64), (3000, 65), (70, 70)])
def test_picks_are_the_references(n: int, k: int) -> None:
    """Compiled and by a sort, nonce by nonce."""
    nonces = [0, 1, 2**31 - 1, 77]
    expected = torch.stack([reference.pick(_BLOCK, _KEY, nonce, n, k) for nonce in nonces])
    seeds = pick_seeds(_BLOCK, _KEY, nonces, k)
    for kernels in _KERNELS:
        assert torch.equal(kernels.pick(seeds, n, k), expected)


def test_a_pick_of_large_hashes() -> None:
    """Those of these seeds are all above what the smallest one nearly always is."""
    seeds = [11118, 7, 69240]
    expected = _KERNELS[1].pick(seeds, 512, 1)
    assert torch.equal(_KERNELS[0].pick(seeds, 512, 1), expected)


@pytest.mark.parametrize(("n", "k"), [(7168, 12), (1, 1), (12, 12), (1025, 64), (3000, 65)])
def test_artifacts_are_the_references(n: int, k: int) -> None:
    """By compiled kernels and by torch, as for CUDA, nonce by nonce; a row alone is the same bit for bit."""
    nonces = [0, 5, 2**31 - 1, 900]
    hidden = torch.randn(4, n, generator=torch.Generator().manual_seed(4)) * torch.tensor(
        [[1e-6], [1.0], [1e6], [0.0]]
    )
    names = (_BLOCK, _KEY)
    expected = [reference.artifact(hidden[i], *names, nonces[i], k) for i in range(4)]
    dims = torch.stack([reference.pick(*names, nonce, n, k) for nonce in nonces])
    vectors = torch.stack([reference.rotation(*names, nonce, k) for nonce in nonces])
    for kernels in _KERNELS:
        found = kernels.rotated(hidden, dims, vectors)
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=3e-6)
        for i in range(4):
            alone = kernels.rotated(hidden[i : i + 1], dims[i : i + 1], vectors[i : i + 1])
            assert torch.equal(alone[0], found[i])


@pytest.mark.parametrize("kernels", _KERNELS, ids=lambda kernels: kernels.name)
def test_hidden_states_of_any_strides(kernels: Kernels) -> None:
    """They are used where they are, and stay as they were."""
    wide = torch.randn(6, 128, generator=torch.Generator().manual_seed(5))
    before, names = wide.clone(), (_BLOCK, _KEY)
    dims = torch.stack([reference.pick(*names, nonce, 64, 6) for nonce in range(3)])
    vectors = torch.stack([reference.rotation(*names, nonce, 6) for nonce in range(3)])
    expected = kernels.rotated(wide[::2, ::2].clone(), dims, vectors)
    columns = [part.mT.contiguous().mT for part in (dims, vectors)]
    for others in ((dims, vectors), columns):
        found = kernels.rotated(wide[::2, ::2], *others)
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)
    assert torch.equal(wide, before)


@pytest.mark.parametrize("n", [1, 7, 8, 64, 65, 71])
def test_pieces_are_rows_of_their_own(n: int) -> None:
    """Also where a row cannot be divided by eight."""
    kernels, words = CpuKernels(), [list(range(8)), list(range(100, 108))]
    out = torch.empty(2, n)
    kernels.write_pieces(words, out)
    piece = -(-n // 8)
    for row, seeds in zip(out, words, strict=True):
        for part, seed in zip(row.split(piece), seeds, strict=False):
            expected = torch.empty(1, len(part))
            kernels.write_inputs([seed], expected)
            assert torch.equal(part, expected[0])


def test_importing_the_scheme_imports_no_torch() -> None:
    code = "import sys, pocqueue.poc.artifact, pocqueue.poc.artifact.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
