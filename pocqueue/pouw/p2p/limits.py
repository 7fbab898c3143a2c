"""How much a peer may send, and what becomes of one that breaks rules. Time is an argument, in seconds."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pocqueue.pouw.p2p.frames import LIMITS, Limit

BAN_POINTS = 100
BAN_S = 600.0
POINT_S = 60.0  #: after so long a point is forgotten
FLOOD_POINTS = 20
#: Keys and addresses that are remembered; the longest untouched is forgotten for a new one.
_MAX_REMEMBERED = 10_000

_T = TypeVar("_T")


@dataclass(slots=True)
class Bucket:
    """Tokens that come back at a rate. Starts full."""

    per_second: float
    burst: int
    tokens: float
    at_s: float

    def take(self, now_s: float) -> bool:
        """Take a token; False if there is none."""
        gained = (now_s - self.at_s) * self.per_second
        self.tokens, self.at_s = min(float(self.burst), self.tokens + gained), now_s
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Rates:
    """The buckets of one link and direction: one for each kind of frame that has a rate.

    Args:
        burst_share: how much of each limit's burst is allowed.
        limits: of the kinds that are counted.
    """

    def __init__(self, burst_share: float = 1.0, limits: Mapping[int, Limit] = LIMITS) -> None:
        self._burst_share, self._limits = burst_share, limits
        self._buckets: dict[int, Bucket] = {}
        self._charged_s: dict[int, float] = {}

    def allows(self, kind: int, now_s: float) -> bool:
        """Count a frame; False if it is one too many."""
        limit = self._limits[kind]
        if not limit.burst:
            return True
        bucket = self._buckets.get(kind)
        if bucket is None:
            burst = max(1, int(limit.burst * self._burst_share))
            bucket = self._buckets[kind] = Bucket(limit.per_second, burst, float(burst), now_s)
        return bucket.take(now_s)

    def wait_s(self, kind: int, now_s: float) -> float:
        """Count a frame; return how long it has to wait if it is one too many: so they come at twice the rate at most."""
        return 0.0 if self.allows(kind, now_s) else 1 / self._limits[kind].per_second

    def is_flood(self, kind: int, now_s: float) -> bool:
        """Say whether a frame that is one too many is held against the peer: once a second and kind."""
        if now_s - self._charged_s.get(kind, -1e9) < 1:
            return False
        self._charged_s[kind] = now_s
        return True


class Conduct:
    """Points and bans, by account and by address.

    Addresses of this machine are never banned: they are everybody's here.
    """

    def __init__(self) -> None:
        self._points: OrderedDict[bytes | str, tuple[int, float]] = OrderedDict()
        self._banned_until_s: OrderedDict[bytes | str, float] = OrderedDict()

    def charge(self, who: bytes | str, points: int, now_s: float) -> bool:
        """Hold points against an account or an address; True if that bans it."""
        if not _can_be_banned(who):
            return False
        had, at_s = self._points.pop(who, (0, now_s))
        forgotten = int((now_s - at_s) // POINT_S)
        total = max(0, had - forgotten) + points
        if total >= BAN_POINTS:
            self.ban(who, now_s)
            return True
        _remember(self._points, who, (total, at_s + forgotten * POINT_S))
        return False

    def ban(self, who: bytes | str, now_s: float) -> None:
        """Ban an account or an address from now on."""
        if _can_be_banned(who):
            _remember(self._banned_until_s, who, now_s + BAN_S)

    def is_banned(self, who: bytes | str, now_s: float) -> bool:
        """Say whether a ban is on; its points are gone when it ends."""
        until_s = self._banned_until_s.get(who)
        if until_s is None:
            return False
        if now_s < until_s:
            return True
        del self._banned_until_s[who]
        return False


def is_loopback(host: str) -> bool:
    """Say whether an address is this machine's own; False for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _can_be_banned(who: bytes | str) -> bool:
    return isinstance(who, bytes) or not is_loopback(who)


def _remember(table: OrderedDict[bytes | str, _T], who: bytes | str, value: _T) -> None:
    table[who] = value
    table.move_to_end(who)
    if len(table) > _MAX_REMEMBERED:
        table.popitem(last=False)
