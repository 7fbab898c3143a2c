"""The artifact's maths against every golden value of `tests/data/artifact_golden.json`, from an independent implementation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocqueue.poc import artifact
from pocqueue.poc.artifact import reference, seeds
from pocqueue.poc.seeds import input_seeds, input_words, seed

_DATA = Path(__file__).parents[2] / "data"
_GOLDEN: dict[str, Any] = json.loads((_DATA / "artifact_golden.json").read_text(encoding="utf-8"))
_OTHERS: list[dict[str, Any]] = json.loads((_DATA / "rng_golden.json").read_text(encoding="utf-8"))
#: A case and one of its nonces.
every_nonce = pytest.mark.parametrize(
    ("case", "golden"),
    [
        pytest.param(case, golden, id=f"{case['name']}, nonce {golden['nonce']}")
        for case in _GOLDEN["cases"]
        for golden in case["nonces"]
    ],
)


def names(case: dict[str, Any]) -> tuple[str, str]:
    return case["block_hash"], case["public_key"]


def hidden_state(case: dict[str, Any], index: int) -> torch.Tensor:
    """Return the made-up hidden state of the file, float32 ``[dim]``."""
    j = np.arange(case["dim"], dtype=np.float64)
    h = np.sin(0.37 * j + 1.3 * index) + 0.25 * np.cos(0.011 * j * (index + 1))
    return torch.from_numpy(h.astype(np.float32))


def assert_close(got: Any, expected: list[float], tolerance: float) -> None:
    assert len(got) == len(expected)
    assert max(map(abs, np.subtract(list(map(float, got)), expected)), default=0) <= tolerance


@every_nonce
def test_seeds(case: dict[str, Any], golden: dict[str, Any]) -> None:
    nonces, k_dim, expected = [golden["nonce"]], case["k_dim"], golden["seeds"]
    assert input_seeds(*names(case), nonces) == [expected["input_seed"]]
    assert input_words(*names(case), nonces) == [expected["sub_seeds"]]
    assert seeds.token_seeds(*names(case), nonces) == [expected["input_ids_seed"]]
    assert seeds.pick_seeds(*names(case), nonces, k_dim) == [expected["pick_seed"]]
    assert seeds.rotation_seeds(*names(case), nonces, k_dim) == expected["haar_seeds"]
    assert seed(expected["input_text"]) == expected["input_seed"]
    assert seed(expected["input_ids_text"]) == expected["input_ids_seed"]
    assert seed(expected["pick_text"]) == expected["pick_seed"]


@every_nonce
@pytest.mark.parametrize("kind", ["legacy", "stronger"])
def test_inputs(case: dict[str, Any], golden: dict[str, Any], kind: str) -> None:
    expected = golden["inputs"][kind]
    stronger = kind == "stronger"
    shape = (*names(case), [golden["nonce"]], case["dim"], case["seq_len"], "cpu")
    flat = artifact.generate_inputs(*shape, stronger_rng=stronger)[0].flatten()
    assert_close(flat[: len(expected["first"])], expected["first"], 2e-6)
    assert_close(flat[-len(expected["last"]) :], expected["last"], 2e-6)
    assert abs(flat.double().mean().item() - expected["mean"]) <= 1e-5
    assert abs(flat.double().square().mean().item() - expected["square_mean"]) <= 1e-5
    if stronger:
        assert expected["piece"] == math.ceil(len(flat) / 8)
        assert_close(flat[expected["at"]], expected["at_values"], 2e-6)
        by_reference = reference.inputs(*names(case), golden["nonce"], len(flat))
        assert torch.allclose(flat, by_reference, rtol=0, atol=2e-6)
    for dtype in (torch.bfloat16, torch.float16):
        bits = expected.get(f"{str(dtype).removeprefix('torch.')}_bits_first")
        if bits is not None:
            rounded = artifact.generate_inputs(*shape, dtype, stronger_rng=stronger).flatten()
            got = rounded[: len(bits)].view(torch.int16).tolist()
            assert [f"{value & 0xFFFF:04x}" for value in got] == bits


@every_nonce
def test_token_ids(case: dict[str, Any], golden: dict[str, Any]) -> None:
    expected, sizes = golden["input_ids"], (case["seq_len"], case["vocab"])
    (ids,) = artifact.pseudo_input_ids(*names(case), [golden["nonce"]], *sizes)
    assert ids.dtype == torch.int32
    assert ids[: len(expected["first"])].tolist() == expected["first"]
    assert ids[-len(expected["last"]) :].tolist() == expected["last"]
    assert ids.sum().item() == expected["sum"]
    assert torch.equal(ids, reference.token_ids(*names(case), golden["nonce"], *sizes))


def test_published_token_ids() -> None:
    """Those that ten thousand nodes' convention was fixed with."""
    texts = ("poc_ids_convention_v1_block", "poc_ids_convention_v1_pubkey")
    assert seeds.token_seeds(*texts, [0]) == [2980507924]
    ids = artifact.pseudo_input_ids(*texts, [0], 4, 163840)
    assert ids.tolist() == [[119046, 160019, 98337, 39450]]


