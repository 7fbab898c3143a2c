"""`pocqueue engine compare` with real engines on the embedded model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Here
from tests.support.commands import pocqueue
from tests.support.vllm_parts import need_vllm

COMPARE = ("engine", "compare")
SHAPE = ("--nonces", "64", "--seq-len", "64", "--batch-size", "32")
#: Two dtypes differ in any number of nonces.
SMALL = ("--nonces", "16", "--seq-len", "16", "--batch-size", "8")


def compare(state_dir: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return pocqueue(state_dir, *COMPARE, *argv, **variables)


@pytest.mark.long
def test_torch_and_vllm_agree_on_the_embedded_model(tmp_path: Path) -> None:
    """The JSON, alone on standard output, has both engines and says that float error is all."""
    need_vllm()
    done = compare(tmp_path, "--a", "torch", "--b", "vllm", *SHAPE, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["a"]["engine"], found["b"]["engine"]) == ("torch", "vllm")
    assert found["a"]["fingerprint"] == found["b"]["fingerprint"]
    assert found["a"]["dtype"] == found["b"]["dtype"] == "bfloat16"
    assert min(found[name]["nonces_per_s"] for name in "ab") > 0
    assert (found["num_compared"], found["num_nonfinite_a"], found["num_nonfinite_b"]) == (64, 0, 0)
    assert found["relative_difference"] < 0.01
    assert found["spread_difference"] < 0.1
    assert found["num_valid_a"] == 6
    assert found["agrees"]
    assert 0 < found["max_difference"] < found["honest_difference"] < 0.004
    assert found["num_beyond"] == 0
    assert "a (torch): Loading embedded on cpu" in done.stderr
    assert "b (vllm): Loading embedded with vLLM on cpu" in done.stderr


def test_dtypes_against_each_other(here: Here) -> None:
    """Each has its own; the difference is there, and far below what spot checks take for a lie."""
    done = here(*COMPARE, "--a", "torch@float32", "--b", "torch@bfloat16", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["a"]["dtype"], found["b"]["dtype"]) == ("float32", "bfloat16")
    assert 0 < found["max_difference"] < found["honest_difference"]


def test_artifacts_of_two_dtypes(here: Here) -> None:
    """How far they are apart, and how many are beyond the threshold: exit code 1 if too many are."""
    options = ("--proof", "artifact", "--a", "torch@float32", "--b", "torch@bfloat16")
    done = here(*COMPARE, *options, *SMALL, "--k-dim", "6", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["num_compared"], found["k_dim"], found["dist_threshold"]) == (16, 6, 0.4)
    distances = found["distances"]
    assert 0 < distances["p50"] <= distances["p90"] <= distances["p98"] <= distances["max"] < 0.4
    assert (found["num_beyond"], found["share_beyond"], found["agrees"]) == (0, 0, True)

    done = here(*COMPARE, *options, *SMALL, "--dist-threshold", str(distances["p50"]))
    assert done.returncode == 1, done.stderr
    assert "Do not validate proofs of one engine with the other" in done.stdout


@pytest.mark.long
def test_a_model_that_is_not_there_ends_with_a_sentence(tmp_path: Path) -> None:
    """Raised in the engine's process, said by the command, exit code 2."""
    done = compare(tmp_path, "--b", "torch", "--model", str(tmp_path / "none"), *SHAPE)
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pocqueue: Model ")
    assert str(tmp_path / "none") in last
    assert "Traceback" not in done.stderr


def test_a_sequence_too_long_for_the_model_names_the_option(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is known once the model is loaded."""
    monkeypatch.setenv("POCQUEUE_TENSOR_PARALLEL", "2")
    done = here(*COMPARE, "--b", "torch", "--seq-len", "5000")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "pocqueue: --seq-len is 5000; allowed: 1 to 4096, the limit of model embedded."
    )
