"""Rounds of artifacts as an operator meets them: from `round start` to a verdict, on the shared pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pocqueue.rounds.proof_file import digest
from tests.support.rounds import compute
from tests.support.stack import Stack, pocqueue, pocqueue_here

SMALL = ("--seq-len", "16", "--batch-size", "8", "--public-key", "key")


@pytest.fixture(scope="module")
def artifacts(shared_stack: Stack) -> dict[str, Any]:
    """A round of the second of two groups of node 1 of 3, run to its end."""
    shared_stack.wait_live("gpu0", "gpu1")
    path = shared_stack.folder / "artifacts.json"
    done = pocqueue(
        shared_stack,
        *("round", "start", "--proof", "artifact", "--block-hash", "ARTIFACTS", *SMALL),
        *("--node-id", "1", "--node-count", "3", "--group-id", "1", "--n-groups", "2"),
        *("--k-dim", "8", "--max-nonces", "100", "--output", str(path), "--json"),
    )
    assert done.returncode == 0, done.stderr
    return {"path": path, "round": json.loads(done.stdout)}


def test_every_nonce_counts(stack: Stack, artifacts: dict[str, Any]) -> None:
    """The group's nonces, all of them, in the store and in the file; nothing is sampled before."""
    found = artifacts["round"]
    assert (found["state"], found["checked"], found["valid"]) == ("completed", 100, 100)
    content = json.loads(artifacts["path"].read_text())
    assert content["proofs"]["nonces"] == list(range(4, 4 + 6 * 100, 6))
    assert content["round"]["k_dim"] == 8
    assert sorted(stack.nonces(found["round_id"])) == content["proofs"]["nonces"]
    assert [entry["nonce"] for entry in found["best"]] == [4, 10, 16, 22, 28]


def test_a_round_of_artifacts_says_what_is_so_of_it(
    stack: Stack, artifacts: dict[str, Any]
) -> None:
    """Artifacts are counted; there is no r_target, no valid rate and nothing best."""
    round_id = artifacts["round"]["round_id"]
    shown = pocqueue_here(stack, "round", "status", round_id).stdout
    assert "k_dim              8" in shown
    assert "group              1 of 2" in shown
    assert "artifacts          100" in shown
    assert "first nonces       4 " in shown
    for word in ("r_target", "valid", "best", "random directions"):
        assert word not in shown
    lines = pocqueue_here(stack, "round", "proofs", round_id, "--limit", "3").stdout.splitlines()
    content = json.loads(artifacts["path"].read_text())["proofs"]
    assert [line.split() for line in lines] == [
        [str(content["nonces"][i]), content["vectors"][i]] for i in range(3)
    ]
    watched = pocqueue_here(stack, "round", "watch", round_id)
    assert "100 nonces  100 artifacts" in watched.stderr


def test_given_nonces_are_computed_as_in_a_round(stack: Stack, artifacts: dict[str, Any]) -> None:
    """By whatever worker has time, bit for bit, while a round searches; who asked is shown."""
    proofs = json.loads(artifacts["path"].read_text())["proofs"]
    wanted = dict(list(zip(proofs["nonces"], proofs["vectors"], strict=True))[::9])
    searching = stack.start(block_hash="meanwhile")
    stack.wait_checked(searching, 1)
    found = compute(
        stack.backend,
        [*reversed(wanted), 2**31 - 1],
        asked_by="a validator",
        timeout_s=300.0,
        scheme="artifact",
        block_hash="ARTIFACTS",
        public_key="key",
        seq_len=16,
        batch_size=8,
        k_dim=8,
    )
    assert found.missing == ""
    assert found.values.pop(2**31 - 1) not in wanted.values()
    assert found.values == wanted
    assert stack.status(searching).state.is_active
    round_id = stack.backend.store.list_ids()[-1]
    shown = pocqueue_here(stack, "round", "status", round_id).stdout
    assert "state              completed" in shown
    assert "asked for by       a validator" in shown
    assert f"nonces given       {len(wanted) + 1}, from 4 to 2147483647" in shown


def test_a_round_has_1024_positions_unless_told_otherwise(stack: Stack) -> None:
    """As in the network; inputs by the stronger RNG where they are asked for."""
    done = pocqueue(
        *(stack, "round", "start", "--proof", "artifact", "--block-hash", "long"),
        *("--batch-size", "1", "--stronger-rng", "--detach"),
    )
    assert done.returncode == 0, done.stderr
    spec = stack.status(done.stdout.strip()).spec
    assert (spec.seq_len, dict(spec.options)) == (1024, {"k_dim": 12, "stronger_rng": True})


