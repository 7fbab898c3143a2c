"""The table of addresses where nodes may listen. Time is an argument, in Unix seconds.

Nothing in it is believed: a dial says who is there. So that nobody fills it, it has so many places, few of them
for one address, and few for what one peer told and nobody met yet.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from random import Random

from pocqueue.pouw.p2p.limits import is_loopback
from pocqueue.pouw.p2p.messages import MAX_ADDRESSES, Address

MAX_TABLE = 2_000
MAX_OF_HOST = 4  #: outside loopback
MAX_HINTS_OF_SOURCE = 64
MAX_FAILURES = 5  #: in a row, then it is forgotten


@dataclass(slots=True)
class Entry:
    """What is known of an address."""

    source: str  #: IP address of who told of it; empty: this node's own knowledge
    seen_s: int = 0  #: when a node was last there; 0: never
    failures: int = 0  #: dials in a row


class AddressTable:
    """Addresses, and how they did."""

    def __init__(self) -> None:
        self._entries: dict[Address, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, address: Address) -> bool:
        return address in self._entries

    def hint(self, address: Address, source: str) -> bool:
        """Note an address that somebody told of; False if there is no place for it, or it makes no sense.

        Args:
            address: is an IP address, or it is refused. One of this machine or of a private network is taken
                from such a source alone: nobody outside has us dial what stands beside us.
            source: IP address of who told of it; empty: the node itself knows, from the chain say.
        """
        if address in self._entries:
            return True
        if not _may_be_told(address.host, source):
            return False
        told = sum(not entry.seen_s for entry in self._entries.values() if entry.source == source)
        if (source and told >= MAX_HINTS_OF_SOURCE) or not self._has_place(address):
            return False
        self._entries[address] = Entry(source)
        return True

    def seen(self, address: Address, now_s: int) -> None:
        """Note that a node is there now."""
        entry = self._entries.get(address)
        if entry is None:
            if not self._has_place(address):
                return
            entry = self._entries[address] = Entry("")
        entry.seen_s, entry.failures = now_s, 0

    def failed(self, address: Address) -> None:
        """Note that a dial failed; one time too many, and the address is forgotten."""
        entry = self._entries.get(address)
        if entry is not None:
            entry.failures += 1
            if entry.failures >= MAX_FAILURES:
                del self._entries[address]

    def forget(self, address: Address) -> None:
        """Take an address out."""
        self._entries.pop(address, None)

    def shuffled(self, rng: Random) -> list[Address]:
        """Return all addresses, those that failed least first, otherwise in a random order."""
        addresses = list(self._entries)
        rng.shuffle(addresses)
        return sorted(addresses, key=lambda address: self._entries[address].failures)

    def sample(self, asker: str, rng: Random) -> tuple[Address, ...]:
        """Return up to `MAX_ADDRESSES` at which nodes were seen, that the asker may be told."""
        seen = [
            address
            for address, entry in self._entries.items()
            if entry.seen_s and _may_be_told(address.host, asker)
        ]
        return tuple(rng.sample(seen, min(len(seen), MAX_ADDRESSES)))

    def to_bytes(self) -> bytes:
        """Return the table for a file: where nodes were seen."""
        rows = [
            [address.host, address.port, entry.seen_s]
            for address, entry in sorted(self._entries.items())
            if entry.seen_s
        ]
        return json.dumps(rows).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> AddressTable:
        """Return the table of a file.

        Raises:
            ValueError: it is none.
        """
        table = cls()
        rows = json.loads(data)
        if not isinstance(rows, list):
            raise ValueError("It holds no list.")
        for row in rows[:MAX_TABLE]:
            try:
                host, port, seen_s = row
                address = Address(str(ipaddress.ip_address(host)), int(port))
                table.seen(address, int(seen_s))
            except TypeError as exc:
                raise ValueError(f"It holds {row!r:.100}.") from exc
        return table

    def _has_place(self, address: Address) -> bool:
        if not is_loopback(address.host):
            of_host = sum(other.host == address.host for other in self._entries)
            if of_host >= MAX_OF_HOST:
                return False
        if len(self._entries) < MAX_TABLE:
            return True
        # Whoever was met keeps the place against what was only told.
        worst = min(self._entries, key=lambda a: _worth(self._entries[a]))
        if self._entries[worst].seen_s:
            return False
        del self._entries[worst]
        return True


def _worth(entry: Entry) -> tuple[int, int]:
    return (entry.seen_s, -entry.failures)


def _may_be_told(host: str, other: str) -> bool:
    """Say whether one side may be told, or tell, of a host: what is near, only by or to who is as near."""
    try:
        reach = _reach(host)
    except ValueError:
        return False
    return not other or reach <= _reach(other)


def _reach(host: str) -> int:
    """Return 0 for an address that means the same to everybody, 1 in private networks, 2 for this machine.

    Raises:
        ValueError: it is no address of a node.
    """
    if is_loopback(host):
        return 2
    address = ipaddress.ip_address(host)
    if address.is_multicast or address.is_unspecified or address.is_link_local:
        raise ValueError(host)
    return 0 if address.is_global else 1
