"""Rows about the way to the server: its name, connections to it, TLS, and its clock."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import urllib.request
from contextlib import suppress
from datetime import datetime
from urllib.parse import urlsplit

from pocqueue.hosts.agent.messages import TestRow
from pocqueue.hosts.agent.self_test.speed import speed_row

#: Connections that are made to measure the way.
NUM_CONNECTS = 20
#: Most seconds between this machine's clock and the server's.
CLOCK_S = 5.0

_CONNECT_S = 5.0
_SET_CLOCK = "`sudo timedatectl set-ntp true`"
_PORTS = {"ws": 80, "wss": 443}


async def network_rows(endpoint: str | None) -> list[TestRow]:
    """Return how the way to an endpoint is.

    Args:
        endpoint: `ws://` or `wss://`; None: none was given.
    """
    if endpoint is None:
        why = "no --endpoint was given"
        names = ("dns", "way", "clock", "speed")
        return [TestRow(name=name, state="skip", measured=why) for name in names]
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    try:
        began_s = time.perf_counter()
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)
    except OSError as exc:
        remedy = "see whether the name is right, and /etc/resolv.conf"
        return [
            TestRow(name="dns", state="fail", measured=f"{host}: {exc.strerror}", remedy=remedy)
        ]
    took_ms = 1000 * (time.perf_counter() - began_s)
    measured = f"{host} is {found[0][4][0]}, {took_ms:.0f} ms"
    rows = [TestRow(name="dns", state="pass", measured=measured)]
    rows.append(await _way_row(host, port))
    if rows[-1].state == "fail":
        return rows
    if parts.scheme == "wss":
        # In a thread, which closes what it opens: asyncio leaves a connection behind whose handshake is given up.
        tls = await asyncio.to_thread(_tls_row, host, port)
        rows.append(tls)
        if tls.state == "fail":
            return rows
    rows.append(await asyncio.to_thread(_clock_row, parts.scheme, parts.netloc))
    return [*rows, await speed_row(endpoint)]


async def _way_row(host: str, port: int) -> TestRow:
    times_ms = []
    for _ in range(NUM_CONNECTS):
        began_s = time.perf_counter()
        with suppress(OSError):
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(host, port)
                times_ms.append(1000 * (time.perf_counter() - began_s))
                writer.close()
        if not times_ms:
            break
    wanted = f"{NUM_CONNECTS} connections of {NUM_CONNECTS}"
    if not times_ms:
        return TestRow(
            name="way",
            state="fail",
            measured=f"no connection to {host}, port {port}",
            wanted=wanted,
            remedy="see whether the server runs, and whether a firewall keeps this machine from it",
        )
    is_whole = len(times_ms) == NUM_CONNECTS
    return TestRow(
        name="way",
        state="pass" if is_whole else "warn",
        measured=f"{len(times_ms)} connections of {NUM_CONNECTS}, {sorted(times_ms)[len(times_ms) // 2]:.1f} ms",
        wanted=wanted,
        remedy="" if is_whole else "packets are lost on the way: use a cable, or ask the provider",
    )


def _tls_row(host: str, port: int) -> TestRow:
    trusted = ssl.create_default_context()
    try:
        with (
            socket.create_connection((host, port), _CONNECT_S) as plain,
            trusted.wrap_socket(plain, server_hostname=host) as connection,
        ):
            version = connection.version() or ""
    except OSError as exc:
        said = str(exc)[:300] or type(exc).__name__
        by_time = any(words in said for words in ("not yet valid", "expired"))
        return TestRow(
            name="tls",
            state="fail",
            measured=said,
            wanted="a certificate that this machine trusts",
            remedy=f"see whether this machine's clock is right ({_SET_CLOCK}); else it is the server's to mend"
            if by_time
            else "see whether the name is right; of a server that made its certificate itself, give the agent a copy: "
            "SSL_CERT_FILE=FILE.pem",
        )
    return TestRow(name="tls", state="pass", measured=version)


def _clock_row(scheme: str, netloc: str) -> TestRow:
    url = f"{'https' if scheme == 'wss' else 'http'}://{netloc}/health"
    sent_s = time.time()
    try:
        with urllib.request.urlopen(url, timeout=_CONNECT_S) as answer:  # noqa: S310 - http or https
            said = json.loads(answer.read(4096))["timestamp"]
        server_s = datetime.fromisoformat(said).timestamp()
    except (OSError, ValueError, KeyError, TypeError):
        return TestRow(name="clock", state="skip", measured="the server does not say its time")
    ahead_s = (sent_s + time.time()) / 2 - server_s
    is_right = abs(ahead_s) <= CLOCK_S
    return TestRow(
        name="clock",
        state="pass" if is_right else "fail",
        measured=f"{ahead_s:+z.1f} s against the server",
        wanted=f"within {CLOCK_S:g} s",
        remedy="" if is_right else f"set it: {_SET_CLOCK}",
    )
