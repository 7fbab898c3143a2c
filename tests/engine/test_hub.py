"""The hub, stood in for by a local server: downloads, caches and every way it can say no."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from typing_extensions import override

from pocqueue.engine.hub import fetch_from_hub
from pocqueue.errors import ModelNotFound

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


@pytest.fixture
def hub() -> Iterator[str]:
    """Run a hub with one model; give its URL."""
    FakeHub.files = {**FILES, "model.safetensors": b"weights" * 1000}
    FakeHub.status, FakeHub.requests = 200, []
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _fetch(endpoint: str, cache: Path, repo_id: str = REPO, timeout_s: float = 5.0) -> Path:
    return fetch_from_hub(
        repo_id,
        on_progress=lambda _text: None,
        endpoint=endpoint,
        cache_dir=cache,
        timeout_s=timeout_s,
    )


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_downloaded_without_what_is_not_needed(hub: str, tmp_path: Path) -> None:
    """Configuration and weights; nothing from the folders below."""
    folder = _fetch(hub, tmp_path)
    assert _names(folder) == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights" * 1000


def test_older_weights_are_taken_where_there_are_no_others(hub: str, tmp_path: Path) -> None:
    """Only then: they would double the download."""
    FakeHub.files = {**FILES, "pytorch_model.bin": b"old weights"}
    assert _names(_fetch(hub, tmp_path)) == {"config.json", "pytorch_model.bin"}


def test_bytes_are_reported_and_nothing_is_printed(
    hub: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Progress goes through the callback."""
    lines: list[str] = []
    fetch_from_hub(REPO, on_progress=lines.append, endpoint=hub, cache_dir=tmp_path)
    assert lines[0] == f"Asking the hub for {REPO}"
    assert lines[1].startswith(f"Downloading {REPO}: ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [503, 404])
def test_a_downloaded_model_needs_no_hub(hub: str, tmp_path: Path, status: int) -> None:
    """Down, or without the model now: what is in the cache will do."""
    folder = _fetch(hub, tmp_path)
    FakeHub.status = status
    assert _fetch(hub, tmp_path) == folder
    assert _fetch("http://127.0.0.1:9", tmp_path) == folder


def test_a_model_that_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    """The message says that the hub was asked, and what could be meant."""
    with pytest.raises(ModelNotFound) as caught:
        _fetch(hub, tmp_path, "someone/else")
    message = str(caught.value)
    assert "'someone/else'" in message
    assert "the hub has no such public model" in message
    assert "a folder with a config.json" in message
    assert "\n" not in message


def test_a_hub_in_trouble_is_named_by_its_status(hub: str, tmp_path: Path) -> None:
    """So that people know that waiting may help."""
    FakeHub.status = 503
    with pytest.raises(ModelNotFound, match="HTTP status 503"):
        _fetch(hub, tmp_path)


def test_without_a_network_the_answer_comes_at_once(tmp_path: Path) -> None:
    """A refused connection is not tried again and again."""
    start = time.monotonic()
    with pytest.raises(ModelNotFound, match="cannot be downloaded from the hub"):
        _fetch("http://127.0.0.1:9", tmp_path)
    assert time.monotonic() - start < 3


def test_a_network_that_swallows_everything_is_waited_for_briefly(tmp_path: Path) -> None:
    """A server that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(ModelNotFound, match="cannot be downloaded from the hub"):
            _fetch(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, timeout_s=0.5)
        assert time.monotonic() - start < 3
