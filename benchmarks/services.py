"""A big node, small nodes and a receiver for benchmarks: real processes over loopback."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.errors import SignatureError
from pocqueue.local_stack import environment
from pocqueue.node.keys import SigningKey
from pocqueue.node.signing import verify_body
from pocqueue.node.trial import receiver
from pocqueue.settings import Settings

TOKEN = "a-token-for-benchmarks-only"  # noqa: S105 - of a service on loopback for the time of a run
START_TIMEOUT_S = 60.0


class Receiver(Closing):
    """Takes signed batches, and artifacts, which are not, as a chain does.

    Attributes:
        arrived: nonce -> Unix time at which its batch came in whole, by block hash.
        repeated: nonces that came again.
        bad: batches whose signature was wrong.
    """

    def __init__(self) -> None:
        self.arrived: dict[str, dict[int, float]] = {}
        self.repeated = 0
        self.bad = 0
        self._lock = threading.Lock()
        self._server = receiver(self.take)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/poc-batches"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, _path: str, content: bytes) -> int:
        """Note a batch; return the status to answer with."""
        now = time.time()
        body = json.loads(content)
        if "artifacts" in body:
            nonces = [artifact["nonce"] for artifact in body["artifacts"]]
        else:
            try:
                verify_body(body)
            except SignatureError:
                with self._lock:
                    self.bad += 1
                return 400
            nonces = body["nonces"]
        with self._lock:
            times = self.arrived.setdefault(body["block_hash"], {})
            for nonce in nonces:
                self.repeated += nonce in times
                times.setdefault(nonce, now)
        return 200

    def nonces(self, block_hash: str) -> dict[int, float]:
        """Return the nonces of a block with the time of each."""
        with self._lock:
            return dict(self.arrived.get(block_hash, {}))

    @override
    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def big_node(
    settings: Settings, log: Path, *, port: int = 0, **variables: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a delegation service on a port, 0 for any; yield its URL and process."""
    port = port or free_port()
    argv = ("delegation", "serve", "--host", "127.0.0.1", "--port", str(port))
    env = environment(settings) | {"DELEGATION_AUTH_TOKEN": TOKEN} | variables
    url = f"http://127.0.0.1:{port}"
    with _process(log, env, f"{url}/health", *argv) as process:
        yield url, process


@contextlib.contextmanager
def small_node(
    settings: Settings, big_url: str, folder: Path, **variables: str
) -> Iterator[httpx.Client]:
    """Run a small node with a state folder of its own; yield a client of it."""
    folder.mkdir(mode=0o700)
    SigningKey.generate().save_pem(folder / "node-key.pem")
    port = free_port()
    env = environment(settings.model_copy(update={"state_dir": folder}))
    env |= {"DELEGATION_URL": big_url, "DELEGATION_AUTH_TOKEN": TOKEN} | variables
    url = f"http://127.0.0.1:{port}"
    argv = ("node", "serve", "--port", str(port))
    with (
        _process(folder / "node.log", env, f"{url}/livez", *argv),
        httpx.Client(base_url=f"{url}/api/v1/pow", timeout=60, trust_env=False) as client,
    ):
        yield client


def big_client(url: str) -> httpx.Client:
    """Return a client of a big node."""
    return httpx.Client(
        base_url=f"{url}/api/v1/delegation",
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=60,
        trust_env=False,
    )


def start_body(block_hash: str, r_target: float | None, **fields: Any) -> dict[str, Any]:
    """Return the body of a delegation's `start`; without r_target of one for artifacts."""
    proof = {"scheme": "artifact"} if r_target is None else {"r_target": r_target}
    return {
        "node_id": 0,
        "node_count": 1,
        "block_hash": block_hash,
        "block_height": 1,
        "public_key": "bench",
        "batch_size": 32,
        "fraud_threshold": 0.01,
        "params": {"seq_len": 256},
        **proof,
    } | fields


def wait_until(condition: Any, timeout_s: float, what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def _process(
    log: Path, env: dict[str, str], health_url: str, *argv: str
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pocqueue", *argv],
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{argv} ended:\n{log.read_text()[-3000:]}")
        try:
            return httpx.get(health_url, timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, START_TIMEOUT_S, " ".join(argv))
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
