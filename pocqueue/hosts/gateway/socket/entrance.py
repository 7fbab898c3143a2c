"""How a socket becomes a node's: with a token, or with the key of a node that is known."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from pocqueue import __version__
from pocqueue.errors import TooManyFailures
from pocqueue.hosts import wire
from pocqueue.hosts.errors import NodeKeyError, TokenRefused, UnknownNode
from pocqueue.hosts.gateway.facts import facts_of, is_older
from pocqueue.hosts.node_keys import check_answer, new_nonce
from pocqueue.hosts.records import HostFacts, Node
from pocqueue.hosts.wire import CloseCode, ErrorText

if TYPE_CHECKING:
    from pocqueue.hosts.gateway.socket.agent_socket import AgentSocket

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Refused(Exception):
    """What a socket asks for is refused, and would be again."""

    def __init__(self, text: str, code: CloseCode) -> None:
        super().__init__(text)
        self.text, self.code = text, code


class Entrance:
    """What a socket says before it is a node's."""

    __slots__ = ("_hub", "_nonce", "_socket")

    def __init__(self, socket: AgentSocket) -> None:
        self._socket, self._hub = socket, socket.hub
        self._nonce: str | None = None

    async def _hello(self, message: wire.Hello) -> None:
        self._socket.speaks_2 = True
        self._nonce = new_nonce()
        await self._socket.send(wire.Challenge(nonce=self._nonce))

    async def _register(self, message: wire.Register) -> None:
        if self._socket.is_node:
            raise Refused(ErrorText.INVALID_FORMAT, CloseCode.REFUSED)
        if not message.token:
            raise Refused(ErrorText.TOKEN_REQUIRED, CloseCode.REFUSED)
        key = message.node_key or None
        if key is not None:
            await self._check_key(key, (message.signature,), "")
        facts = facts_of(message)
        if key is None:
            facts = replace(facts, protocol=1)
        hub, socket = self._hub, self._socket
        try:
            node = await self._db(
                hub.store.nodes.register,
                message.token,
                facts,
                address=socket.address,
                key=key,
                relay=hub.relay,
                socket=socket.id,
            )
        except TokenRefused as exc:
            hub.metrics.count("tokens", "refused")
            await self._failed(str(exc))
        except NodeKeyError:
            await self._failed(ErrorText.INVALID_SIGNATURE)
        except UnknownNode:
            raise Refused(ErrorText.BANNED, CloseCode.BANNED) from None
        else:
            hub.metrics.count("tokens", "used")
            # A new node's already; unless another socket with this token and key was quicker.
            if node.socket == socket.id and not hub.has(node.id):
                await self._join(node, None, facts, ())
            else:
                await self._come_back(node.id, key or "", facts, ())

    async def _resume(self, message: wire.Resume) -> None:
        if self._socket.is_node:
            raise Refused(ErrorText.INVALID_FORMAT, CloseCode.REFUSED)
        try:
            key = await self._db(self._hub.store.nodes.key, message.node_id)
        except UnknownNode:
            await self._failed(ErrorText.INVALID_NODE)
            return
        signatures = (message.signature, message.next_signature)
        await self._check_key(key, signatures, message.node_id)
        await self._come_back(message.node_id, key, facts_of(message), message.jobs)

    async def _come_back(
        self, node_id: str, key: str, facts: HostFacts, has: tuple[wire.JobRef, ...]
    ) -> None:
        """Become a known node's socket in place of the one that it had, in one transaction.

        Raises:
            Refused: it has another one whose machine answers, it is out, or its key has changed.
        """
        hub, socket = self._hub, self._socket
        nodes, resumed = hub.store.nodes, None
        async with hub.joining(node_id):
            try:
                if await hub.is_free(node_id, socket):
                    resumed = await self._db(
                        nodes.resume,
                        node_id,
                        facts,
                        address=socket.address,
                        key=key,
                        relay=hub.relay,
                        socket=socket.id,
                        job_ids=[ref.id for ref in has],
                    )
            except UnknownNode:
                now = await self._db(nodes.get, node_id)
                if now.key != key and now.state not in {"revoked", "banned"}:
                    # It changed after it was checked: whoever has the new one comes again with it.
                    raise Refused(ErrorText.NOT_NOW, CloseCode.TRY_LATER) from None
                raise Refused(ErrorText.BANNED, CloseCode.BANNED) from None
            if resumed is None:
                raise Refused(ErrorText.CONNECTED_ELSEWHERE, CloseCode.REPLACED)
            await self._join(resumed.node, resumed.before, facts, has)

    async def _db(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the store once it is this socket's turn, which nodes that are in do not wait for.

        Raises:
            Refused: the time in which it has to be a node's is over; a call that still waits is not made.
        """
        hub = self._hub
        try:
            async with asyncio.timeout_at(self._socket.until_s), hub.entering:
                return await hub.db(call, *args, **kwargs)
        except TimeoutError:
            raise Refused(ErrorText.NOT_NOW, CloseCode.TRY_LATER) from None

    async def _check_key(self, key: str, signatures: tuple[str | None, ...], node_id: str) -> None:
        """See that one of the signatures is by a key.

        Raises:
            Refused: none is.
        """
        nonce, self._nonce = self._nonce, None  # good for one answer, right or wrong
        is_ours = self._hub.origins is None or self._socket.origin in self._hub.origins
        if nonce is None or not is_ours:
            await self._failed(ErrorText.INVALID_SIGNATURE)
        text = wire.signed_text(self._socket.origin, node_id, nonce or "")
        for signature in signatures:
            with contextlib.suppress(NodeKeyError):
                check_answer(key, signature or "", text)
                return
        await self._failed(ErrorText.INVALID_SIGNATURE)

    async def _failed(self, text: str) -> None:
        """Count a wrong token or signature, and refuse it.

        Raises:
            Refused: always.
        """
        self._hub.metrics.count("auth_failures")
        logger.warning("Refused an agent from %s: %s", self._socket.address, text)
        try:
            await self._hub.failures.count(self._socket.address)
        except TooManyFailures as exc:
            raise Refused(str(exc), CloseCode.TOO_FAST) from None
        raise Refused(text, CloseCode.REFUSED)

    async def _join(
        self,
        node: Node,
        before: tuple[str, str] | None,
        facts: HostFacts,
        has: tuple[wire.JobRef, ...],
    ) -> None:
        """Speak as a node from now on; the database has this socket as its node's."""
        socket = self._socket
        socket.node, socket.facts = node, facts
        await self._hub.join(socket, before)
        socket.is_node = True
        self._hub.heard(socket, has)
        is_new = node.protocol > 1
        server_ms = self._hub.store.now_ms() if is_new else None
        await socket.send(wire.Registered(node_id=node.id, server_ms=server_ms, node_key=node.key))
        if is_new and is_older(facts.agent_version, __version__):
            why = f"This gateway is of pocqueue {__version__} and this agent of {facts.agent_version}: install that one."
            await socket.send(wire.Upgrade(version=__version__, message=why))
        if is_new and node.state == "draining":
            await socket.send(wire.Drain())  # it may have been away when it was told
        logger.info("Node %s is connected from %s.", node.id, socket.address)
        socket.spawn(self._settle(has))

    async def _settle(self, has: tuple[wire.JobRef, ...]) -> None:
        """Agree on the jobs that the node has: what it lacks is sent again, what is over is ended."""
        hub, socket, node = self._hub, self._socket, self._socket.node
        if node.protocol > 1:
            known = {(ref.id, ref.attempt) for ref in has}
            socket.delivered |= known
            turns = await hub.patiently(hub.store.leases.open_on, node.id)
            for job, turn in turns:
                await hub.deliver(socket, job.id, turn.n)
            open_ones = {(job.id, turn.n) for job, turn in turns}
            for job_id, n in sorted(known - open_ones):
                await socket.send(wire.JobCancel(id=job_id, attempt=n))
        hub.messenger.look()
        await hub.give_first_job(node.id)

    #: What takes a message, by its type.
    SAYS: ClassVar[Mapping[type[wire.Message], Callable[[Any, Any], Awaitable[None]]]] = {
        wire.Hello: _hello,
        wire.Register: _register,
        wire.Resume: _resume,
    }
