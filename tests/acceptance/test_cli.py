"""The command line as its users meet it, on the shared pool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pocqueue.rounds.spec import RoundState
from tests.support.stack import QUICK, Stack, pocqueue, pocqueue_here

SMALL = ("--seq-len", "16", "--batch-size", "8", "--public-key", "key")


@pytest.fixture(scope="module")
def proofs(shared_stack: Stack) -> dict[str, Any]:
    """A round that was run to its end with `round start --json --output`."""
    shared_stack.wait_live("gpu0", "gpu1")
    path = shared_stack.folder / "proofs.json"
    done = pocqueue(
        shared_stack,
        *("round", "start", "--block-hash", "cli", "--block-height", "7", "--valid-rate", "0.2"),
        *(*SMALL, "--max-nonces", "600", "--output", str(path), "--json"),
    )
    assert done.returncode == 0, done.stderr
    return {"path": path, "round": json.loads(done.stdout)}


def test_a_round_from_start_to_proofs_file(stack: Stack, proofs: dict[str, Any]) -> None:
    """`round start --json` says how it went; the file has every valid nonce of the store."""
    found = proofs["round"]
    assert (found["state"], found["checked"]) == ("completed", 600)
    assert found["spec"]["expected_valid_rate"] == 0.2
    assert 60 <= found["valid"] <= 180
    assert found["proofs_file"] == str(proofs["path"])
    content = json.loads(proofs["path"].read_text())
    assert sorted(content["proofs"]["nonces"]) == sorted(stack.nonces(found["round_id"]))
    assert content["proofs"]["block_height"] == 7
    best = [entry["dist"] for entry in found["best"]]
    assert best == sorted(content["proofs"]["dist"])[: len(best)]


def test_a_round_without_a_target_finds_one(stack: Stack) -> None:
    """A block is all that a round takes; what was chosen is said, and the id is alone on standard output."""
    done = pocqueue(stack, "round", "start", "--block-hash", "plain", "--detach", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "No --r-target was given: 10.00 % of the nonces are to be valid." in done.stderr
    assert "makes 10.00 % of them valid" in done.stderr
    spec = stack.status(done.stdout.strip()).spec
    assert spec.expected_valid_rate == 0.1
    both = pocqueue_here(
        *(stack, "round", "start", "--block-hash", "plain"), "--r-target=1", "--valid-rate=0.1"
    )
    assert both.returncode == 2
    assert "--r-target is 1 and --valid-rate is 0.1; allowed: one of them" in both.stderr


def test_validation_of_an_honest_file(stack: Stack, proofs: dict[str, Any]) -> None:
    """Recomputing the file's proofs finds nothing: exit code 0."""
    done = pocqueue_here(stack, "round", "validate", str(proofs["path"]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Honest: ")


def test_validation_of_made_up_proofs(stack: Stack, proofs: dict[str, Any], tmp_path: Path) -> None:
    """Nonces that were never searched are fraud: one sentence, exit code 1."""
    from pocqueue.rounds.proof_file import digest

    content = json.loads(proofs["path"].read_text())
    proven = content["proofs"]["nonces"]
    content["proofs"]["nonces"] = sorted(set(range(600)) - set(proven))[: len(proven)]
    content.pop("sha256")
    content["sha256"] = digest(content)
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(content))
    done = pocqueue_here(stack, "round", "validate", str(forged))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("Fraud: ")


def test_status_list_and_proofs_of_a_round(stack: Stack, proofs: dict[str, Any]) -> None:
    """A round is found by how its id begins, and shown in words and in JSON."""
    round_id = proofs["round"]["round_id"]
    shown = pocqueue(stack, "round", "status", round_id[:8])
    assert shown.returncode == 0
    assert "600 in 75 batches" in shown.stdout
    assert "expected 20.00 % (calibrated)" in shown.stdout
    status = json.loads(pocqueue_here(stack, "round", "status", round_id, "--json").stdout)
    assert status["coverage"] == [[0, 600]]
    assert round_id in pocqueue_here(stack, "round", "list").stdout
    lines = pocqueue_here(stack, "round", "proofs", round_id, "--limit", "3").stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == [
        entry["nonce"] for entry in proofs["round"]["best"][:3]
    ]


def test_detached_round_is_stopped_by_name(stack: Stack) -> None:
    """`--detach` prints the id alone; `round stop` ends the round, and again says it is over."""
    done = pocqueue(
        stack, "round", "start", "--block-hash", "d", "--r-target", "2", "--detach", *SMALL
    )
    round_id = done.stdout.strip()
    stack.wait_checked(round_id, 1)
    stopped = pocqueue(stack, "round", "stop", round_id)
    assert (stopped.returncode, stack.status(round_id).state) == (0, RoundState.STOPPED)
    assert "stopped" in stopped.stdout
    assert "over already" in pocqueue_here(stack, "round", "stop", round_id).stdout


def test_gpus_lists_the_pool(stack: Stack) -> None:
    """Queue, host, device, model, engine, rate, load and last seen of each GPU."""
    found = json.loads(pocqueue(stack, "gpus", "--json").stdout)
    assert [(gpu["queue"], gpu["is_live"]) for gpu in found] == [("gpu0", True), ("gpu1", True)]
    assert all(gpu["rates"] and gpu["info"]["model"] == "embedded" for gpu in found)
    table = pocqueue_here(stack, "gpus").stdout
    for word in ("gpu0", "gpu1", "embedded", "torch", "live", "ago"):
        assert word in table


class Watcher:
    """`round start` in the foreground, with its terminal output at hand."""

    def __init__(self, stack: Stack, block: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pocqueue", "round", "start", "--block-hash", block),
                *("--r-target", "2", "--window", "900", *SMALL),
            ],
            env=stack.env,
            cwd=stack.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            self.lines.extend(stdout)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def ctrl_c(self) -> None:
        os.kill(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        code = self.process.wait(timeout=300)
        self._reader.join(timeout=300)
        return code


def _active_round(stack: Stack, block: str) -> str:
    def find() -> list[str]:
        ids = stack.backend.store.active_ids()
        return [i for i in ids if stack.status(i).spec.block_hash == block]

    stack.wait(find, f"the round of block {block}")
    return find()[0]


def test_one_ctrl_c_leaves_the_round_running(stack: Stack) -> None:
    """The view ends and says that the round goes on and how to stop it."""
    watcher = Watcher(stack, "leave")
    round_id = _active_round(stack, "leave")
    stack.wait(lambda: "round" in watcher.text, "the view")
    watcher.ctrl_c()
    assert watcher.end() == 130
    assert "The round goes on" in watcher.text
    assert f"pocqueue round stop {round_id}" in watcher.text
    assert stack.status(round_id).state is RoundState.ACTIVE


def test_two_ctrl_c_stop_the_round(stack: Stack) -> None:
    """The second one stops the round; its proofs are written and shown."""
    watcher = Watcher(stack, "stop")
    round_id = _active_round(stack, "stop")
    stack.wait_checked(round_id, 1)
    watcher.ctrl_c()
    stack.wait(lambda: "The round goes on" in watcher.text, "the first answer")
    watcher.ctrl_c()
    assert watcher.end() == 0
    assert stack.status(round_id).state is RoundState.STOPPED
    assert "proofs written to" in watcher.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seq-len", "99999"), ("--seq-len is 99999", "1 to 4096", "embedded")),
        (("--model", "gpt"), ("asked for 'gpt'", "deployed is embedded")),
    ],
)
def test_what_the_pool_cannot_do_is_refused(
    stack: Stack, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """One sentence with what was given and what is allowed; no round is made."""
    before = stack.backend.store.list_ids()
    done = pocqueue_here(stack, "round", "start", "--block-hash", "x", "--r-target", "1", *options)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert stack.backend.store.list_ids() == before


@pytest.mark.long
def test_a_queue_with_a_live_worker_takes_no_second_one(stack: Stack) -> None:
    """The second worker ends with code 2 and says who has the queue."""
    second = stack.spawn("second", "celery", "-A", "pocqueue", "worker", "-Q", "gpu0", env=QUICK)
    del stack.processes["second"]
    assert second.wait(timeout=300) == 2
    assert "Queue gpu0 is served by a live worker already" in stack.log("second").read_text()


def test_a_queue_without_its_gpu_is_refused(stack: Stack) -> None:
    """A CUDA device that this machine does not have: one sentence, code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "pocqueue", "worker", "-Q", "gpu7"],
        env=stack.env | {"POCQUEUE_DEVICE": "cuda:7"},
        cwd=stack.folder,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "pocqueue: " in done.stderr
    assert "Traceback" not in done.stderr
