"""Thousands of agents in one event loop: real WebSocket clients that speak protocol 2 and come back as ours do.

What a machine would do beside that (self-tests, sandboxes, a spool on disk) is left out; what it sends is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from typing_extensions import override
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from benchmarks.hosts.nodes import Seat, gpu_of
from pocqueue.closing import AsyncClosing
from pocqueue.hosts.agent.agent import wait_s
from pocqueue.hosts.wire import HEARTBEAT_S, origin_of, signed_text

#: Handshakes at a time while the crowd comes in; when it comes back there is no bound but each agent's own pauses.
_AT_A_TIME = 100
#: Of an agent's connection, in seconds; see `hosts.agent`.
_PING_S, _ANSWER_S = 20.0, 30.0
_SELF_TEST = [
    {"name": name, "state": "pass", "measured": "as it should be", "wanted": "that"}
    for name in (
        "driver",
        "cuda",
        "gpu",
        "matrix",
        "memory",
        "ram",
        "disk",
        "sandbox",
        "network",
        "clock",
    )
]


@dataclass
class Crowd(AsyncClosing):
    """The agents of some nodes. A context manager within the event loop."""

    url: str  #: of the gateway
    seats: Sequence[Seat]
    heartbeat_s: float = HEARTBEAT_S
    pause: float = 1.0  #: share of the pauses that agents make before they come back
    #: Seconds from each heartbeat to its `ack`; cleared by whoever measures.
    acks: list[float] = field(default_factory=list)
    #: When a job was there, by id: `time.perf_counter`.
    jobs: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.agents = [Agent(self, seat) for seat in self.seats]
        self.doorway = asyncio.Semaphore(_AT_A_TIME)

    @override
    async def __aenter__(self) -> Self:
        for agent in self.agents:
            agent.start()
        return self

    @override
    async def close(self) -> None:
        """Let all of them go."""
        await asyncio.gather(*(agent.stop() for agent in self.agents))

    @property
    def num_in(self) -> int:
        """Agents that are their nodes' now."""
        return sum(agent.is_in for agent in self.agents)


class Agent:
    """One of them.

    Args:
        crowd: that it belongs to.
        seat: its node.
    """

    def __init__(self, crowd: Crowd, seat: Seat) -> None:
        self.seat = seat
        self.is_in = False
        #: When it last said who it is, and was let in: `time.perf_counter`.
        self.resumed_at = self.joined_at = 0.0
        self._crowd = crowd
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and again whenever the connection ends."""
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Leave."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def _run(self) -> None:
        failures, is_new = 0, True
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    if is_new:
                        await stack.enter_async_context(self._crowd.doorway)
                    async with connect(
                        self._crowd.url,
                        proxy=None,
                        compression=None,
                        ping_interval=_PING_S,
                        ping_timeout=_PING_S,
                        open_timeout=_PING_S,
                        close_timeout=2,
                        local_addr=(self.seat.address, 0),
                    ) as socket:
                        async with asyncio.timeout(_ANSWER_S):
                            await self._introduce(socket)
                        await stack.aclose()
                        self.is_in, is_new, failures = True, False, 0
                        self.joined_at = time.perf_counter()
                        await self._serve(socket)
            except (OSError, EOFError, TimeoutError, WebSocketException):
                failures = 1 if self.is_in else failures + 1
            finally:
                self.is_in = False
            await asyncio.sleep(self._crowd.pause * wait_s(failures))

    async def _introduce(self, socket: ClientConnection) -> None:
        seat, said = self.seat, {"protocol": 2, "nodeKey": self.seat.key.public_hex}
        await _send(socket, type="hello", nodeId=seat.node_id, **said)
        nonce = (await _next(socket))["nonce"]
        text = signed_text(origin_of(self._crowd.url), seat.node_id, nonce)
        self.resumed_at = time.perf_counter()
        await _send(
            socket,
            type="resume",
            nodeId=seat.node_id,
            signature=seat.key.sign(text),
            hostInfo={"hostname": "gpu-rig", "os": "Debian 12", "gpus": [gpu_of(seat)]},
            isolation="bubblewrap",
            kinds=["test", "command"],
            agentVersion="bench",
            **said,
        )
        answer = await _next(socket)
        if answer["type"] != "registered":
            raise ConnectionError(answer)
        await _send(socket, type="self_test", rows=_SELF_TEST)

    async def _serve(self, socket: ClientConnection) -> None:
        crowd, seat = self._crowd, self.seat
        load = [
            {"uuid": f"GPU-{seat.node_id}", "load": 37.0, "memoryMib": 1000, "temperature": 50.0}
        ]
        beat = json.dumps({"type": "heartbeat", "nodeId": seat.node_id, "jobs": [], "gpus": load})
        loop = asyncio.get_running_loop()
        # The first one comes after a part of the time: thousands that came together do not beat together for ever.
        due, sent_at = loop.time() + random.random() * crowd.heartbeat_s, 0.0  # noqa: S311 - no secret
        while True:
            try:
                async with asyncio.timeout_at(due):
                    text = await socket.recv()
            except TimeoutError:
                due += crowd.heartbeat_s
                sent_at = time.perf_counter()
                await socket.send(beat)
                continue
            now = time.perf_counter()
            message = json.loads(text)
            if message["type"] == "ack" and "id" not in message:
                crowd.acks.append(now - sent_at)
            elif message["type"] == "job":
                crowd.jobs[message["id"]] = now
                about = {"id": message["id"], "attempt": message["attempt"]}
                await _send(socket, type="job_started", **about)
                result = {"status": "completed", "exitCode": 0, "seconds": 0.0, "logs": ""}
                await _send(socket, type="job_result", **about, **result)


async def _send(socket: ClientConnection, **message: Any) -> None:
    await socket.send(json.dumps(message))


async def _next(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await socket.recv())
    return message
