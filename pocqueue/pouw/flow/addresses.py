"""Where nodes with tickets can be dialled: what a ticket says of its own node, and what tickets say of others.

Whoever surrounds a node has a say in what peers tell it, and none in what the chain has.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from pocqueue.pouw.chain.state import State
from pocqueue.pouw.config import parse_peer
from pocqueue.pouw.errors import ConfigError
from pocqueue.pouw.p2p.limits import is_loopback
from pocqueue.pouw.wire.transactions import ROLES

Place = tuple[str, int]  #: host, port


def own_address(host: str, listening: Sequence[Place]) -> str:
    """Return what a ticket says of where its node listens; nothing, if others cannot know where that is.

    Args:
        host: as it was configured: an address, a name, or one that stands for all addresses of the machine.
        listening: IP addresses and ports.
    """
    if not listening:
        return ""
    at, port = listening[0]
    # A network on one machine is reached there by all of its nodes; another one's nodes leave such an address out.
    if is_loopback(at):
        return _text(at, port)
    try:
        return _text(host, port) if ipaddress.ip_address(host).is_global else ""
    except ValueError:  # a name
        return f"{host}:{port}"


def staked(state: State, *, is_local: bool) -> list[Place]:
    """Return where live tickets say that their nodes listen, each place once.

    Args:
        state: of the chain.
        is_local: this node listens on its own machine alone, so that others there are near.
    """
    found: dict[Place, None] = {}
    for role in range(len(ROLES) - 1):
        for ticket in state.live_tickets(role).values():
            place = _parsed(ticket.address)
            if place is not None and is_loopback(place[0]) == is_local:
                found[place] = None
    return list(found)


def _parsed(address: str) -> Place | None:
    try:
        return parse_peer(address) if address else None
    except ConfigError:
        return None


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
