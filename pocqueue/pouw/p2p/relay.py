"""Passes messages on.

Who makes an urgent one, or a block, pushes it to all its peers as it is. All else goes by ids to whoever wants it:
bodies that are announced, and what was pushed by somebody else. For among nodes that are linked to each other nearly
everybody has a pushed message when it could be passed on: it is told to those only that are not known to have it, later,
with many others; sooner to those that had to ask for such a thing just now, as they are not linked to whoever makes it.
What members of a committee say to each other is said to them alone by who is linked to them all, and told of until
their turn is decided.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from pocqueue.pouw.errors import BadEncoding, PeerFault
from pocqueue.pouw.p2p.frames import ANNOUNCED, ID_BYTES, PUSHED, PUSHED_ID_BYTES, TALK, Kind
from pocqueue.pouw.p2p.gossip import Item, Kept, Seen, Wants
from pocqueue.pouw.p2p.link import Link
from pocqueue.pouw.p2p.messages import MAX_IDS, Ids
from pocqueue.pouw.p2p.service import Service
from pocqueue.pouw.wire.codec import decode, encode

#: For a body that was never asked for, and of what may come so for each above its rate.
_UNASKED_POINTS = 2
#: After so long peers are told of bodies that came to this node, many ids at once; drawn anew each time, so that of two peers
#: that have the same one mostly tells the other.
_TELL_S = (0.1, 0.4)
#: The same of what was pushed, at the second time after it came. By then nearly everybody has it of the one that made it, and
#: of what a slot is made of the record, ...
_TELL_PUSHED_S = (0.3, 0.6)
#: ... but for a peer that has asked for such a thing in the last `_NEEDY_S`.
_TELL_SOON_S = (0.02, 0.08)
_NEEDY_S = 10.0
_MAX_REFUSED = 10_000


class Relay:
    """Gossip over the links of a node.

    Args:
        links: all of them by account; read only.
        service: takes messages and has their bodies.

    Attributes:
        members: accounts of the committee without this node's; empty: everybody is told everything.
    """

    def __init__(self, links: dict[bytes, Link], service: Service) -> None:
        self._links, self._service = links, service
        self._seen = Seen()
        self._wants = Wants()
        self._kept = Kept()
        # What came from others and is not told of yet, or is being looked at, and who has it.
        self._holders: dict[bytes, set[bytes]] = {}
        self._untold: dict[bytes, Kind] = {}  # announced kinds
        self._untold_pushed: dict[bytes, Kind] = {}
        #: Of those what was there when peers were told last.
        self._told_next: dict[bytes, Kind] = {}
        self._tells_pushed = False  # after a while
        self._untold_soon: dict[bytes, Kind] = {}
        #: Until when (monotonic) a peer is told soon.
        self._needy: dict[bytes, float] = {}
        # What came too early: nobody is asked for it, but it may be pushed again.
        self._refused = Seen(_MAX_REFUSED)
        self.members: frozenset[bytes] = frozenset()

    def push(self, kind: Kind, body: bytes) -> None:
        """Send a message of this node's to all whom it concerns; again, if it was sent before."""
        assert kind in PUSHED
        identifier = pushed_id(kind, body)
        self._seen.add(identifier)
        self._kept.add(identifier, kind, body, time.monotonic())
        for link in list(self._links.values()):
            if self._concerns(kind, link):
                link.send(kind, body)

    def tell(self, kind: Kind, body: bytes) -> None:
        """Have peers ask for a message that somebody else pushes as well, if it does not come to them."""
        identifier = pushed_id(kind, body)
        if self._seen.add(identifier):
            self._holders[identifier] = set()
            self._keep_and_tell(identifier, kind, body)

    def publish(self, kind: Kind, body: bytes) -> None:
        """Send what a committee has come to to all but its members, who come to it as well: they are told of it, as by `tell`."""
        self.tell(kind, body)
        told = self.members if self._is_among_members else frozenset[bytes]()
        holders = self._holders.get(pushed_id(kind, body), set())
        for link in [one for one in self._links.values() if one.account not in told]:
            link.send(kind, body)
            holders.add(link.account)

    def push_block(self, identifier: bytes, body: bytes) -> None:
        """Send a block of this node's to all peers: nobody else has it yet. Whoever had many just now is told of it."""
        for link in list(self._links.values()):
            if link.may_push(Kind.BLOCK):
                link.send(Kind.BLOCK, identifier, body)
            else:
                _send_ids(link, Kind.ANNOUNCE, Kind.BLOCK, [identifier])

    def announce(
        self,
        kind: Kind,
        ids: Sequence[bytes],
        *,
        source: Link | None = None,
        to: bytes | None = None,
    ) -> int:
        """Tell all peers but one, or one alone, of TXs or BLOCKs that are here; return the number of those told."""
        assert kind in ANNOUNCED
        links = [link for link in self._others(source) if to in (None, link.account)]
        for link in links:
            _send_ids(link, Kind.ANNOUNCE, kind, ids)
        return len(links)

    async def take(self, link: Link, kind: Kind, body: bytes) -> None:
        """Take a message of a peer.

        Raises:
            PeerFault: it is held against the peer.
        """
        if kind == Kind.ANNOUNCE:
            self._take_announcement(link, body)
        elif kind == Kind.WANT:
            await self._take_want(link, body)
        elif kind in ANNOUNCED:
            await self._take_body(link, kind, body)
        else:
            await self._take_pushed(link, kind, body)

    def ask_again(self) -> None:
        """Ask others for what did not come in time. To be called now and then."""
        again: defaultdict[tuple[bytes, Kind], list[bytes]] = defaultdict(list)
        for account, item in self._wants.overdue(time.monotonic()):
            if not self._has(item):
                again[account, item.kind].append(item.identifier)
        for (account, kind), ids in again.items():
            if (link := self._links.get(account)) is not None:
                _send_ids(link, Kind.WANT, kind, ids)

    def turn_is_over(self) -> None:
        """Tell nobody any more of what members and miners have said: the record of their turn is here, and whoever lacks
        what stands in it is told of that, or asks for the slot. Who had to ask just now is told of messages at once.
        """
        self._drop(TALK, self._untold_soon)
        self._tell_needy()
        self._drop(TALK | {Kind.ITERATION}, self._untold_pushed, self._told_next)

    def is_in_need(self, link: Link) -> None:
        """Tell a peer soon of what is pushed for a while: it had to ask for that, or for a slot."""
        self._needy[link.account] = time.monotonic() + _NEEDY_S

    def gone(self, link: Link) -> None:
        """Have others asked for what this peer was asked for."""
        self._wants.gone(link.account)

    def _take_announcement(self, link: Link, body: bytes) -> None:
        kind, ids = _ids(body)
        for each in ids:
            self._note_holder(link, each)
        unknown = [item for each in ids if not self._has(item := Item(kind, each))]
        wanted = self._wants.announced(link.account, unknown, time.monotonic())
        if wanted:
            _send_ids(link, Kind.WANT, kind, [item.identifier for item in wanted])

    async def _take_want(self, link: Link, body: bytes) -> None:
        kind, ids = _ids(body)
        if kind == Kind.PUSHED:
            self.is_in_need(link)
        for each in ids:
            if kind != Kind.PUSHED:
                await link.turn_to_give(kind)
                found = await self._service.body(kind, each)
                if found is not None:
                    await link.send_in_turn(kind, each, found)
                    self._service.given(kind, each)
            elif (kept := self._kept.get(each)) is not None:
                await link.turn_to_give(kept[0])
                await link.send_in_turn(*kept)

    async def _take_body(self, link: Link, kind: Kind, body: bytes) -> None:
        identifier, body = body[:ID_BYTES], body[ID_BYTES:]
        item = Item(kind, identifier)
        if not self._wants.came(link.account, item):
            if self._wants.is_late(link.account, item):
                return
            if kind == Kind.BLOCK and self._has(item):
                return
            # Whoever mines a block pushes it. Nobody has looked at this one: who was asked for it is still to send it.
            if not link.may_come_unasked(kind):
                raise PeerFault(_UNASKED_POINTS, f"it sent a {kind.name} that it was not asked for")
        is_good = await self._service.receive(link.info, kind, body, identifier)
        if not (is_good and self._service.has(kind, identifier)):
            return
        if kind == Kind.BLOCK:  # no time is to be lost, and there are few
            self.announce(kind, [identifier], source=link)
        else:
            self._holders.setdefault(identifier, set()).add(link.account)
            if not self._untold:
                _call_within(_TELL_S, self._tell_bodies)
            self._untold[identifier] = kind

    async def _take_pushed(self, link: Link, kind: Kind, body: bytes) -> None:
        identifier = pushed_id(kind, body)
        if not self._seen.add(identifier):
            self._note_holder(link, identifier)
            return
        self._wants.found(Item(Kind.PUSHED, identifier))
        self._holders[identifier] = {link.account}
        is_good, may_come_again = False, True
        try:
            is_good = await self._service.receive(link.info, kind, body)
        except PeerFault:
            may_come_again = False
            raise
        finally:
            if not is_good:
                del self._holders[identifier]
                if may_come_again:  # it was too early, or this link ended meanwhile
                    self._seen.forget(identifier)
                    self._refused.add(identifier)
        if not is_good:
            return
        self._keep_and_tell(identifier, kind, body)

    def _keep_and_tell(self, identifier: bytes, kind: Kind, body: bytes) -> None:
        self._kept.add(identifier, kind, body, time.monotonic())
        if self._needy:
            if not self._untold_soon:
                _call_within(_TELL_SOON_S, self._tell_needy)
            self._untold_soon[identifier] = kind
        if kind == Kind.RECORD:  # whoever lacks one before the newest asks for slots
            self._drop(frozenset({kind}), self._untold_pushed)
        if not self._tells_pushed:
            self._tells_pushed = True
            _call_within(_TELL_PUSHED_S, self._tell_pushed)
        self._untold_pushed[identifier] = kind

    def _tell_needy(self) -> None:
        """Announce what came to this node to peers that would have missed others."""
        untold, self._untold_soon = self._untold_soon, {}
        now_s = time.monotonic()
        self._needy = {one: until_s for one, until_s in self._needy.items() if until_s > now_s}
        for account in self._needy.keys() & self._links.keys():
            self._tell_to(self._links[account], untold)
        self._forget(untold)

    def _tell_pushed(self) -> None:
        """Announce what had been pushed to this node the last time."""
        untold, self._told_next, self._untold_pushed = self._told_next, self._untold_pushed, {}
        self._tell(untold)
        self._tells_pushed = bool(self._told_next)
        if self._tells_pushed:
            _call_within(_TELL_PUSHED_S, self._tell_pushed)

    def _tell_bodies(self) -> None:
        """Announce bodies that came to this node."""
        untold, self._untold = self._untold, {}
        self._tell(untold)

    def _tell(self, untold: dict[bytes, Kind]) -> None:
        for link in list(self._links.values()):
            self._tell_to(link, untold)
        self._forget(untold)

    def _tell_to(self, link: Link, untold: dict[bytes, Kind]) -> None:
        """Announce to a peer what it is not known to have, and somebody may still lack."""
        ids: defaultdict[Kind, list[bytes]] = defaultdict(list)
        for identifier, kind in untold.items():
            holders = self._holders.get(identifier)
            if holders is None or link.account in holders or not self._concerns(kind, link):
                continue
            ids[kind if kind in ANNOUNCED else Kind.PUSHED].append(identifier)
            holders.add(link.account)
        for kind, found in ids.items():
            _send_ids(link, Kind.ANNOUNCE, kind, found)

    def _concerns(self, kind: Kind, link: Link) -> bool:
        """Say whether a peer is to hear of a message of this kind: of a committee's talk others need not, who could but
        pass it on to a member."""
        return kind not in TALK or not self._is_among_members or link.account in self.members

    @property
    def _is_among_members(self) -> bool:
        """Say whether this node is linked to all of the committee."""
        return bool(self.members) and self.members <= self._links.keys()

    def _drop(self, kinds: frozenset[Kind], *places: dict[bytes, Kind]) -> None:
        """Tell nobody of what is of these kinds."""
        for untold in places:
            dropped = [one for one, kind in untold.items() if kind in kinds]
            for identifier in dropped:
                del untold[identifier]
            self._forget(dropped)

    def _forget(self, ids: Iterable[bytes]) -> None:
        """Forget who has what nobody is told of any more."""
        places = (self._untold_soon, self._untold_pushed, self._told_next)
        for identifier in ids:
            if not any(identifier in untold for untold in places):
                self._holders.pop(identifier, None)

    def _note_holder(self, link: Link, identifier: bytes) -> None:
        if identifier in self._holders:
            self._holders[identifier].add(link.account)

    def _has(self, item: Item) -> bool:
        if item.kind == Kind.PUSHED:
            return item.identifier in self._seen or item.identifier in self._refused
        return self._service.has(*item)

    def _others(self, source: Link | None) -> Iterator[Link]:
        return (link for link in list(self._links.values()) if link is not source)