def test_the_bounds_of_a_verdict_are_the_reader_s(
    stack: Stack, artifacts: dict[str, Any], tmp_path: Path
) -> None:
    """By name, one by one, or those of the file; an option goes before a preset."""
    content = json.loads(artifacts["path"].read_text())
    vectors = content["proofs"]["vectors"]
    # Every fifth is another nonce's: 20 of 100 mismatches.
    content["proofs"]["vectors"] = [v if i % 5 else vectors[i - 1] for i, v in enumerate(vectors)]
    content["sha256"] = digest(content)
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(content))

    def validate(path: Path, *options: str) -> tuple[int, dict[str, Any]]:
        done = pocqueue_here(stack, "round", "validate", str(path), "--json", *options)
        assert done.returncode in {0, 1}, done.stderr
        return done.returncode, json.loads(done.stdout)

    code, found = validate(artifacts["path"], "--preset", "qwen3-235b")
    assert (code, found["n"], found["n_invalid"]) == (0, 100, 0)
    bounds = ("dist_threshold", "p_mismatch", "fraud_threshold")
    assert [found[name] for name in bounds] == [0.2, 0.1, 0.05]

    code, found = validate(forged)
    assert (code, found["n_invalid"], found["fraud_detected"]) == (1, 20, True)
    assert [found[name] for name in bounds] == [0.4, 0.1, 0.01]
    code, found = validate(
        forged, "--preset", "chain", "--p-mismatch", "0.2", "--fraud-threshold", "0.001"
    )
    assert (code, found["n_invalid"]) == (0, 20)
    assert [found[name] for name in bounds] == [0.4, 0.2, 0.001]
    code, found = validate(forged, "--dist-threshold", "2")
    assert (code, found["n_invalid"]) == (0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # In this process, tests may have a scheme of their own after these.
        (("--proof", "artefact"), "--proof is 'artefact'; allowed: artifact or distance"),
        (("--proof", "artifact", "--r-target", "1"), "it is for distance alone: leave it out."),
        (("--proof", "artifact", "--valid-rate", "0.1"), "--valid-rate is 0.1, but the proof is"),
        (("--group-id", "0"), "--group-id is 0, but the proof is distance; it is for artifact"),
        (("--stronger-rng",), "--stronger-rng is True, but the proof is distance"),
        (("--proof", "artifact", "--k-dim", "65"), "--k-dim is 65; allowed: an integer from 1"),
        (("--proof", "artifact", "--group-id", "1"), "--group-id is 1; allowed: a whole number"),
    ],
)
def test_what_cannot_be_is_refused(stack: Stack, options: tuple[str, ...], words: str) -> None:
    """One sentence, code 2, no round."""
    before = stack.backend.store.list_ids()
    done = pocqueue_here(stack, "round", "start", "--block-hash", "x", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert stack.backend.store.list_ids() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--preset", "gpt"), "--preset is 'gpt'; allowed: chain, kimi-k2.6"),
        (("--p-mismatch", "0"), "--p-mismatch is 0.0; allowed: a number above 0 and below 1"),
    ],
)
def test_bounds_that_cannot_be_are_refused(
    stack: Stack, artifacts: dict[str, Any], options: tuple[str, ...], words: str
) -> None:
    """Before the model is loaded."""
    done = pocqueue_here(stack, "round", "validate", str(artifacts["path"]), *options)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_pool_finds_the_threshold_of_its_engines(stack: Stack) -> None:
    """The same nonces in batches of two sizes, many of them by two GPUs."""
    done = pocqueue(
        *(stack, "calibrate", "--proof", "artifact", "--samples", "128", "--seq-len", "16"),
        *("--batch-size", "8", "--p-mismatch", "0.2", "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    [pair] = found["pairs"]
    assert pair["runs"] == "torch float32 in batches of 8 and torch float32 in batches of 4"
    assert pair["num_compared"] == 128
    assert 0 <= pair["num_between_gpus"] <= 128
    assert found["dist_threshold"] == pair["threshold"]["high"] < 0.4
    assert (found["p_mismatch"], found["k_dim"], found["source"]) == (0.2, 12, "on the pool")


def test_a_threshold_without_a_pool(stack: Stack) -> None:
    """By the model in the command's process; too few samples are refused before it is loaded."""
    options = ("calibrate", "--local", "--proof", "artifact", "--seq-len", "16")
    done = pocqueue_here(stack, *options, "--samples", "100", "--batch-size", "20")
    assert done.returncode == 0, done.stderr
    assert "torch float32 in batches of 20 and torch float32 in batches of 10: mean" in done.stdout
    few = pocqueue_here(stack, *options, "--samples", "50")
    assert few.returncode == 2
    assert "at least 100 are needed" in few.stderr
    other = pocqueue_here(stack, *options, "--valid-rate", "0.1")
    assert other.returncode == 2
    assert "--valid-rate is 0.1, but the proof is artifact" in other.stderr
