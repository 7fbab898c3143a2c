"""The hub, as a local server with one model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

from typing_extensions import override

REPO = "someone/tiny"
COMMIT = "c0ffee" * 6 + "c0ff"
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "README.md": b"not needed",
    "original/model.safetensors": b"not needed either",
}


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as a download asks for."""

    files: ClassVar[dict[str, bytes]] = {}
    status: ClassVar[int] = 200
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer one request."""
        path = urlsplit(self.path).path
        self.requests.append(path)
        if self.status != 200:
            self._send(b"{}", self.status)
        elif path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            self._send(json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"/api/models/{REPO}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{number:040x}"}
                for number, (name, data) in enumerate(self.files.items())
            ]
            self._send(json.dumps(entries).encode())
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._send(self.files[path.split(COMMIT + "/")[1]])
        else:
            self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        known: dict[str, Any] = {
            "Content-Type": "application/json",
            "Content-Length": len(body),
            "ETag": f'"{hash(body) & 0xFFFFFFFF:x}"',
            "X-Repo-Commit": COMMIT,
        }
        for name, value in {**known, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @override
    def log_message(self, *_args: Any) -> None:
        """Stay quiet."""


@contextmanager
def running_hub() -> Iterator[str]:
    """Run a hub whose model has weights, in `FakeHub.files`; give its URL."""
    FakeHub.files = {**FILES, "model.safetensors": b"weights" * 1000}
    FakeHub.status, FakeHub.requests = 200, []
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