def _send_ids(link: Link, frame: Kind, kind: Kind, ids: Sequence[bytes]) -> None:
    for first in range(0, len(ids), MAX_IDS):
        link.send(frame, encode(Ids(kind, tuple(ids[first : first + MAX_IDS]))))


def _call_within(window_s: tuple[float, float], work: Callable[[], None]) -> None:
    after_s = random.uniform(*window_s)  # noqa: S311 - no secret
    asyncio.get_running_loop().call_later(after_s, work)


def _ids(body: bytes) -> tuple[Kind, tuple[bytes, ...]]:
    try:
        message = decode(body, Ids)
    except BadEncoding:
        raise PeerFault(20, "it sent no list of ids where one is due") from None
    if message.kind not in (*ANNOUNCED, Kind.PUSHED):
        raise PeerFault(20, f"it announced or wanted kind {message.kind}")
    length = PUSHED_ID_BYTES if message.kind == Kind.PUSHED else ID_BYTES
    if any(len(each) != length for each in message.ids):
        raise PeerFault(20, f"it announced or wanted what no id of kind {message.kind} is")
    return Kind(message.kind), message.ids


def pushed_id(kind: Kind, body: bytes) -> bytes:
    """Return the id by which peers are told of a pushed message: short, for it is said more often than the message."""
    return hashlib.sha256(bytes((kind,)) + body).digest()[:PUSHED_ID_BYTES]
