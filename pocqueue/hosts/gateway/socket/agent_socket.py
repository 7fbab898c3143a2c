"""One agent's socket, from its handshake to its end: the conversation of `hosts.wire`.

A socket is nobody's until its `register` or `resume` is taken (`entrance`); then it is its node's, and speaks of that
node's jobs alone (`conversation`). What is refused is answered with an `error`, and the socket stays, unless the same
again would be refused again (an agent of protocol 2 is then told so by the close code) or somebody sends too fast.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from typing_extensions import override

from pocqueue.errors import PocqueueError
from pocqueue.hosts import wire
from pocqueue.hosts.errors import DatabaseUnavailable, DatabaseUnfit
from pocqueue.hosts.gateway.hub import Connection, Hub
from pocqueue.hosts.gateway.limits import MessageBudget
from pocqueue.hosts.gateway.socket.conversation import ACK, Conversation
from pocqueue.hosts.gateway.socket.entrance import Entrance, Refused
from pocqueue.hosts.records import HostFacts
from pocqueue.hosts.wire import CloseCode, ErrorText
from pocqueue.web.websocket import SOCKET, LiveSocket, text_frame

logger = logging.getLogger(__name__)

#: What an agent says once: it is taken when the database is back.
_SAID_ONCE = wire.JobRefused | wire.SelfTest | wire.Draining
#: How agents begin a heartbeat, and the longest that is taken apart: that of a machine with some GPUs and jobs.
_BEAT: Final = b'{"type":"heartbeat"', b'{"type": "heartbeat"'
_MAX_BEAT_BYTES: Final = 4096
_ACK: Final = text_frame(ACK)
#: Such messages of one socket that wait; more are refused.
_MAX_LATER: Final = 64


class AgentSocket(Connection):
    """A socket of the hub.

    Args:
        hub: of this gateway.
        websocket: not accepted yet.
        address: network address of the agent.
        origin: the name by which the agent has called this gateway, see `wire.origin_of`.
    """

    __slots__ = (
        "_beat",
        "_budget",
        "_conversation",
        "_entrance",
        "_later",
        "_live",
        "_sending",
        "_tasks",
        "_websocket",
        "address",
        "facts",
        "hub",
        "is_node",
        "origin",
        "speaks_2",
        "until_s",
    )

    def __init__(self, hub: Hub, websocket: WebSocket, address: str, origin: str) -> None:
        self.id = hub.new_id()
        self.delivered = set()
        self.hub, self.address, self.origin = hub, address, origin
        self.is_node = False
        self.speaks_2 = False  #: it has said hello
        self.until_s = 0.0  #: by the loop's clock: it has to be a node's by then
        self.facts = HostFacts()  #: what its machine says of itself
        self._websocket = websocket
        self._beat: bytes | None = None  # that waits, see `beats`
        self._budget = MessageBudget()
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: dict[tuple[str, ...], wire.Message] = {}
        self._entrance, self._conversation = Entrance(self), Conversation(self)

    async def run(self) -> None:
        """Speak until the socket ends."""
        await self._websocket.accept()
        self._live: LiveSocket = self._websocket.scope["state"][SOCKET]
        loop = asyncio.get_running_loop()
        self.until_s = loop.time() + self.hub.timings.register_s
        deadline = loop.call_at(self.until_s, self._end_if_nobody)
        try:
            self._live.take = self._take_apart
            while (text := await self._next()) is not None:
                await self._take(text)
        finally:
            self._live.take = None
            deadline.cancel()
            for task in list(self._tasks):
                task.cancel()
            await self._conversation.end()
            if self.is_node:
                await self.hub.leave(self)

    # As the hub sees it

    @override
    async def send(self, message: wire.Message) -> bool:
        return await self.say(message.to_json())

    async def say(self, text: str) -> bool:
        """Send a message as it is on the wire; False: it cannot be sent any more."""
        try:
            async with self._sending:
                return await self._live.say(text, self.hub.timings.send_s)
        except TimeoutError:
            # It does not read. There may be a lot on its way, so that no farewell would arrive either.
            self._live.abort()
            return False

    @override
    async def answers(self) -> bool:
        return await self._live.answers(self.hub.timings.ping_s)

    @override
    async def close(self, code: CloseCode) -> None:
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        try:
            async with asyncio.timeout(self.hub.timings.send_s):
                await self._websocket.close(code)
        except TimeoutError:
            self._live.abort()
        except (RuntimeError, WebSocketDisconnect):
            logger.debug("a socket had ended before it was closed")

    # The conversation

    async def _next(self) -> str | bytes | None:
        """Return the next message; None: the socket has ended."""
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            return None
        text: str | None = event.get("text")
        return text if text is not None else bytes(event.get("bytes") or b"")

    def _take_apart(self, data: bytes) -> bool:
        """Take a heartbeat past the steps of all other messages: nearly all that comes is one.

        Returns:
            False: it is none, another one waits, or the agent has to read first.
        """
        is_beat = data.startswith(_BEAT) and len(data) <= _MAX_BEAT_BYTES
        is_ready = self.is_node and self._beat is None and self._live.writable.is_set()
        if not is_beat or not is_ready:
            return False
        self._beat = data
        self.hub.beats.add(self._take_beat)
        return True

    def _take_beat(self) -> None:
        """Take the heartbeat that waits."""
        data, self._beat = self._beat or b"", None
        is_ready = self._live.writable.is_set() and not self._sending.locked()
        message = wire.read_heartbeat(data) if is_ready else None
        if message is None or message.node_id != self.node.id or not self._budget.take():
            # It is wrong, or too much, or has to wait for its answer after all.
            self.spawn(self._take(data))
            return
        self.hub.metrics.count("messages", message.type)
        self._conversation.beats(message)
        self._live.say_at_once(_ACK)

    async def _take(self, text: str | bytes) -> None:
        if not self._budget.take():
            await self.error(ErrorText.TOO_FAST)
            await self.close(CloseCode.TOO_FAST)
            return
        try:
            message = wire.read_from_agent(text)
        except wire.BadMessage as exc:
            self.hub.metrics.count("messages", "none")
            await self.error(str(exc))
            return
        self.hub.metrics.count("messages", message.type)
        if self.is_node:
            self.hub.heard(self)
        # What is said now is newer.
        self._later.pop(_about(message), None)
        try:
            await self._handle(message)
        except Refused as exc:
            await self.error(exc.text)
            if self.speaks_2 or exc.code is CloseCode.TOO_FAST:
                await self.close(exc.code)
        except DatabaseUnavailable as exc:
            logger.warning("A message of an agent is not taken. %s", exc)
            if isinstance(message, _SAID_ONCE) and len(self._later) < _MAX_LATER:
                self._later[_about(message)] = message
                if len(self._later) == 1:
                    self.spawn(self._take_later())
            elif isinstance(message, wire.JobStarted | wire.JobRefused):
                await self.error(ErrorText.NOT_NOW, message.id, message.attempt)
            else:
                await self.error(ErrorText.NOT_NOW)
            if self.speaks_2 and not self.is_node:
                await self.close(CloseCode.TRY_LATER)

    async def _handle(self, message: wire.Message) -> None:
        if (enter := Entrance.SAYS.get(type(message))) is not None:
            await enter(self._entrance, message)
        else:
            await Conversation.SAYS[type(message)](self._conversation, message)

    async def _take_later(self) -> None:
        """Take what waits for the database. It ends with the socket: an agent that comes back says it again."""
        while self._later:
            await asyncio.sleep(self.hub.timings.retry_s)
            for about, message in list(self._later.items()):
                try:
                    await self._handle(message)
                except (DatabaseUnavailable, DatabaseUnfit):
                    break
                except PocqueueError as exc:
                    logger.warning("A message of an agent is not taken. %s", exc)
                if self._later.get(about) is message:
                    del self._later[about]

    async def error(self, text: str, job_id: str | None = None, n: int | None = None) -> None:
        """Say that a message was refused; of a job only to agents that name attempts."""
        about = (job_id, n) if n is not None else (None, None)
        await self.send(wire.Error(message=text, id=about[0], attempt=about[1]))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something for as long as the socket lasts, at most."""
        task = self.hub.spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end_if_nobody(self) -> None:
        if not self.is_node:
            self.spawn(self.close(CloseCode.TRY_LATER))


def _about(message: wire.Message) -> tuple[str, ...]:
    """Return what a message is about: of two about the same the newer one counts."""
    if isinstance(message, wire.JobRefused):
        return "job_refused", message.id, str(message.attempt)
    return (type(message).__name__,)
