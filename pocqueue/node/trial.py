"""Plays the chain for a small node, to try a whole installation: asks for a round and receives its batches.

The receiver listens on loopback while the trial runs. It checks every batch as a chain does: the
signature and the round.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.errors import NodeAway, NodeError, SignatureError
from pocqueue.node.client import NodeClient
from pocqueue.node.signing import verify_body

#: Larger bodies are refused.
_MAX_BODY = 64 * 1024 * 1024
#: Seconds that the last batches may take after the round was stopped.
DRAIN_S = 30.0
#: Seconds that a node which was started just before may take until it listens.
START_S = 15.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A batch that was taken."""

    body: dict[str, Any]
    signer: str
    #: Seconds since the round was asked for.
    after_s: float


@dataclass(eq=False, kw_only=True)
class Trial(Closing):
    """One round of a small node; a context manager that ends the receiver."""

    url: str  #: of the node
    block_hash: str | None = None  #: of the round; None: a new one
    public_key: str  #: in the round
    r_target: float  #: distance in [0, 2] that a nonce has to stay below
    seq_len: int  #: positions of one nonce's input
    batch_size: int  #: nonces of one forward pass

    def __post_init__(self) -> None:
        self.block_hash = self.block_hash or f"0x{os.urandom(16).hex()}"
        self._node = NodeClient(self.url, timeout_s=60)
        self._taken: queue.Queue[Taken | SignatureError] = queue.Queue()
        self._began = time.monotonic()
        self._server = receiver(self.take)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @override
    def close(self) -> None:
        """End the receiver, and close the connections."""
        self._server.shutdown()
        self._server.server_close()
        self._node.close()

    def start(self, on_wait: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
        """Ask for the round; return the node's status.

        Args:
            on_wait: called once, with a line for people, if nobody listens there yet.

        Raises:
            NodeError: there is no node, it cannot, or it has another round at the moment.
        """
        before = self._status_once_it_listens(on_wait)
        if before["status"] in {"GENERATING", "VALIDATING"}:
            raise NodeError(
                f"The node at {self._node.url} is {before['status']} for block {before['block_hash']}: it is not "
                "disturbed for a trial. Try again when that round is over."
            )
        self._began = time.monotonic()
        body = {
            "node_id": 0,
            "node_count": 1,
            "block_hash": self.block_hash,
            "block_height": 1,
            "public_key": self.public_key,
            "batch_size": self.batch_size,
            "r_target": self.r_target,
            "params": {"seq_len": self.seq_len},
            "url": f"http://127.0.0.1:{self._server.server_port}/v1/poc-batches",
        }
        return dict(self._node.post("/init/generate", body)["pow_status"])

    def _status_once_it_listens(self, on_wait: Callable[[str], None]) -> dict[str, Any]:
        """Return the node's status; one that is just starting is waited for (`pocqueue node serve &` is the line before)."""
        deadline = time.monotonic() + START_S
        told = False
        while True:
            try:
                return self._node.status()
            except NodeAway:
                if time.monotonic() > deadline:
                    raise
            if not told:
                told = True
                on_wait(
                    f"Nothing listens at {self.url} yet; waiting {START_S:g} s for a node that is starting."
                )
            time.sleep(0.2)

    def batches(self, seconds: float) -> Iterator[Taken]:
        """Yield batches as they come, for some seconds.

        Raises:
            SignatureError: one is not signed, or wrongly.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                found = self._taken.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(found, SignatureError):
                raise found
            yield found

    def stop(self) -> Iterator[Taken]:
        """End the round; yield the batches that still come, until the node has no more of them to send.

        Raises:
            NodeError, SignatureError: see the classes.
        """
        self._node.post("/stop")
        deadline = time.monotonic() + DRAIN_S
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline:
            came = list(self.batches(0.5))
            yield from came
            idle = not came and self._node.status()["outbox"]["waiting"] == 0
            quiet = quiet + 1 if idle else 0

    def take(self, _path: str, content: bytes) -> int:
        """Check a batch; return the status to answer with."""
        try:
            body = json.loads(content)
            signer = verify_body(body)
            if body["block_hash"] != self.block_hash:
                # Of an earlier round, which was still in the node's outbox for this port.
                return 200
        except (ValueError, KeyError, TypeError, SignatureError) as exc:
            self._taken.put(SignatureError(f"The node sent what no chain would take: {exc}"))
            return 400
        self._taken.put(Taken(body, signer, time.monotonic() - self._began))
        return 200


def receiver(take: Callable[[str, bytes], int]) -> ThreadingHTTPServer:
    """Return a server on loopback that takes posted batches; its owner runs, and ends, it.

    Args:
        take: gets path and body of each, in a thread of its own; returns the status to answer with.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            status = 413 if size > _MAX_BODY else take(self.path, self.rfile.read(size))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        @override
        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server
