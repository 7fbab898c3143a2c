"""What was seen already, and who is asked for what was announced. Time is an argument, in seconds."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pocqueue.pouw.p2p.frames import Kind

#: Ids of pushed messages that are remembered.
MAX_SEEN = 100_000
#: How long pushed messages are kept, and how much of them, for peers that they do not reach at once.
KEPT_S, MAX_KEPT_BYTES = 10.0, 4 * 1024 * 1024
#: How long a peer has to send what it announced, before the next one is asked.
ASK_S = 5.0
#: The same for what is pushed, which is of no use later.
ASK_PUSHED_S = 0.5
#: After so long nobody is expected to send it any more. A peer that is asked for much gives it piece by piece.
FORGET_S = 60.0
#: The same for what is pushed: nobody keeps it longer.
FORGET_PUSHED_S = KEPT_S
#: What is asked for at once of what one peer announced. There is no limit for all of them together, or a few peers
#: that announce what they have not could take it up: the number of links is one.
MAX_WANTS_OF_PEER = 1_024
#: Questions that are remembered though nobody waits for the answer any more.
_MAX_LATE = 16_384
#: Peers that are remembered for one id, beside the one that is asked.
_MAX_OTHERS = 8


class Seen:
    """A set that forgets what it has had for longest."""

    def __init__(self, size: int = MAX_SEEN) -> None:
        self._size = size
        # Not a dict: that passes over all that was taken out at its beginning to find its first item.
        self._ids: OrderedDict[bytes, None] = OrderedDict()

    def add(self, identifier: bytes) -> bool:
        """Remember an id; False if it was there."""
        if identifier in self._ids:
            return False
        self._ids[identifier] = None
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)
        return True

    def __contains__(self, identifier: bytes) -> bool:
        return identifier in self._ids

    def forget(self, identifier: bytes) -> None:
        """Have an id be new again."""
        self._ids.pop(identifier, None)


class Kept:
    """Pushed messages that others may want, for a while."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[Kind, bytes, float]] = OrderedDict()
        self._bytes = 0

    def add(self, identifier: bytes, kind: Kind, body: bytes, now_s: float) -> None:
        """Keep a message, and drop what is too old or too much."""
        if identifier in self._kept:
            return
        self._kept[identifier] = (kind, body, now_s)
        self._bytes += len(body)
        while True:
            oldest, (_, dropped, at_s) = next(iter(self._kept.items()))
            if self._bytes <= MAX_KEPT_BYTES and now_s - at_s < KEPT_S:
                break
            del self._kept[oldest]
            self._bytes -= len(dropped)

    def get(self, identifier: bytes) -> tuple[Kind, bytes] | None:
        """Return a message's kind and body; None: it is not here any more."""
        found = self._kept.get(identifier)
        return None if found is None else found[:2]


class Item(NamedTuple):
    """Something that is announced."""

    kind: Kind
    identifier: bytes


@dataclass(slots=True)
class _Want:
    asked: bytes  #: account
    at_s: float
    before: list[bytes] = field(default_factory=list)  #: were asked, and may still answer
    others: list[bytes] = field(default_factory=list)  #: announced it as well


class Wants:
    """Asks one peer at a time for each id, and the next one if it does not come."""

    def __init__(self) -> None:
        self._wants: dict[Item, _Want] = {}
        self._of_peer: Counter[bytes] = Counter()
        self._late = Seen(_MAX_LATE)

    def announced(self, peer: bytes, items: Iterable[Item], now_s: float) -> list[Item]:
        """Note what a peer has and this node has not; return what it is to be asked for now."""
        now = []
        for item in items:
            want = self._wants.get(item)
            if want is not None:
                if len(want.others) < _MAX_OTHERS and peer not in (
                    *(want.asked, *want.before, *want.others),
                ):
                    want.others.append(peer)
            elif self._of_peer[peer] < MAX_WANTS_OF_PEER:
                self._wants[item] = _Want(peer, now_s)
                self._of_peer[peer] += 1
                now.append(item)
        return now

    def came(self, peer: bytes, item: Item) -> bool:
        """Note that a body is here; False if that peer is not asked for it, or not any more."""
        want = self._wants.get(item)
        if want is None or peer not in (want.asked, *want.before):
            return False
        self._drop(item, answered_by=peer)
        return True

    def is_late(self, peer: bytes, item: Item) -> bool:
        """Say, once, whether a peer was asked for what came from another one by now, or what nobody sent in time."""
        question = _question(peer, item)
        was_asked = question in self._late
        self._late.forget(question)
        return was_asked

    def found(self, item: Item) -> None:
        """Note that something is here, from whomever."""
        if item in self._wants:
            self._drop(item)

    def overdue(self, now_s: float) -> list[tuple[bytes, Item]]:
        """Return whom to ask next for what did not come; forget what nobody is left for."""
        again = []
        for item, want in list(self._wants.items()):
            if now_s - want.at_s < (ASK_PUSHED_S if item.kind == Kind.PUSHED else ASK_S):
                continue
            if not want.others:
                forget_s = FORGET_PUSHED_S if item.kind == Kind.PUSHED else FORGET_S
                if now_s - want.at_s >= forget_s:
                    self._drop(item)
                continue
            self._of_peer[want.asked] -= 1
            want.before.append(want.asked)
            want.asked, want.at_s = want.others.pop(0), now_s
            self._of_peer[want.asked] += 1
            again.append((want.asked, item))
        return again

    def gone(self, peer: bytes) -> None:
        """Ask others for what this peer was asked for, at the next `overdue`."""
        for want in self._wants.values():
            if peer in want.others:
                want.others.remove(peer)
            if want.asked == peer:
                want.at_s = float("-inf")

    def _drop(self, item: Item, answered_by: bytes | None = None) -> None:
        want = self._wants.pop(item)
        for peer in (want.asked, *want.before):
            if peer != answered_by:
                self._late.add(_question(peer, item))
        self._of_peer[want.asked] -= 1
        if not self._of_peer[want.asked]:
            del self._of_peer[want.asked]


def _question(peer: bytes, item: Item) -> bytes:
    return bytes((item.kind,)) + item.identifier + peer
