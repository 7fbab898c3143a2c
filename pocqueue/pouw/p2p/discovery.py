"""Finds peers: dials those that are wanted for good, and a few of all that are heard of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random

from pocqueue.files import replace_file
from pocqueue.pouw.errors import BadEncoding, LinkError, PeerFault
from pocqueue.pouw.p2p.dialing import Failures
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.handshake import Refused
from pocqueue.pouw.p2p.link import Link
from pocqueue.pouw.p2p.messages import Address, Addresses, Reason
from pocqueue.pouw.p2p.peers import AddressTable
from pocqueue.pouw.p2p.roster import Roster
from pocqueue.pouw.p2p.service import NetworkConfig
from pocqueue.pouw.p2p.sockets import is_address
from pocqueue.pouw.wire.codec import decode, encode

#: Links that a node dials by itself, if there are so many addresses.
MAX_DIALLED = 8
#: Links to nodes with tickets that are dialled beside those: whoever surrounds this node has none for free.
MAX_PREFERRED = 4
#: When a new peer is asked for addresses, and how often from then on.
_ASK_AFTER_S = (0.0, 5.0, 20.0)
_ASK_EVERY_S = 60.0
_TICK_S = 0.5
_SAVE_EVERY_S = 60.0
_FILE_NAME = "peers.json"
#: A link that ends before is a failed dial.
_SHORT_S = 10.0
#: A member of the committee is dialled again after so long at most: a network that was cut in two is to be one soon.
_MEMBER_PAUSE_S = 4.0

_Where = tuple[str, int]  # host as it was given, port

logger = logging.getLogger(__name__)


class Discovery:
    """Who is dialled, and when.

    Args:
        config: bootstrap peers, folder, name for logs.
        roster: the links there are.
        dial: makes a link, or raises LinkError.
        rng: for choices.
    """

    def __init__(
        self,
        config: NetworkConfig,
        roster: Roster,
        dial: Callable[[str, int], Awaitable[Link]],
        rng: Random,
    ) -> None:
        self._config, self._roster, self._dial, self._rng = config, roster, dial, rng
        self._table = AddressTable()
        self._failures = Failures()
        self._kept: dict[_Where, None] = dict.fromkeys(config.bootstrap)
        self._preferred: tuple[_Where, ...] = ()
        self._own: set[_Where] = set()
        self._accounts: dict[_Where, bytes] = {}
        self._dialling: dict[_Where, asyncio.Task[Link]] = {}
        self._said: dict[_Where, str] = {}  # why a link that is wanted for good failed
        self._has_begun = False
        #: Accounts of the committee.
        self.members: frozenset[bytes] = frozenset()

    async def begin(self, own: list[_Where]) -> None:
        """Read the table from disk and dial the bootstrap peers.

        Args:
            own: where this node listens itself.
        """
        self._own.update(own)
        self._has_begun = True
        if self._config.folder is not None:
            self._table = await asyncio.to_thread(_load, self._config.folder / _FILE_NAME)
        self._dial_due()

    async def first_dials(self, timeout_s: float) -> None:
        """Wait until each dial that is on its way has ended, or for so long."""
        if self._dialling:
            await asyncio.wait(self._dialling.values(), timeout=timeout_s)

    async def run(self) -> None:
        """Dial whoever is due, until cancelled."""
        saved_s = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            self._dial_due()
            if time.monotonic() - saved_s >= _SAVE_EVERY_S:
                await self.save()
                saved_s = time.monotonic()

    async def end(self) -> None:
        """Dial no more, and keep the table."""
        dials = list(self._dialling.values())
        for task in dials:
            task.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        await self.save()

    async def save(self) -> None:
        """Write the table to disk, if there is a folder for it."""
        if self._config.folder is None or not self._has_begun:
            return  # and what is there from before stays
        path, data = self._config.folder / _FILE_NAME, self._table.to_bytes()
        try:
            await asyncio.to_thread(_save, path, data)
        except OSError as exc:
            name = self._config.node_id
            logger.warning("[%s] Addresses of peers cannot be kept: %s", name, exc)

    async def link_to(self, host: str, port: int) -> Link:
        """Return the link with whoever listens there; dial if there is none.

        Raises:
            LinkError: there is none, in words that fit behind a colon.
        """
        link = self._link_at(host, port)
        if link is None:
            link = await asyncio.shield(self._started(host, port))
        self._kept[host, port] = None
        return link

    def prefer(self, places: Sequence[_Where]) -> None:
        """Keep links to some of these places from now on, instead of those that were named before."""
        self._preferred = tuple(places)

    def dial_all(self, places: Sequence[_Where]) -> None:
        """Dial each of these places that is due and that there is no link to."""
        now_s = time.monotonic()
        for where in places:
            if self._roster.is_open and self._may_dial(where, now_s):
                self._started(*where)

    async def learn(self, link: Link) -> None:
        """Ask a peer for addresses now and then, until cancelled."""
        waits = iter(_ASK_AFTER_S)
        while True:
            await asyncio.sleep(next(waits, _ASK_EVERY_S))
            with contextlib.suppress(LinkError):
                answer = await link.request(Kind.PEX, b"", 10.0)
                try:
                    told = decode(answer, Addresses).addresses
                except BadEncoding:
                    link.fault(PeerFault(20, "it sent no addresses where they are due"))
                    continue
                for address in told:
                    self._hint(address, link.info.host)

    def told(self, asker: str) -> bytes:
        """Return the answer to a request for addresses that comes from this IP address."""
        return encode(Addresses(self._table.sample(asker, self._rng)))

    def linked(self, link: Link) -> None:
        """Note where a new peer listens. If it is a member that was out of reach, whatever was between may have been between
        this node and others, too.
        """
        peer = link.info
        came_back = [self._failures.worked(*where) for where in self._places(peer.account)]
        if peer.account in self.members and any(came_back):
            self._failures.all_due(time.monotonic())
        if peer.port:
            self._table.seen(Address(peer.host, peer.port), int(time.time()))
            if peer.outbound:  # a peer that dialled may say any port
                self._accounts[peer.host, peer.port] = peer.account

    def unlinked(self, link: Link) -> None:
        """Wait a while before whoever lost a new link at once is dialled again."""
        if time.monotonic() - link.began_s < _SHORT_S:
            for host, port in self._places(link.account):
                self._failures.failed(host, port, time.monotonic())

    def forget(self, account: bytes) -> None:
        """Dial an account no more."""
        for host, port in self._places(account):
            self._kept.pop((host, port), None)
            if is_address(host):
                self._table.forget(Address(host, port))

    def _hint(self, address: Address, source: str) -> None:
        if 0 < address.port < 65536 and (address.host, address.port) not in self._own:
            self._table.hint(address, source)

    def _places(self, account: bytes) -> list[_Where]:
        return [where for where, other in self._accounts.items() if other == account]

    def _link_at(self, host: str, port: int) -> Link | None:
        account = self._accounts.get((host, port))
        return None if account is None else self._roster.links.get(account)

    def _dial_due(self) -> None:
        if not self._roster.is_open:
            return
        now_s = time.monotonic()
        for where in self._kept:
            if self._may_dial(where, now_s):
                self._started(*where)
        self._dial_preferred(now_s)
        outbound = sum(link.outbound for link in self._roster.links.values())
        wanted = min(MAX_DIALLED, max(1, self._config.max_peers // 2))
        places = min(wanted - outbound, self._config.max_peers - len(self._roster.links))
        places -= len(self._dialling)
        for address in self._table.shuffled(self._rng) if places > 0 else ():
            where = (address.host, address.port)
            if places > 0 and self._may_dial(where, now_s):
                self._started(*where)
                places -= 1

    def _dial_preferred(self, now_s: float) -> None:
        """Dial nodes with tickets, if there are too few outbound links to such."""
        links = [self._link_at(*where) for where in self._preferred]
        kept = {link.account for link in links if link is not None and link.outbound}
        places = min(
            MAX_PREFERRED - len(kept), self._config.max_peers - len(self._roster.links)
        ) - len(self._dialling)
        for where in self._rng.sample(self._preferred, len(self._preferred)):
            if places <= 0:
                return
            if self._may_dial(where, now_s):
                self._started(*where)
                places -= 1

    def _may_dial(self, where: _Where, now_s: float) -> bool:
        if where in self._own or where in self._dialling:
            return False
        if not self._failures.is_due(*where, now_s):
            return False
        account = self._accounts.get(where)
        return account is None or not (
            account in self._roster.links
            or account in map(self._accounts.get, self._dialling)  # by another of its addresses
            or self._roster.conduct.is_banned(account, now_s)
        )

    def _started(self, host: str, port: int) -> asyncio.Task[Link]:
        where = (host, port)
        if where not in self._dialling:
            task = asyncio.create_task(self._dial_once(host, port))
            self._dialling[where] = task
            task.add_done_callback(lambda done: self._dialled(where, done))
        return self._dialling[where]

    async def _dial_once(self, host: str, port: int) -> Link:
        try:
            link = await self._dial(host, port)
        except LinkError as exc:
            is_member = self._accounts.get((host, port)) in self.members
            longest = (_MEMBER_PAUSE_S,) if is_member else ()
            wait_s = self._failures.failed(host, port, time.monotonic(), *longest)
            self._note_failure(host, port, exc)
            # What is wanted for good is asked of an operator, who is told once.
            is_news = (host, port) in self._kept and self._said.get((host, port)) != str(exc)
            if is_news:
                self._said[host, port] = str(exc)
            logger.log(
                logging.WARNING if is_news else logging.DEBUG,
                "[%s] No link to %s:%d: %s; again in %.1f s.",
                *(self._config.node_id, host, port, exc, wait_s),
            )
            raise
        self._failures.worked(host, port)
        self._said.pop((host, port), None)
        self._accounts[host, port] = link.account
        if is_address(host):
            self._table.seen(Address(host, port), int(time.time()))
        return link

    def _note_failure(self, host: str, port: int, exc: LinkError) -> None:
        if isinstance(exc, Refused) and exc.reason is Reason.SELF:
            self._own.add((host, port))
            if is_address(host):
                self._table.forget(Address(host, port))
        elif is_address(host):
            self._table.failed(Address(host, port))

    def _dialled(self, where: _Where, task: asyncio.Task[Link]) -> None:
        del self._dialling[where]
        if not task.cancelled():
            task.exception()  # is logged, and raised to whoever waits


def _load(path: Path) -> AddressTable:
    try:
        return AddressTable.from_bytes(path.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as exc:
        # Bootstrap peers tell it all again.
        logger.warning("Addresses of peers in %s cannot be read, and are found anew: %s", path, exc)
    return AddressTable()


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, data)
