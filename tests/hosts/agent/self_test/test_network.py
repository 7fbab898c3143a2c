"""What a self-test says of the way to a server that is not as it should be."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typing_extensions import override

from pocqueue.hosts.agent.messages import TestRow
from pocqueue.hosts.agent.self_test.network import network_rows
from tests.support.tls import make_certificate


class _Late(BaseHTTPRequestHandler):
    """A server that is a day behind and has no route for speed."""

    def do_GET(self) -> None:
        then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        body = json.dumps({"timestamp": then.isoformat()}).encode()
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: object) -> None: ...


async def _rows(tls: ssl.SSLContext | None = None) -> dict[str, TestRow]:
    """Measure the way to such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Late) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            scheme = "ws" if tls is None else "wss"
            rows = await network_rows(f"{scheme}://127.0.0.1:{server.server_port}")
        finally:
            await asyncio.to_thread(server.shutdown)
            serving.join()
    return {row.name: row for row in rows}


async def test_a_clock_that_is_off_by_a_day_is_said() -> None:
    """By how much, and how it is set; nothing else depends on it."""
    rows = await _rows()
    assert (rows["dns"].state, rows["way"].state) == ("pass", "pass")
    assert rows["clock"].state == "fail"
    assert rows["clock"].measured.startswith("+86400.")
    assert "timedatectl set-ntp true" in rows["clock"].remedy
    assert (rows["speed"].state, rows["speed"].measured) == (
        "skip",
        "the server does not measure it",
    )


async def test_a_certificate_out_of_its_time_may_be_a_wrong_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is looked at first; one of an authority that is not trusted is another matter. What needs it is not blamed beside it."""
    certificate, key = make_certificate(tmp_path, days_left=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    rows = await _rows(context)
    row = rows["tls"]
    assert (row.state, "SSL_CERT_FILE" in row.remedy) == ("fail", True)
    assert [*rows] == ["dns", "way", "tls"]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    row = (await _rows(context))["tls"]
    assert (row.state, "expired" in row.measured) == ("fail", True)
    assert "clock is right (`sudo timedatectl" in row.remedy
