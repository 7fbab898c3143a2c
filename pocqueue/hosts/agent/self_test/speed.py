"""The row about how fast a server is reached: 20 MB each way, by its route for that."""

from __future__ import annotations

import asyncio
import http.client
import os
import time
from contextlib import closing
from urllib.parse import urlsplit

from pocqueue.hosts.agent.messages import TestRow
from pocqueue.hosts.protocol import SPEED_BYTES, SPEED_PATH

#: Least Mbit/s each way.
MBIT_S = 10.0
#: What is moved each way, in pieces of `SPEED_BYTES`: 20 MB.
NUM_PIECES = 20

_CONNECTIONS = 4
_PATIENCE_S = 10.0
_LONGEST_S = 15.0


class _NotMeasured(Exception):
    """The server does not take part; says why."""


async def speed_row(endpoint: str) -> TestRow:
    """Return how fast bytes come from a server and go to it.

    Args:
        endpoint: `ws://` or `wss://`; the route is asked for over HTTP at the same place.
    """
    wanted = f"{MBIT_S:g} Mbit/s each way"
    try:
        down = await _mbit_s(endpoint, None)
        up = await _mbit_s(endpoint, os.urandom(SPEED_BYTES))
    except _NotMeasured as exc:
        return TestRow(name="speed", state="skip", measured=str(exc), wanted=wanted)
    except (OSError, http.client.HTTPException) as exc:
        return TestRow(
            name="speed",
            state="fail",
            measured=f"a connection broke while 20 MB were moved: {exc or type(exc).__name__}"[
                :300
            ],
            wanted=wanted,
            remedy="see what is between this machine and the server: a proxy, a firewall, a bad cable",
        )
    is_fast = min(down, up) >= MBIT_S
    return TestRow(
        name="speed",
        state="pass" if is_fast else "warn",
        measured=f"{down:.0f} Mbit/s down, {up:.0f} Mbit/s up",
        wanted=wanted,
        remedy=""
        if is_fast
        else "results and images take long: use a cable, end what else uses the line, or ask the provider",
    )


async def _mbit_s(endpoint: str, sent: bytes | None) -> float:
    """Move 20 MB, or what there is time for; some connections at a time, as one waits for its round trips."""
    began_s = time.monotonic()
    share = NUM_PIECES // _CONNECTIONS
    moves = [
        asyncio.to_thread(_move, endpoint, sent, share, began_s + _LONGEST_S)
        for _ in range(_CONNECTIONS)
    ]
    num_bytes = sum(await asyncio.gather(*moves))
    return 8 * num_bytes / (time.monotonic() - began_s) / 1e6


def _move(endpoint: str, sent: bytes | None, num_pieces: int, until_s: float) -> int:
    """Move some pieces over one connection; return how many bytes that were."""
    parts, num_bytes = urlsplit(endpoint), 0
    kind = http.client.HTTPSConnection if parts.scheme == "wss" else http.client.HTTPConnection
    with closing(kind(parts.netloc, timeout=_PATIENCE_S)) as connection:
        for _ in range(num_pieces):
            if time.monotonic() > until_s:
                break
            connection.request("GET" if sent is None else "POST", SPEED_PATH, sent)
            answer = connection.getresponse()
            said = answer.read(SPEED_BYTES)
            if answer.status == 429:
                raise _NotMeasured("the server measures an address a few times an hour, and has")
            if answer.status != 200:
                raise _NotMeasured("the server does not measure it")
            num_bytes += len(said) if sent is None else len(sent)
    return num_bytes
