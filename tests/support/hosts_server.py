"""A server of GPU hosts for tests of the agent: speaks `pocqueue.hosts.wire` on a real socket, and does what a test says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from pocqueue.hosts.wire import (
    RESULT_RECEIVED,
    Ack,
    Challenge,
    CloseCode,
    Error,
    ErrorText,
    FromAgent,
    Heartbeat,
    Hello,
    JobResult,
    Message,
    Register,
    Registered,
    Resume,
    read_from_agent,
    signed_text,
)
from tests.support.waiting import until

M = TypeVar("M")


@dataclass
class HostsServer:
    """What a test sees of the server, and may change."""

    tokens: set[str] = field(default_factory=lambda: {"token-one"})
    acknowledges: bool = True  #: results
    is_silent: bool = False  #: heartbeats are not answered
    refuses: tuple[ErrorText, CloseCode] | None = None  #: whoever comes
    received: list[FromAgent] = field(default_factory=list)
    nodes: dict[str, str] = field(default_factory=dict)  #: public key by node id
    used: dict[str, str] = field(default_factory=dict)  #: node id by token
    socket: ServerConnection | None = None  #: the last node's
    port: int = 0
    _server: Server | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"ws://127.0.0.1:{self.port}"

    def of(self, kind: type[M]) -> list[M]:
        """Return the messages of a kind that came."""
        return [message for message in self.received if isinstance(message, kind)]

    async def next(self, kind: type[M], count: int = 1) -> M:
        """Wait until so many messages of a kind have come; return the last one."""
        await until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    async def send(self, message: Message) -> None:
        """Send something to the node."""
        assert self.socket is not None
        await self.socket.send(message.to_json())

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await serve(self._serve, "127.0.0.1", self.port, compression=None)
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Close every socket, as in a restart."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            node_id = nonce = ""
            async for text in socket:
                message = read_from_agent(text)
                self.received.append(message)
                match message:
                    case Hello():
                        nonce = f"nonce-{len(self.received)}"
                        await socket.send(Challenge(nonce=nonce).to_json())
                    case Register() | Resume():
                        node_id = await self._introduced(socket, message, nonce)
                    case Heartbeat():
                        assert message.node_id == node_id
                        if not self.is_silent:
                            await socket.send(Ack().to_json())
                    case JobResult() if self.acknowledges:
                        await socket.send(
                            Ack(
                                message=RESULT_RECEIVED, id=message.id, attempt=message.attempt
                            ).to_json()
                        )

    async def _introduced(
        self, socket: ServerConnection, message: Register | Resume, nonce: str
    ) -> str:
        refusal = self.refuses
        node_id = message.node_id if isinstance(message, Resume) else ""
        key = self.nodes.get(node_id) if isinstance(message, Resume) else message.node_key
        if refusal is None and isinstance(message, Register):
            if message.token in self.used and key and self.nodes[self.used[message.token]] == key:
                pass  # its answer was lost
            elif message.token in self.used:
                refusal = ErrorText.TOKEN_USED, CloseCode.REFUSED
            elif message.token not in self.tokens:
                refusal = ErrorText.INVALID_TOKEN, CloseCode.REFUSED
        if refusal is None and message.protocol == 1:
            assert isinstance(message, Register)
            self.used[message.token] = node_id = f"node-{len(self.used) + 1}"
            await socket.send(Registered(node_id=node_id).to_json())
            self.socket = socket
            return node_id
        if refusal is None and key is None:
            refusal = ErrorText.INVALID_NODE, CloseCode.REFUSED
        if refusal is None:
            assert key is not None
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
            try:
                public.verify(
                    bytes.fromhex(message.signature or ""), signed_text("127.0.0.1", node_id, nonce)
                )
            except InvalidSignature:
                refusal = ErrorText.INVALID_SIGNATURE, CloseCode.REFUSED
        if refusal is not None:
            text, code = refusal
            await socket.send(Error(message=text).to_json())
            await socket.close(code, text)
            return ""
        if isinstance(message, Register):
            assert key is not None
            node_id = self.used.setdefault(message.token, f"node-{len(self.nodes) + 1}")
            self.nodes[node_id] = key
        await socket.send(Registered(node_id=node_id, server_ms=0).to_json())
        self.socket = socket
        return node_id


@contextlib.asynccontextmanager
async def hosts_server() -> AsyncIterator[HostsServer]:
    """Run one within the block."""
    server = HostsServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
