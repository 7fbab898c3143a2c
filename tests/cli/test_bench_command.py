"""`pocqueue bench` with the real torch engine on the embedded model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pocqueue.engine.profiled import STAGES
from tests.cli.conftest import Here
from tests.support.commands import pocqueue

SHAPE = ("--seconds", "0.2", "--seq-len", "16")
#: Matrices of the embedded model: four layers, then the output layer.
PER_TOKEN, LAST_TOKEN = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384), 1024 * 128


def bench(state_dir: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return pocqueue(state_dir, "bench", *argv, **variables)


def test_the_embedded_model_is_measured(tmp_path: Path) -> None:
    """JSON alone on standard output: rates, stages, matrices, sweep, window."""
    done = bench(tmp_path, *SHAPE, "--sweep", "--max-batch", "4", "--r-target", "1.41", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"]["engine"] == "torch"
    assert found["parameters"] == {
        "per_token": PER_TOKEN,
        "last_token": LAST_TOKEN,
        "counts_all_experts": False,
    }
    assert found["flop_per_nonce"] == 2 * (16 * PER_TOKEN + LAST_TOKEN)
    assert tuple(found["stages_s"]) == STAGES
    assert min(found["stages_s"].values()) > 0
    assert found["ratio"] > 0
    assert 0 < found["share_of_rate"] < 1
    sizes = [point["batch_size"] for point in found["sweep"]["points"]]
    # It ends where a batch takes longer than the time for each, as one may on a busy machine.
    assert sizes in ([1], [1, 2], [1, 2, 4])
    assert found["batch_size"] == found["sweep"]["best_batch_size"]
    assert found["window"]["num_samples"] == found["num_distances"] > 0
    assert found["window"]["num_valid_low"] <= found["window"]["num_valid"]
    assert "Loading embedded on cpu" in done.stderr


def test_a_sequence_too_long_for_the_model_names_the_option(here: Here) -> None:
    """The limit is known once the model is loaded; exit code 2."""
    done = here("bench", "--seconds", "0.1", "--seq-len", "5000")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "pocqueue: --seq-len is 5000; allowed: 1 to 4096, the limit of model embedded."
    )
