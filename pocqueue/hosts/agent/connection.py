"""One connection of an agent to its server: who we are, then whatever there is to tell, until the socket ends.

Everything that has to outlive the socket is elsewhere: the identity and the results on disk, what runs in `Jobs`. So
a connection is the same whether it is the first or the thousandth.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from websockets.exceptions import ConnectionClosed

from pocqueue.hosts.agent.errors import AgentRefused, IdentityError
from pocqueue.hosts.agent.identity import Identity
from pocqueue.hosts.agent.jobs import Jobs
from pocqueue.hosts.agent.messages import (
    Ack,
    Bye,
    Challenge,
    Drain,
    Draining,
    Error,
    FromGateway,
    GpuLoad,
    Heartbeat,
    Hello,
    HostInfo,
    Job,
    JobCancel,
    JobRefused,
    JobStarted,
    Key,
    Message,
    NewKey,
    Register,
    Registered,
    Resume,
    RotateKey,
    SelfTest,
    TestRow,
    Upgrade,
    read_message,
)
from pocqueue.hosts.agent.spool import Attempt
from pocqueue.hosts.protocol import HEARTBEAT_S, CloseCode, ErrorText

_log = logging.getLogger(__name__)

M = TypeVar("M", Challenge, Registered)

#: Seconds within which a server answers the first messages.
ANSWER_S = 30.0
#: Seconds for which a leaving agent waits for its last results to be acknowledged.
LAST_ACK_S = 3.0

#: Codes that close a socket whose refusal is for good.
_FINAL = (CloseCode.REFUSED, CloseCode.BANNED)


class Socket(Protocol):
    """What a connection takes of a WebSocket."""

    async def send(self, message: str) -> None:
        """Send a message."""

    async def recv(self) -> str | bytes:
        """Wait for the next message."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What an agent says of itself and its machine."""

    host_info: HostInfo
    isolation: str
    kinds: tuple[str, ...]
    agent_version: str


