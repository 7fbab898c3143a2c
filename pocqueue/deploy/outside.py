"""What this machine sees of a server from outside, as the world does: pages, open ports, a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from pocqueue.deploy.facts.http import Answer


class Outside(Protocol):
    """Looks at a server from somewhere else."""

    async def get(self, url: str) -> Answer:
        """Return what it answers."""

    async def is_open(self, host: str, port: int) -> bool:
        """Say whether a port lets anybody in."""

    async def certificate_days(self, url: str) -> float | None:
        """Return how long the certificate is still good, which may be less than 0; None: there is none that is trusted."""


class FromHere:
    """Looks from this machine.

    Args:
        timeout_s: of each look.
    """

    def __init__(self, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s

    async def get(self, url: str) -> Answer:
        """Return what it answers; 0: not reached within the time."""
        try:
            async with (
                asyncio.timeout(2 * self._timeout_s),
                httpx.AsyncClient(timeout=self._timeout_s, follow_redirects=True) as client,
                client.stream("GET", url) as response,
            ):
                # The beginning is enough to tell what it is.
                text = ""
                async for part in response.aiter_text():
                    text += part
                    if len(text) > 1_000:
                        break
                return Answer(response.status_code, text)
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL):
            return Answer(0)

    async def is_open(self, host: str, port: int) -> bool:
        """Say whether a connection is taken within the time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                _, writer = await asyncio.open_connection(host, port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def certificate_days(self, url: str) -> float | None:
        """Return how long the certificate is still good."""
        # In a thread, which closes what it opens: asyncio leaves a socket behind where a handshake fails.
        return await asyncio.to_thread(self._certificate_days, url)

    def _certificate_days(self, url: str) -> float | None:
        place = urlsplit(url)
        host, trusted = place.hostname or "", ssl.create_default_context()
        try:
            with (
                socket.create_connection((host, place.port or 443), self._timeout_s) as plain,
                trusted.wrap_socket(plain, server_hostname=host) as secured,
            ):
                ends = (secured.getpeercert() or {}).get("notAfter")
        except OSError:
            return None
        return (ssl.cert_time_to_seconds(str(ends)) - time.time()) / 86_400 if ends else None