@every_nonce
def test_picked_dimensions(case: dict[str, Any], golden: dict[str, Any]) -> None:
    """In the network's order, which is neither that of the hashes nor quite ascending."""
    sizes = (case["dim"], case["k_dim"])
    dims = artifact.pick_dims(*names(case), [golden["nonce"]], *sizes)
    assert dims.dtype == torch.int64
    assert dims.tolist() == [golden["picked"]]
    assert reference.pick(*names(case), golden["nonce"], *sizes).tolist() == golden["picked"]


@every_nonce
def test_rotation(case: dict[str, Any], golden: dict[str, Any]) -> None:
    k_dim = case["k_dim"]
    vectors = artifact.haar_vectors(*names(case), golden["nonce"], k_dim)
    assert vectors.shape == (k_dim - 1, k_dim)
    if k_dim > 1:
        assert_close(vectors[0], golden["haar_vectors"]["first"], 2e-6)
        assert_close(vectors[-1], golden["haar_vectors"]["last"], 2e-6)
    by_reference = reference.rotation(*names(case), golden["nonce"], k_dim)
    assert torch.allclose(vectors, by_reference, rtol=0, atol=2e-6)
    rows = torch.eye(k_dim)
    for v in vectors:
        rows = artifact.reflect(rows, v)
    # Row i is the image of the i-th unit vector: the matrix transposed.
    if matrix := golden.get("haar_matrix"):
        assert torch.allclose(rows.T, torch.tensor(matrix), rtol=0, atol=3e-6)


@every_nonce
def test_artifact(case: dict[str, Any], golden: dict[str, Any]) -> None:
    """From a hidden state to the text that travels."""
    hidden = hidden_state(case, golden["state_index"])
    assert_close(hidden[:3], golden["hidden"]["first"], 1e-6)
    arguments = (*names(case), [golden["nonce"]], case["k_dim"])
    (vector,) = artifact.artifact_vectors(hidden[None], *arguments)
    assert_close(vector, golden["vector"], 3e-6)
    by_reference = reference.artifact(hidden, *names(case), golden["nonce"], case["k_dim"])
    assert torch.allclose(vector, by_reference, rtol=0, atol=3e-6)
    assert_close(
        artifact.decode_vector(artifact.encode_vector(vector)),
        artifact.decode_vector(golden["vector_b64"]).tolist(),
        1e-3,
    )
    assert artifact.encode_vector(torch.tensor(golden["vector"])) == golden["vector_b64"]