@dataclass(eq=False)
class Connection:
    """The life of one socket."""

    socket: Socket
    identity: Identity
    token: str | None
    jobs: Jobs
    introduction: Introduction
    #: Returns the rows of the last self-test.
    self_test: Callable[[], Sequence[TestRow]] = lambda: ()
    loads: Callable[[], Sequence[GpuLoad]] = lambda: ()
    heartbeat_s: float = HEARTBEAT_S
    answer_s: float = ANSWER_S
    #: Set once the server has said who we are.
    registered: asyncio.Event = field(default_factory=asyncio.Event)
    _acknowledged: asyncio.Event = field(default_factory=asyncio.Event)
    _told: set[Attempt] = field(default_factory=set)  #: results that were sent on this socket
    _started: set[Attempt] = field(default_factory=set)  #: attempts whose start was sent

    async def run(self) -> None:
        """Serve the socket until it ends, which raises what the socket raises.

        Raises:
            AgentRefused: the server does not take this agent, and would not the next time.
        """
        async with asyncio.timeout(self.answer_s):
            await self._introduce()
        await self._send_next_key()
        await self._send(SelfTest(rows=tuple(self.self_test())))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._beat())
            tasks.create_task(self._tell())

    async def leave(self) -> None:
        """Say good-bye, after the last results are acknowledged or a moment has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ACK_S):
                while self.jobs.spool.waiting():
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
        await self._send(Bye())

    async def announce_draining(self) -> None:
        """Say that nothing new is taken."""
        await self._send(Draining())

    async def _introduce(self) -> None:
        """Register, or come back."""
        identity = self.identity
        await self._send(Hello(node_key=identity.public_hex, node_id=identity.node_id))
        challenge = await self._answer(Challenge)
        comes_back = bool(identity.node_id) and (
            self.token is None or identity.has_used(self.token)
        )
        if comes_back:
            await self._resume(challenge)
        elif self.token is not None:
            await self._register(challenge)
        else:
            raise AgentRefused(
                f"This machine is no node of {identity.origin} yet: make a token on its page, and give it with "
                "--token or HN_NODE_TOKEN."
            )
        answer = await self._answer(Registered)
        identity.registered(answer.node_id, None if comes_back else self.token)
        self._settle(answer.node_key)
        self.registered.set()
        _log.info("Node %s of %s: %s.", answer.node_id, identity.origin, answer.message)

    async def _register(self, challenge: Challenge) -> None:
        assert self.token is not None
        said = self.introduction
        await self._send(
            Register(
                token=self.token,
                host_info=said.host_info,
                node_key=self.identity.public_hex,
                signature=self.identity.sign("", challenge.nonce),
                isolation=said.isolation,
                kinds=said.kinds,
                agent_version=said.agent_version,
            )
        )

    async def _resume(self, challenge: Challenge) -> None:
        said, node_id = self.introduction, self.identity.node_id
        await self._send(
            Resume(
                node_id=node_id,
                jobs=self.jobs.refs(),
                host_info=said.host_info,
                node_key=self.identity.public_hex,
                signature=self.identity.sign(node_id, challenge.nonce),
                next_signature=self.identity.sign_next(node_id, challenge.nonce),
                isolation=said.isolation,
                kinds=said.kinds,
                agent_version=said.agent_version,
            )
        )

    async def _answer(self, kind: type[M]) -> M:
        """Wait for a message of a kind; others that come before it are passed over.

        Raises:
            AgentRefused: the server says no, and would the next time.
            ConnectionError: it says no for now.
        """
        said = ""
        while True:
            try:
                message = await self._receive()
            except ConnectionClosed as exc:
                if not said:
                    raise
                # A sentence that we do not know; the code says whether it is for good.
                is_final = exc.rcvd is not None and exc.rcvd.code in _FINAL
                kept = AgentRefused if is_final else ConnectionError
                raise kept(f"{self.identity.origin} says: {said}.") from None
            match message:
                case Error(message=text):
                    if text in _advice(self.identity):
                        raise _refusal(text, self.identity)
                    said = text
                case answer if isinstance(answer, kind):
                    return answer

    async def _listen(self) -> None:
        while True:
            match await self._receive():
                case Job() as job:
                    self.jobs.offer(job)
                case JobCancel(id=job_id, attempt=attempt):
                    self.jobs.cancel(Attempt(job_id, attempt))
                case Ack(id=str(job_id), attempt=int(attempt)):
                    await self.jobs.acknowledge(Attempt(job_id, attempt))
                    self._acknowledged.set()
                case Error() as error:
                    await self._failed(error)
                case RotateKey():
                    await self._rotate()
                case Key(node_key=public_hex):
                    self._settle(public_hex)
                case Upgrade(message=text):
                    _log.warning("The server says: %s", text)
                case Drain():
                    # Whether something new comes is the server's to say, also when it takes the node back: so what it
                    # sends all the same is run.
                    _log.info(
                        "The server wants this node to finish what it has; nothing new comes until its operator or "
                        "its owner takes it back."
                    )
                case _:
                    pass

    async def _rotate(self) -> None:
        """Make a new key, and tell the server."""
        try:
            self.identity.make_next_key()
        except IdentityError as exc:
            _log.error("The server wants this node to have a new key. %s", exc)
            return
        await self._send_next_key()

    async def _send_next_key(self) -> None:
        if (found := self.identity.next_key()) is not None:
            await self._send(NewKey(node_key=found[0], signature=found[1]))

    def _settle(self, public_hex: str | None) -> None:
        """Hear which of our keys the server knows."""
        try:
            before = self.identity.public_hex
            self.identity.settle(public_hex or "")
            if self.identity.public_hex != before:
                _log.info("This node has a new key; the old one is of no use any more.")
        except IdentityError as exc:
            _log.error("%s Both keys are kept.", exc)

    async def _failed(self, error: Error) -> None:
        """Hear that a message of ours was not taken."""
        _log.warning("The server says: %s", error.message)
        if error.id is None or error.attempt is None:
            return
        key = Attempt(error.id, error.attempt)
        if error.message == ErrorText.NOT_NOW:
            # Sent again with the next heartbeat.
            self._told.discard(key)
            self._started.discard(key)
        elif error.message == ErrorText.JOB_NOT_FOUND and key in self._told:
            # It will not be there the next time either.
            await self.jobs.acknowledge(key)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_s)
            beat = Heartbeat(
                node_id=self.identity.node_id,
                jobs=self.jobs.refs(),
                gpus=tuple(await asyncio.to_thread(self.loads)),
                clock_ms=round(time.time() * 1000),
            )
            await self._send(beat)
            self.jobs.news.set()

    async def _tell(self) -> None:
        """Send what is new: what runs, what was refused, which results wait."""
        jobs = self.jobs
        while True:
            jobs.news.clear()
            for key in [key for key in jobs.running if key not in self._started]:
                self._started.add(key)
                await self._send(JobStarted(id=key.job, attempt=key.attempt))
            for key, reason in list(jobs.refused.items()):
                await self._send(JobRefused(id=key.job, attempt=key.attempt, reason=reason[:200]))
                del jobs.refused[key]
            for key in [key for key in jobs.spool.waiting() if key not in self._told]:
                if (body := jobs.spool.body(key)) is not None:
                    self._told.add(key)
                    await self.socket.send(body)
            await jobs.news.wait()

    async def _send(self, message: Message) -> None:
        await self.socket.send(message.to_json())

    async def _receive(self) -> FromGateway | None:
        """Return the next message; None if it is none that we know, as of a newer server.

        Raises:
            ConnectionError: none came, though a server that is there answers each heartbeat.
        """
        silence_s = self.heartbeat_s + self.answer_s
        try:
            async with asyncio.timeout(silence_s):
                return read_message(await self.socket.recv())
        except TimeoutError:
            raise ConnectionError(f"it said nothing for {silence_s:g} s") from None


def _refusal(text: str, identity: Identity) -> AgentRefused:
    return AgentRefused(f"{identity.origin} says: {text}; {_advice(identity)[text]}.")


def _advice(identity: Identity) -> dict[str, str]:
    """Return what to do where the server refuses who we are, by what it says."""
    return {
        ErrorText.TOKEN_REQUIRED: "make a token on its page, and give it with --token or HN_NODE_TOKEN",
        ErrorText.INVALID_TOKEN: "it may be too old: make another one on its page",
        ErrorText.TOKEN_EXPIRED: "make another one on its page, and use it within the hour",
        ErrorText.TOKEN_USED: "each is for one machine: make another one on its page",
        ErrorText.INVALID_NODE: "it does not know this machine any more: make a new token on its page",
        ErrorText.INVALID_SIGNATURE: (
            f"the key in {identity.folder} is not that of the node, or it calls itself otherwise than "
            f"{identity.origin}: use the endpoint that its page shows; if the key is lost, register with a new token"
        ),
        ErrorText.BANNED: (
            "ask its operator; or, if its owner has revoked it, make a new token on its page"
        ),
    }
