"""Both ends of a delegation as processes, a stand-in for the chain, and what can go wrong in between."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from typing_extensions import override

from pocqueue.node.keys import SigningKey
from pocqueue.node.signing import verify_body
from pocqueue.node.trial import receiver
from tests.support.ports import free_port
from tests.support.stack import Stack

TOKEN = "a-token-of-the-tests-123"
POW = "/api/v1/pow"


class Chain:
    """Stands in for the chain: takes signed batches, and refuses what is not signed.

    Attributes:
        statuses: answers still to give, in order; 200 once they are used up.
        taken: (path, body) that was answered with 200.
        bad: what was wrong with requests; empty where all is well.
    """

    def __init__(self) -> None:
        self.statuses: Iterator[int] = iter(())
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.signers: set[str] = set()
        self.bad: list[str] = []
        self._lock = threading.Lock()
        self._server = receiver(self.answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/poc-batches"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str, content: bytes) -> int:
        with self._lock:
            try:
                body = json.loads(content)
                self.check(body)
            except Exception as exc:  # noqa: BLE001 - whatever is wrong is the test's to show
                self.bad.append(f"{path}: {exc}")
                return 400
            status = next(self.statuses, 200)
            if status == 200:
                self.taken.append((path, body))
            return status

    def check(self, body: dict[str, Any]) -> None:
        """Raise what is wrong with a body."""
        self.signers.add(verify_body(body))

    def bodies(self, block_hash: str, kind: str = "generated") -> list[dict[str, Any]]:
        """Return what was taken of a block, in order."""
        with self._lock:
            return [
                body
                for path, body in self.taken
                if path == f"/v1/poc-batches/{kind}" and body["block_hash"] == block_hash
            ]

    def nonces(self, block_hash: str) -> list[int]:
        """Return every nonce that was taken of a block, in order."""
        return [nonce for body in self.bodies(block_hash) for nonce in body["nonces"]]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class BigNode:
    """A delegation service in a process of its own."""

    def __init__(self, stack: Stack, name: str = "delegation", **env: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stack = stack
        self._env = {"DELEGATION_AUTH_TOKEN": TOKEN} | env
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        argv = ("pocqueue", "delegation", "serve", "--host", "127.0.0.1", "--port", str(self.port))
        self._stack.spawn(self.name, *argv, env=self._env)
        wait_http(self._stack, f"{self.url}/health", self.name)

    def kill(self) -> None:
        """Kill it as if its machine had lost power."""
        self._stack.kill(self.name)

    def client(self, token: str = TOKEN) -> httpx.Client:
        """Return a client with a token."""
        return httpx.Client(
            base_url=f"{self.url}/api/v1/delegation",
            headers={"Authorization": f"Bearer {token}"},
            timeout=120,
            trust_env=False,
        )


class SmallNode:
    """A small node in a process of its own, with its own state folder and key."""

    def __init__(self, stack: Stack, delegation_url: str | None, name: str, **env: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stack = stack
        self.state_dir = stack.folder / f"state-{name}"
        self.state_dir.mkdir(mode=0o700)
        key = SigningKey.generate()
        key.save_pem(self.state_dir / "node-key.pem")
        self.signer = key.public_hex
        delegating = {"DELEGATION_URL": delegation_url, "DELEGATION_AUTH_TOKEN": TOKEN}
        self._env = {"POCQUEUE_STATE_DIR": str(self.state_dir)} | env
        if delegation_url is not None:
            self._env = {k: str(v) for k, v in delegating.items()} | self._env
        self.start()
        self.http = httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def start(self) -> None:
        """Start it and wait until it answers."""
        argv = ("pocqueue", "node", "serve", "--port", str(self.port))
        self._stack.spawn(self.name, *argv, env=self._env)
        wait_http(self._stack, f"{self.url}/livez", self.name)

    def kill(self) -> None:
        """Kill it as if its machine had lost power."""
        self._stack.kill(self.name)

    def close(self) -> None:
        """End it as an operator would."""
        self.http.close()
        assert self._stack.terminate(self.name) == 0, self._stack.log(self.name).read_text()[-3000:]

    def generate(self, chain: Chain, **fields: Any) -> httpx.Response:
        """Ask for a round in which every nonce is valid, unless told otherwise."""
        body = {"block_height": 7, "public_key": "key", "node_id": 0, "node_count": 1}
        body |= {"batch_size": 8, "r_target": 2.0, "params": {"seq_len": 16}, "url": chain.url}
        return self.http.post(f"{POW}/init/generate", json=body | fields)

    def status(self) -> dict[str, Any]:
        """Return its status."""
        found: dict[str, Any] = self.http.get(f"{POW}/status").raise_for_status().json()
        return found

    def stop(self) -> None:
        """End the round, as the chain does."""
        self.http.post(f"{POW}/stop").raise_for_status()


class Wire:
    """A TCP proxy in front of a big node, which can be cut.

    Attributes:
        cut_after: bytes of a reply after which the next connection that gets so far is cut; None: none.
        cuts: how often that was done.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self.cut_after: int | None = None
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        # Closing alone would leave the thread in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    near, _ = self._listener.accept()
                except OSError:
                    return
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.ExitStack() as at_end:
            at_end.enter_context(near)
            at_end.enter_context(contextlib.suppress(OSError))
            far = at_end.enter_context(socket.create_connection(self._target))
            back = threading.Thread(target=self._pump, args=(far, near, True), daemon=True)
            back.start()
            self._pump(near, far, False)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_reply and self.cut_after is not None and len(data) > self.cut_after:
                    target.sendall(data[: self.cut_after])
                    self.cut_after = None
                    self.cuts += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Cheat:
    """A big node that adds made-up nonces to what the real one found.

    Args:
        url: of the real one.
        share: made-up nonces among all that it hands out.
    """

    def __init__(self, url: str, share: float) -> None:
        self.made_up: set[int] = set()
        self._honest = 0
        self.share = share
        self.http = httpx.Client(base_url=url, timeout=120, trust_env=False)
        cheat = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._forward()

            def do_POST(self) -> None:
                self._forward()

            def _forward(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {"Authorization": self.headers.get("Authorization", "")}
                reply = cheat.http.request(
                    self.command, self.path, content=content, headers=headers
                )
                answer = reply.content
                if "/batches/" in self.path and reply.status_code == 200:
                    answer = json.dumps(cheat.spoil(reply.json())).encode()
                self.send_response(reply.status_code)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            @override
            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spoil(self, page: dict[str, Any]) -> dict[str, Any]:
        for batch in page["batches"]:
            self._honest += len(batch["nonces"])
            while len(self.made_up) < self.share / (1 - self.share) * self._honest:
                nonce = 10**9 + len(self.made_up)
                self.made_up.add(nonce)
                batch["nonces"].append(nonce)
                batch["dist"].append(batch["dist"][0])
        return page

    def close(self) -> None:
        self.http.close()
        self._server.shutdown()
        self._server.server_close()


def wait_http(stack: Stack, url: str, name: str) -> None:
    """Wait until an address answers 200, or fail with the log of the process behind it."""

    def answers() -> bool:
        stack.check_alive()
        try:
            return httpx.get(url, timeout=60, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    stack.wait(answers, f"{name} at {url}")


def block() -> str:
    """Return a block hash that no other test uses."""
    return os.urandom(8).hex()