@pytest.mark.parametrize("case", _OTHERS, ids=[case["block_hash"] for case in _OTHERS])
def test_values_of_another_implementation(case: dict[str, Any]) -> None:
    """Its rotated values start from numbers that its file does not hold."""
    arguments, dim = (*names(case), case["nonces"]), case["dim"]
    stronger = artifact.generate_inputs(*arguments, dim, case["seq_len"], "cpu", stronger_rng=True)
    for row, expected in zip(stronger.flatten(1), case["strong_inputs_first8"], strict=True):
        assert_close(row[:8], expected, 2e-6)
    picked = artifact.pick_dims(*arguments, dim, case["k_dim"]).sort(dim=1).values
    assert picked.tolist() == case["picked_indices_sorted"]
    (layer,) = artifact.layer_vectors(case["block_hash"], 1, dim)
    assert_close(layer[:8], case["householder_first8"], 1e-6)


def _rows(dtype: torch.dtype) -> torch.Tensor:
    """Return the made-up activations of the file, ``[rows, dim]``."""
    layers = _GOLDEN["layers"]
    j, t = np.arange(layers["dim"], dtype=np.float64), np.arange(layers["rows"])[:, None]
    x = 1.5 * np.sin(0.05 * j + 0.7 * t) + 0.3 * np.cos(0.013 * j * (t + 2))
    return torch.from_numpy(x.astype(np.float32)).to(dtype)


def _assert_ends(got: torch.Tensor, expected: list[dict[str, list[float]]]) -> None:
    for row, ends in zip(got.float(), expected, strict=True):
        for part, values in ((row[:3], ends["first"]), (row[-3:], ends["last"])):
            # One unit in the last place of numbers up to 2, or 5e-6.
            tolerance = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(got.dtype, 5e-6)
            assert_close(part, values, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reflections_between_layers(dtype: torch.dtype) -> None:
    layers = _GOLDEN["layers"]
    num_layers = 1 + max(golden["layer"] for golden in layers["layers"])
    vectors = artifact.layer_vectors(layers["block_hash"], num_layers, layers["dim"])
    by_reference = reference.layers(layers["block_hash"], num_layers, layers["dim"])
    assert torch.allclose(vectors, by_reference, rtol=0, atol=2e-6)
    for golden in layers["layers"]:
        assert seed(golden["text"]) == golden["seed"]
        vector = vectors[golden["layer"]]
        assert_close(vector[:4], golden["vector"]["first"], 2e-6)
        assert_close(vector[-4:], golden["vector"]["last"], 2e-6)
        if expected := golden.get("reflected"):
            name = str(dtype).removeprefix("torch.")
            _assert_ends(artifact.reflect(_rows(dtype), vector), expected[name])
    chain = layers["chain_of_layers_0_1_2"].get(str(dtype).removeprefix("torch."))
    if chain is not None:
        hidden, residual = _rows(dtype), (0.5 * _rows(torch.float32)).to(dtype)
        for vector in vectors[:3]:
            hidden, residual = (artifact.reflect(x, vector) for x in (hidden, residual))
        _assert_ends(hidden, chain["hidden"])
        _assert_ends(residual, chain["residual"])


@pytest.mark.parametrize("golden", _GOLDEN["verdicts"], ids=str)
def test_verdicts(golden: dict[str, Any]) -> None:
    p_value, fraud = artifact.judge(
        golden["n_total"], golden["n_mismatch"], golden["p_mismatch"], golden["fraud_threshold"]
    )
    assert p_value == pytest.approx(golden["p_value"], rel=1e-9)
    assert fraud is golden["fraud"]


@pytest.mark.parametrize("golden", _GOLDEN["pairs"], ids=lambda golden: golden.get("why", ""))
def test_pairs(golden: dict[str, Any]) -> None:
    computed = artifact.decode_vector(golden["computed_b64"])
    arguments = (golden["received_b64"], golden["dist_threshold"], len(computed))
    assert artifact.is_mismatch(computed, *arguments) is golden["mismatch"]
    if "distance" in golden:
        received = artifact.decode_vector(golden["received_b64"])
        assert (computed - received).norm().item() == pytest.approx(golden["distance"], abs=2e-6)
