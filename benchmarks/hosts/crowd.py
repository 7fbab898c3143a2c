"""Thousands of agents in one event loop: real WebSocket clients that speak protocol 2 and come back as ours do.

What a machine would do beside that (self-tests, sandboxes, a spool on disk) is left out; what it sends is not. They have the
cores that the gateway has, so each is no more than a protocol and its timers: no task, no queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

from typing_extensions import override
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from benchmarks.hosts.nodes import Seat, gpu_of
from pocqueue.closing import AsyncClosing
from pocqueue.hosts.agent.agent import wait_s
from pocqueue.hosts.wire import HEARTBEAT_S, origin_of, signed_text

#: Handshakes at a time while the crowd comes in; when it comes back there is no bound but each agent's own pauses.
_AT_A_TIME = 100
#: Seconds within which a gateway answers the first messages; see `hosts.agent`.
_ANSWER_S = 30.0
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
    tls: ssl.SSLContext | None = None  #: that trusts the gateway's certificate; None: it has none
    #: Seconds from each heartbeat to its `ack`; cleared by whoever measures.
    acks: list[float] = field(default_factory=list)
    #: When a job was there, by id: `time.perf_counter`.
    jobs: dict[str, float] = field(default_factory=dict)
    num_in: int = 0  #: agents that are their nodes' now

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


class Agent:
    """One of them.

    Args:
        crowd: that it belongs to.
        seat: its node.
    """

    def __init__(self, crowd: Crowd, seat: Seat) -> None:
        self.seat = seat
        #: When it last said who it is, and was let in: `time.perf_counter`.
        self.resumed_at = self.joined_at = 0.0
        self.crowd = crowd
        self._socket: Socket | None = None
        self._coming: asyncio.Task[None] | None = None
        self._failures = 0

    @property
    def is_in(self) -> bool:
        """Whether it is its node's now."""
        return self._socket is not None

    def start(self) -> None:
        """Connect, and again whenever the connection ends."""
        self._coming = asyncio.get_running_loop().create_task(self._come(self.crowd.doorway))

    async def stop(self) -> None:
        """Leave."""
        if self._coming is not None:
            self._coming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._coming
            self._coming = None
        if self._socket is not None:
            socket, self._socket = self._socket, None
            self.crowd.num_in -= 1
            await socket.close()

    def lost(self, socket: Socket) -> None:
        """Hear that a socket which was in has ended."""
        if self._socket is socket:
            self._socket = None
            self.crowd.num_in -= 1
            self._failures = 1
            self._coming = asyncio.get_running_loop().create_task(self._come_later())

    async def _come(self, doorway: contextlib.AbstractAsyncContextManager[Any]) -> None:
        socket = Socket(self)
        try:
            async with doorway, asyncio.timeout(_ANSWER_S):
                await socket.open()
            self._socket, self._coming = socket, None
            self.joined_at = time.perf_counter()
            self.crowd.num_in += 1
        except (OSError, EOFError, TimeoutError):
            self._failures += 1
            self._coming = asyncio.get_running_loop().create_task(self._come_later())
        finally:
            if self._socket is not socket:
                socket.abort()

    async def _come_later(self) -> None:
        await asyncio.sleep(self.crowd.pause * wait_s(self._failures))
        await self._come(contextlib.nullcontext())


class Socket(asyncio.Protocol):
    """One connection of an agent: its handshake, its introduction, and what it answers from then on."""

    def __init__(self, agent: Agent) -> None:
        loop = asyncio.get_running_loop()
        self._agent, self._loop = agent, loop
        self._uri = parse_uri(agent.crowd.url)
        self._conn = ClientProtocol(self._uri)
        self._transport: asyncio.Transport | None = None
        self._joined: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._beat_timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0

    async def open(self) -> None:
        """Connect, and wait until the gateway has taken this agent for its node's.

        Raises:
            OSError: it has not.
        """
        place = (self._agent.seat.address, 0)
        await self._loop.create_connection(
            lambda: self,
            self._uri.host,
            self._uri.port,
            local_addr=place,
            ssl=self._agent.crowd.tls,
        )
        await self._joined

    async def close(self) -> None:
        """Say good-bye, and wait for the end."""
        if self._conn.state is State.OPEN:
            self._conn.send_close(1000)
            self._flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.shield(self._ended)
        self.abort()

    def abort(self) -> None:
        """Drop it."""
        if self._transport is not None:
            self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's has no such base.
        self._transport = cast("asyncio.Transport", transport)
        self._conn.send_request(self._conn.connect())
        self._flush()

    @override
    def data_received(self, data: bytes) -> None:
        self._conn.receive_data(data)
        for event in self._conn.events_received():
            if isinstance(event, Response):
                self._send(type="hello", nodeId=self._agent.seat.node_id, **self._said())
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._take(json.loads(bytes(event.data)))
        self._flush()
        if self._conn.close_expected():
            self._transport_now.close()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        if not self._joined.done():
            self._joined.set_exception(exc or ConnectionResetError("refused"))
            self._joined.exception()  # nobody may wait for it any more
        self._ended.set_result(None)
        self._agent.lost(self)

    @property
    def _transport_now(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def _said(self) -> dict[str, Any]:
        return {"protocol": 2, "nodeKey": self._agent.seat.key.public_hex}

    def _take(self, message: dict[str, Any]) -> None:
        now, crowd = time.perf_counter(), self._agent.crowd
        match message["type"]:
            case "challenge":
                self._resume(message["nonce"])
            case "registered":
                self._joined.set_result(None)
                self._send(type="self_test", rows=_SELF_TEST)
                # Thousands that came together do not beat together for ever.
                first_s = random.random() * crowd.heartbeat_s  # noqa: S311 - no secret
                self._beat_at(self._loop.time() + first_s)
            case "ack" if "id" not in message:
                crowd.acks.append(now - self._sent_at)
            case "job":
                crowd.jobs[message["id"]] = now
                about = {"id": message["id"], "attempt": message["attempt"]}
                self._send(type="job_started", **about)
                result = {"status": "completed", "exitCode": 0, "seconds": 0.0, "logs": ""}
                self._send(type="job_result", **about, **result)

    def _resume(self, nonce: str) -> None:
        seat = self._agent.seat
        text = signed_text(origin_of(self._agent.crowd.url), seat.node_id, nonce)
        self._agent.resumed_at = time.perf_counter()
        self._send(
            type="resume",
            nodeId=seat.node_id,
            signature=seat.key.sign(text),
            hostInfo={"hostname": "gpu-rig", "os": "Debian 12", "gpus": [gpu_of(seat)]},
            isolation="bubblewrap",
            kinds=["test", "command"],
            agentVersion="bench",
            **self._said(),
        )

    def _beat(self, due_s: float) -> None:
        node_id, crowd = self._agent.seat.node_id, self._agent.crowd
        load = {"uuid": f"GPU-{node_id}", "load": 37.0, "memoryMib": 1000, "temperature": 50.0}
        self._sent_at = time.perf_counter()
        self._send(type="heartbeat", nodeId=node_id, jobs=[], gpus=[load])
        self._beat_at(due_s + crowd.heartbeat_s)

    def _beat_at(self, due_s: float) -> None:
        if not self._ended.done():
            self._beat_timer = self._loop.call_at(due_s, self._beat, due_s)

    def _send(self, **message: Any) -> None:
        if self._conn.state is State.OPEN:
            self._conn.send_text(json.dumps(message).encode())
            self._flush()

    def _flush(self) -> None:
        for data in self._conn.data_to_send():
            if data and not self._transport_now.is_closing():
                self._transport_now.write(data)
