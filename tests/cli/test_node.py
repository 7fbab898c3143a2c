"""`pocqueue node serve` and `status` as commands: what they need, say and leave with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner
from typing_extensions import override

from pocqueue.cli import app
from pocqueue.errors import InvalidRound, NodeError, SettingsError
from pocqueue.node import trial
from pocqueue.node.keys import SigningKey
from pocqueue.settings import DELEGATION_PREFIX
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, wait_for_line, wait_until

SERVE = [sys.executable, "-m", "pocqueue", "node", "serve"]
TOKEN = "a-token-of-the-tests-123"


@pytest.fixture
def env(child_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a node with a key and nothing to work with."""
    SigningKey.generate().save_pem(tmp_path / "node-key.pem")
    env = {k: v for k, v in child_env.items() if not k.startswith(DELEGATION_PREFIX)}
    return env | {"POCQUEUE_NODE_WORK": "none", "POCQUEUE_NODE_PORT": "0"}


def refusal(env: dict[str, str], *argv: str) -> str:
    """Return the sentence that `serve` leaves with."""
    done = subprocess.run([*SERVE, *argv], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("pocqueue: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_node_serves_until_it_is_told_to_end(env: dict[str, str], tmp_path: Path) -> None:
    """With a config.env as operators have it; the log says where it is, and has no token."""
    config = tmp_path / "config.env"
    config.write_text(
        "# small node\nexport DELEGATION_URL=http://127.0.0.1:9\n"
        f"export DELEGATION_AUTH_TOKEN={TOKEN}\n"
    )
    log = tmp_path / "node.log"
    argv = [*SERVE, "--env-file", str(config)]
    with log.open("wb") as out, subprocess.Popen(argv, env=env, stderr=out) as process:
        try:
            found = wait_for_line(log, r"on (http://127\.0\.0\.1:\d+): DELEGATION on")
            url = found[1]
            wait_until(lambda: answers(url), message="an answer")
            shown = CliRunner().invoke(app, ["node", "status", "--url", url])
            assert shown.exit_code == 0
            assert "STOPPED" in shown.output
            assert "delegation, 0 GPUs" in shown.output
            as_json = CliRunner().invoke(app, ["node", "status", "--url", url, "--json"])
            status = json.loads(as_json.output)
            assert (status["status"], status["delegation_mode"]) == ("STOPPED", True)
            assert status["signer"] == SigningKey.load(tmp_path / "node-key.pem").public_hex
        finally:
            process.terminate()
            assert process.wait(timeout=120) == 0
    assert TOKEN not in log.read_text()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def test_a_key_that_cannot_be_used(env: dict[str, str], tmp_path: Path) -> None:
    """Missing, or open to others: what to do is in the sentence."""
    assert "pocqueue node key new" in refusal(env, "--key", str(tmp_path / "none.pem"))
    (tmp_path / "node-key.pem").chmod(0o640)
    assert "chmod 600" in refusal(env)


def test_stray_spaces_in_the_token(env: dict[str, str], tmp_path: Path) -> None:
    """Named as what they are, without the token."""
    config = tmp_path / "config.env"
    config.write_text(f'export DELEGATION_AUTH_TOKEN="{TOKEN} "\n')
    sentence = refusal(env, "--env-file", str(config))
    assert "DELEGATION_AUTH_TOKEN cannot be the given value" in sentence
    assert "there are spaces before or after the token" in sentence
    assert TOKEN not in sentence


def test_a_port_that_cannot_be_had(env: dict[str, str]) -> None:
    """Taken, or of no address of this machine."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = refusal(env, "--port", str(port))
    assert f"POCQUEUE_NODE_PORT is {port} on 127.0.0.1, which cannot be listened on" in sentence
    assert "POCQUEUE_NODE_HOST is 'no such host', which is no address" in refusal(
        env, "--host", "no such host"
    )


class Other:
    """A server that is no small node.

    Attributes:
        answer: status and body of everything.
    """

    def __init__(self, port: int = 0) -> None:
        self.answer = (200, "<html>")
        other = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = other.answer
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            @override
            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def other() -> Iterator[Other]:
    other = Other()
    thread = Thread(target=other.server.serve_forever)
    thread.start()
    yield other
    other.server.shutdown()
    other.server.server_close()
    thread.join()


def status(url: str, *argv: str) -> Any:
    return CliRunner().invoke(app, ["node", "status", "--url", url, *argv])


def test_no_node_there(other: Other) -> None:
    """Nobody, somebody else, and a node that cannot say."""
    url = f"http://127.0.0.1:{free_port()}"
    for place, answer, said in (
        (url, (200, ""), "start one with `pocqueue node serve`, or give its --url"),
        ("no url", (200, ""), "No small node answers at no url"),
        ("http://[", (200, ""), "No small node answers at http://["),
        (other.url, (200, "<html>"), "No small node answers at"),
        (other.url, (200, "[1]"), "is no small node (HTTP 200)"),
        (other.url, (404, '{"detail": "Not Found"}'), "is no small node (HTTP 404)"),
        (other.url, (503, '{"detail": "Disk full."}'), "cannot say how it stands: Disk full."),
    ):
        other.answer = answer
        error = status(place).exception
        assert isinstance(error, NodeError), place
        assert said in str(error)
        assert "\n" not in str(error)


def test_the_table(other: Other) -> None:
    """What went wrong is in it, and what comes from elsewhere is no markup."""
    found = {
        "status": "STOPPED",
        "delegation_mode": True,
        "gpu_count": 100,
        "session_id": "s-1",
        "block_hash": "[bold]",
        "total_batches": 1234,
        "total_nonces": 56789,
        "poll_lag_seconds": 0.4,
        "sampled_nonces": 17,
        "fraud_detected": True,
        "error": "2 of 17 recomputed nonces are invalid",
        "signer": "02ab",
        "distrusted": ["http://cheat:9090"],
        "outbox": {"waiting": 3, "refused": 2, "held": 1, "oldest_seconds": 150},
    }
    other.answer = (200, json.dumps(found))
    shown = status(other.url)
    assert shown.exit_code == 0
    lines = {line.split("  ")[0]: line.rstrip() for line in shown.output.splitlines()}
    assert lines["mode"].endswith("delegation, 100 GPUs")
    assert lines["block"].endswith("[bold]")
    assert lines["not trusted"].endswith("http://cheat:9090")
    assert lines["received"].endswith("56,789 valid nonces in 1,234 batches")
    assert lines["outbox"].endswith("3 waiting (oldest 2 min 30 s), 2 refused, 1 held")
    assert lines["big node heard"].endswith("0.4 s ago")
    assert lines["fraud"].endswith("nothing more of it is sent")
    assert lines["error"].endswith("2 of 17 recomputed nonces are invalid")
    assert json.loads(status(other.url, "--json").output) == found


@pytest.mark.parametrize("command", ["status", "try"])
def test_the_node_is_found_by_its_config_env(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that needs to know where it listens takes the same file."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.env"
    config.write_text("export POCQUEUE_NODE_PORT=1\n")
    monkeypatch.setattr(trial, "START_S", 0.0)
    done = CliRunner().invoke(app, ["node", command, "--env-file", str(config)])
    assert isinstance(done.exception, NodeError)
    assert "http://127.0.0.1:1" in str(done.exception)


def test_a_trial_waits_for_a_node_that_is_just_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README starts both in one breath; who pastes that is not told that there is no node."""
    monkeypatch.setattr(trial, "START_S", PATIENCE_S)
    others: list[Other] = []
    said: list[str] = []

    def starts(text: str) -> None:
        said.append(text)
        node = Other(port)
        node.answer = (503, '{"detail": "Disk full."}')
        others.append(node)
        Thread(target=node.server.serve_forever).start()

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    try:
        with (
            trial.Trial(url=url, public_key="k", r_target=1.38, seq_len=16, batch_size=8) as asking,
            pytest.raises(NodeError, match="Disk full"),
        ):
            asking.start(starts)
    finally:
        for node in others:
            node.server.shutdown()
            node.server.server_close()
    (text,) = said
    assert text.startswith(f"Nothing listens at {url} yet; waiting")


@pytest.mark.parametrize("output", ["missing/signed.jsonl", "."])
def test_a_trial_that_could_not_be_written_down_is_not_begun(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No node is asked for a round whose batches have no place."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["node", "try", "--output", output])
    assert isinstance(done.exception, SettingsError)
    assert f"--output is {output!r}" in str(done.exception)


def test_a_trial_for_which_there_is_no_node_leaves_the_file_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is emptied for batches that come, not before."""
    monkeypatch.setattr(trial, "START_S", 0.0)
    kept = tmp_path / "signed.jsonl"
    kept.write_text("{}\n")
    url = "http://127.0.0.1:1"
    done = CliRunner().invoke(app, ["node", "try", "--url", url, "--output", str(kept)])
    assert isinstance(done.exception, NodeError)
    assert kept.read_text() == "{}\n"


def test_a_target_that_json_cannot_say_is_refused_as_such() -> None:
    """Not as a node that does not answer."""
    done = CliRunner().invoke(app, ["node", "try", "--r-target", "nan"])
    assert isinstance(done.exception, InvalidRound)
    assert str(done.exception) == "--r-target is nan; allowed: a number above 0."
