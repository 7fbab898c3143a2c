"""`pocqueue bench` with a real vLLM of its own on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.cli.test_bench import LAST_TOKEN, PER_TOKEN, SHAPE, bench
from tests.vllm_parts import need_vllm


def test_vllm_is_measured_like_torch(tmp_path: Path) -> None:
    """The same matrices, wherever its kernels keep them; what it prints is not in the JSON."""
    need_vllm()
    done = bench(tmp_path, *SHAPE, "--batch-size", "4", "--json", POCQUEUE_ENGINE="vllm")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"]["engine"] == "vllm"
    assert found["parameters"]["per_token"] == PER_TOKEN
    assert found["parameters"]["last_token"] == LAST_TOKEN
    assert min(found["stages_s"].values()) > 0
    assert found["ratio"] > 0
    assert found["nonces_per_s"] > 0


def test_two_ranks_have_the_matrices_together(tmp_path: Path) -> None:
    """Each counts its part; a stage takes as long as on the slower one."""
    need_vllm()
    done = bench(
        tmp_path,
        *(*SHAPE, "--batch-size", "4", "--json"),
        POCQUEUE_ENGINE="vllm",
        POCQUEUE_TENSOR_PARALLEL="2",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"]["tensor_parallel"] == 2
    assert found["parameters"]["per_token"] == PER_TOKEN
    assert found["parameters"]["last_token"] == LAST_TOKEN
    assert min(found["stages_s"].values()) > 0
