"""All links of a node: listens, dials, lets in, passes on, asks and answers."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Coroutine, Iterable, Sequence
from random import SystemRandom
from typing import Any

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import LinkError, PeerFault
from pocqueue.pouw.p2p.channel import Channel, Traffic
from pocqueue.pouw.p2p.discovery import Discovery
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.handshake import Identity, Refused, accepted, dialled
from pocqueue.pouw.p2p.limits import is_loopback
from pocqueue.pouw.p2p.link import Link
from pocqueue.pouw.p2p.messages import Hello, Reason
from pocqueue.pouw.p2p.relay import Relay
from pocqueue.pouw.p2p.roster import Roster
from pocqueue.pouw.p2p.service import NetworkConfig, PeerInfo, Service
from pocqueue.pouw.p2p.sockets import accept, dial, listen, over_tls
from pocqueue.pouw.p2p.tls import Certificate, dialling_context
from pocqueue.pouw.wire.codec import encode

#: Connections that are not links yet; more are closed as they come.
MAX_HALF_OPEN = 64
#: The same of one address outside loopback.
MAX_HALF_OPEN_OF_ADDRESS = 8
_RELAY_TICK_S = 0.5
_GOODBYE_S = 3.0

logger = logging.getLogger(__name__)


class Network:
    """The links of one node. Starts once.

    Args:
        key: the node's account.
        network: its 32-byte id; nodes of others are refused.
        config: see `NetworkConfig`.
        service: takes what peers send and answers them.
    """

    def __init__(
        self, key: SigningKey, network: bytes, config: NetworkConfig, service: Service
    ) -> None:
        self.config = config
        #: What all links carried since the start.
        self.traffic = Traffic()
        #: Where it listens, as (IP address, port); empty before `start` and after `stop`.
        self.listening: tuple[tuple[str, int], ...] = ()
        self._key, self._network, self._service = key, network, service
        self._account = bytes.fromhex(key.public_hex)
        self._roster = Roster(self._account, config)
        self._relay = Relay(self._roster.links, service)
        self._discovery = Discovery(config, self._roster, self._dial, SystemRandom())
        self._listeners: list[socket.socket] = []
        self._loops: list[asyncio.Task[None]] = []
        self._half_open: dict[asyncio.Task[None], str] = {}  # with the address it comes from
        self._kept: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, and begin to dial.

        Raises:
            LinkError: the port is taken, or the host is not this machine.
        """
        self._certificate = Certificate.generate()
        self._dialling_context = dialling_context()
        self._listeners = await listen(self.config.host, self.config.port)
        self.listening = tuple(each.getsockname()[:2] for each in self._listeners)
        self._identity = Identity(
            self._key,
            self._account,
            self._network,
            self.config.node_id,
            self.config.role,
            self.listening[0][1],
        )
        await self._discovery.begin(list(self.listening))
        loops: list[Coroutine[Any, Any, None]] = [
            *(accept(each, self._on_connection) for each in self._listeners),
            self._discovery.run(),
            self._ask_again(),
        ]
        self._loops = [asyncio.create_task(loop) for loop in loops]
        for task in self._loops:
            task.add_done_callback(self._loop_ended)

    async def first_dials(self, timeout_s: float) -> None:
        """Wait until each bootstrap peer was tried once, or for so long."""
        await self._discovery.first_dials(timeout_s)

    async def stop(self) -> None:
        """Say goodbye, end all links and stop listening, within 5 s. May be called again."""
        self._roster.is_open = False
        await _cancelled([*self._loops, *self._half_open])
        for sock in self._listeners:
            sock.close()
        self._listeners, self.listening = [], ()
        for link in list(self._roster.links.values()):
            link.close(Reason.STOPPING)
        if self._kept:
            await asyncio.wait(self._kept, timeout=_GOODBYE_S)
        await _cancelled(list(self._kept))
        await self._discovery.end()

    @property
    def account(self) -> bytes:
        """The node's own account, 33 bytes."""
        return self._account

    @property
    def port(self) -> int:
        """Where it listens; 0 if it does not."""
        return self.listening[0][1] if self.listening else 0

    @property
    def is_local(self) -> bool:
        """It listens on this machine alone."""
        return bool(self.listening) and all(is_loopback(host) for host, _ in self.listening)

    @property
    def peers(self) -> list[PeerInfo]:
        """All peers that have a link now."""
        return [link.info for link in self._roster.links.values()]

    async def connect(self, host: str, port: int) -> PeerInfo:
        """Return the peer that listens there, over a new link or the one that there is; dialled for good from now on.

        Raises:
            LinkError: there is none after `handshake_s`, in words that fit behind a colon.
        """
        return (await self._discovery.link_to(host, port)).info

    def prefer(self, places: Sequence[tuple[str, int]]) -> None:
        """Keep a few links to nodes that listen at these hosts and ports, beside all others."""
        self._discovery.prefer(places)

    def dial_all(self, places: Sequence[tuple[str, int]]) -> None:
        """Dial each of these places that there is no link to, once."""
        self._discovery.dial_all(places)

    async def disconnect(self, who: bytes | str) -> bool:
        """End the link with an account, or with a node of this name, and keep it out for ten minutes.

        Returns:
            False if there is no such peer.
        """
        link = self._roster.find(who)
        if link is None:
            return False
        self._roster.conduct.ban(link.account, time.monotonic())
        self._discovery.forget(link.account)
        link.close(Reason.UNWANTED)
        return True

    def set_members(self, members: Iterable[bytes]) -> None:
        """Say who is in the committee: what members say to each other goes to them alone, if this node is linked to all; and
        who of them is out of reach is dialled more often than others.
        """
        self._relay.members = self._discovery.members = frozenset(members) - {self._account}

    def push(self, kind: Kind, body: bytes) -> int:
        """Send a message of this node's to all peers whom it concerns; return the number of peers."""
        self._relay.push(kind, body)
        return len(self._roster.links)

    def tell(self, kind: Kind, body: bytes) -> None:
        """Let peers have a message that another node pushes as well, if it does not come to them."""
        self._relay.tell(kind, body)

    def publish(self, kind: Kind, body: bytes) -> None:
        """Send what a committee has come to to all peers but its members, who are told of it."""
        self._relay.publish(kind, body)

    def turn_is_over(self) -> None:
        """Tell peers no longer of what members and miners said up to now: a turn is decided, and its record is here."""
        self._relay.turn_is_over()

    def push_block(self, identifier: bytes, body: bytes) -> None:
        """Send a block of this node's to all peers."""
        self._relay.push_block(identifier, body)

    def announce(self, kind: Kind, *ids: bytes, to: bytes | None = None) -> int:
        """Tell peers of TXs or BLOCKs that `Service.body` has; return their number.

        Args:
            kind: TX or BLOCK.
            ids: what is announced.
            to: the account of the peer that is told; None: all are.
        """
        return self._relay.announce(kind, ids, to=to)

    async def request(
        self, account: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0
    ) -> bytes:
        """Return a peer's answer.

        Do not wait for it within `Service.receive`, or messages of that peer wait as well.

        Raises:
            LinkError: there is no link, it refuses, or it does not answer in time.
        """
        link = self._roster.links.get(account)
        if link is None:
            raise LinkError("it has no link")
        return await link.request(kind, body, timeout_s)

    def charge(self, account: bytes, points: int, reason: str) -> None:
        """Hold something against an account, whether it has a link or not."""
        link = self._roster.links.get(account)
        if link is not None:
            self.on_fault(link, PeerFault(points, reason))
        elif self.config.bans:
            self._roster.conduct.charge(account, points, time.monotonic())

    async def on_message(self, link: Link, kind: Kind, body: bytes) -> None:
        """See `LinkOwner`."""
        await self._relay.take(link, kind, body)

    async def on_request(self, link: Link, kind: Kind, body: bytes) -> bytes:
        """See `LinkOwner`."""
        if kind == Kind.PEX:
            return self._discovery.told(link.info.host)
        if kind == Kind.SLOTS:
            self._relay.is_in_need(link)
        return await self._service.serve(link.info, kind, body)

    def on_fault(self, link: Link, fault: PeerFault) -> None:
        """See `LinkOwner`."""
        peer = link.info
        is_banned = False
        if self.config.bans:
            conduct, now_s = self._roster.conduct, time.monotonic()
            is_banned = conduct.charge(peer.account, fault.points, now_s)
            conduct.charge(peer.host, fault.points, now_s)
        reason = str(fault)
        logger.info(
            "[%s] %d points against %s (%s): %s.",
            *(self.config.node_id, fault.points, peer.node_id, peer.host, reason),
        )
        self._service.charged(peer, fault.points, reason, is_banned)
        if is_banned:
            link.close(Reason.BANNED)

    def on_end(self, link: Link, reason: str) -> None:
        """See `LinkOwner`."""
        del self._roster.links[link.account]
        self._relay.gone(link)
        self._discovery.unlinked(link)
        self._service.unlinked(link.info, reason)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.error("[%s] Links failed.", self.config.node_id, exc_info=task.exception())

    async def _ask_again(self) -> None:
        while True:
            await asyncio.sleep(_RELAY_TICK_S)
            self._relay.ask_again()

    def _on_connection(self, connection: socket.socket, host: str) -> None:
        is_banned = self._roster.conduct.is_banned(host, time.monotonic())
        if is_banned or len(self._half_open) >= MAX_HALF_OPEN or self._holds_many_open(host):
            connection.close()
            return
        task = asyncio.create_task(self._let_in(connection, host))
        self._half_open[task] = host

        def ended(task: asyncio.Task[None]) -> None:
            del self._half_open[task]
            if task.cancelled():  # it may be before its first step
                connection.close()

        task.add_done_callback(ended)

    def _holds_many_open(self, host: str) -> bool:
        held = sum(other == host for other in self._half_open.values())
        return held >= MAX_HALF_OPEN_OF_ADDRESS and not is_loopback(host)

    async def _let_in(self, connection: socket.socket, host: str) -> None:
        channel, is_linked = None, False
        try:
            async with asyncio.timeout(self.config.handshake_s):
                streams = await over_tls(connection, self._certificate.context, server_side=True)
                channel = Channel(*streams, self.traffic)
                account, theirs, mine = await accepted(
                    channel,
                    self._identity,
                    self._certificate.digest,
                    lambda account: self._roster.check(account, caller=host),
                )
                self._roster.make_way(account, caller=host)
                channel.send(Kind.HELLO, encode(mine))
                self._linked(channel, account, theirs, (host, theirs.port), outbound=False)
                is_linked = True
        except (OSError, TimeoutError) as exc:
            # LinkError is an OSError, too.
            logger.debug("[%s] No link from %s: %s", self.config.node_id, host, exc)
            if isinstance(exc, PeerFault) and self.config.bans:
                self._roster.conduct.charge(host, exc.points, time.monotonic())
            if channel is not None:
                _refuse(channel, exc)
        finally:
            if channel is not None and not is_linked:
                await channel.close()

    async def _dial(self, host: str, port: int) -> Link:
        channel, link = None, None
        try:
            async with asyncio.timeout(self.config.handshake_s):
                streams, address = await dial(host, port, self._dialling_context)
                channel = Channel(*streams, self.traffic)
                account, hello = await dialled(
                    channel,
                    self._identity,
                    self._roster.check,
                )
                self._roster.make_way(account)
                link = self._linked(channel, account, hello, (address, port), outbound=True)
                return link
        except TimeoutError:
            raise LinkError(f"no answer within {self.config.handshake_s:g} s") from None
        except LinkError as exc:
            if channel is not None:
                _refuse(channel, exc)
            if isinstance(exc, Refused) and exc.reason is Reason.DUPLICATE:
                other = self._roster.links.get(exc.account or b"")
                if other is not None:
                    return other
            raise
        finally:
            if channel is not None and link is None:
                await channel.close()

    def _linked(
        self,
        channel: Channel,
        account: bytes,
        hello: Hello,
        where: tuple[str, int],
        *,
        outbound: bool,
    ) -> Link:
        host, port = where
        peer = PeerInfo(account, hello.node_id, hello.role, host, port, None, outbound, time.time())
        link = self._roster.links[account] = Link(channel, peer, self, self.config)
        task = asyncio.create_task(self._keep(link))
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        self._discovery.linked(link)
        self._service.linked(link.info)
        return link

    async def _keep(self, link: Link) -> None:
        learner = asyncio.create_task(self._discovery.learn(link))
        try:
            await link.run()
        finally:
            learner.cancel()


def _refuse(channel: Channel, exc: BaseException) -> None:
    if isinstance(exc, Refused):
        if not exc.by_peer:
            channel.say_goodbye(exc.reason)
    elif isinstance(exc, PeerFault):
        channel.say_goodbye(Reason.FAULT)


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
