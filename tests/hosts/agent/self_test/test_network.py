"""What a self-test says of the way to a server that is not as it should be."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from pathlib import Path

import pytest

from pocqueue.hosts.agent.messages import TestRow
from pocqueue.hosts.agent.self_test.network import network_rows
from tests.support.tls import make_certificate


async def _rows(tls: ssl.SSLContext | None = None) -> dict[str, TestRow]:
    """Measure the way to a server that is a day behind and has no route for speed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readline()
        if request:
            then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
            body = json.dumps({"timestamp": then.isoformat()})
            status = "200 OK" if b" /health " in request else "404 Not Found"
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(f"{head}{body}".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        rows = await network_rows(f"{'ws' if tls is None else 'wss'}://127.0.0.1:{port}")
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
    """Which is looked at first; one of an authority that is not trusted is another matter."""
    certificate, key = make_certificate(tmp_path, days_left=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    row = (await _rows(context))["tls"]
    assert (row.state, "SSL_CERT_FILE" in row.remedy) == ("fail", True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    row = (await _rows(context))["tls"]
    assert (row.state, "expired" in row.measured) == ("fail", True)
    assert "clock is right (`sudo timedatectl" in row.remedy
