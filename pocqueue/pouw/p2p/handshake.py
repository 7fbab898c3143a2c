"""From a TLS connection to two sides that know whom they talk to.

Dialler and listener each say who they are (`Introduction`); then the dialler proves it, the listener checks
that and whether it has a place for him, and proves itself as the last one: whoever dialled has a link when that
arrives.
"""

from __future__ import annotations

import hashlib
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import BadEncoding, LinkError, PeerFault
from pocqueue.pouw.p2p.channel import Channel
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.messages import VERSION, Goodbye, Hello, Introduction, Reason
from pocqueue.pouw.p2p.tls import binding, is_proven, prove
from pocqueue.pouw.wire.codec import decode, encode

_T = TypeVar("_T")


class Refused(LinkError):
    """One of the two sides does not want the link.

    Attributes:
        reason: which is what the other side is told.
        account: who the other side says to be, unproven; None if it did not say.
        by_peer: the other side refused.
    """

    def __init__(self, reason: Reason, account: bytes | None = None, *, by_peer: bool = False):
        self.reason = reason
        self.account = account
        self.by_peer = by_peer
        super().__init__(reason.by_peer if by_peer else reason.by_us)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this side is, on all its links."""

    key: SigningKey
    account: bytes
    network: bytes
    node_id: str
    role: str
    port: int  #: where it listens; 0: nowhere

    def introduction(self) -> Introduction:
        """Return a fresh first frame."""
        return Introduction(VERSION, self.network, self.account, secrets.token_bytes(32))

    def hello(self, digest: bytes) -> Hello:
        """Return the second frame, whose proof is over this binding."""
        return Hello(prove(self.key, digest), self.node_id, self.role, self.port)


async def dialled(
    channel: Channel, identity: Identity, is_wanted: Callable[[bytes], None]
) -> tuple[bytes, Hello]:
    """Introduce this side to whoever listens there.

    Args:
        channel: over TLS.
        identity: of this side.
        is_wanted: raises Refused if no link with the account that the other side names is wanted.

    Returns:
        The account of the other side, proven, and what it said.

    Raises:
        Refused: by either side.
        LinkError: the connection is over, or the other side broke the protocol.
    """
    mine = identity.introduction()
    channel.send(Kind.INTRODUCTION, encode(mine))
    theirs = await _introduction(channel, identity)
    is_wanted(theirs.account)
    tls: ssl.SSLObject = channel.writer.get_extra_info("ssl_object")
    seen = hashlib.sha256(tls.getpeercert(binary_form=True) or b"").digest()
    channel.send(Kind.HELLO, encode(identity.hello(binding(seen, mine, theirs, by_dialler=True))))
    hello = await _hello(channel, theirs, binding(seen, mine, theirs, by_dialler=False))
    return theirs.account, hello


async def accepted(
    channel: Channel,
    identity: Identity,
    certificate: bytes,
    is_wanted: Callable[[bytes], None],
) -> tuple[bytes, Hello, Hello]:
    """Hear out whoever connected.

    Args:
        channel: over TLS.
        identity: of this side.
        certificate: digest of the one that this side showed.
        is_wanted: see `dialled`.

    Returns:
        The account of the other side, proven, what it said, and this side's own hello: still to be sent, by
        whoever decides that there is a link now.

    Raises:
        Refused: by either side.
        LinkError: the connection is over, or the other side broke the protocol.
    """
    theirs = await _introduction(channel, identity)
    is_wanted(theirs.account)
    mine = identity.introduction()
    channel.send(Kind.INTRODUCTION, encode(mine))
    hello = await _hello(channel, theirs, binding(certificate, theirs, mine, by_dialler=True))
    return (
        theirs.account,
        hello,
        identity.hello(binding(certificate, theirs, mine, by_dialler=False)),
    )


async def _introduction(channel: Channel, identity: Identity) -> Introduction:
    theirs = _decoded(await _frame(channel, Kind.INTRODUCTION), Introduction)
    if theirs.version != VERSION:
        raise Refused(Reason.OTHER_VERSION, theirs.account)
    if theirs.network != identity.network:
        raise Refused(Reason.OTHER_NETWORK, theirs.account)
    if theirs.account == identity.account:
        raise Refused(Reason.SELF, theirs.account)
    return theirs


async def _hello(channel: Channel, theirs: Introduction, digest: bytes) -> Hello:
    try:
        hello = _decoded(await _frame(channel, Kind.HELLO), Hello)
    except Refused as refused:
        # Unproven, but so is the refusal.
        raise Refused(refused.reason, theirs.account, by_peer=True) from None
    if not is_proven(theirs.account, digest, hello.proof):
        raise Refused(Reason.NOT_PROVEN, theirs.account)
    return hello


async def _frame(channel: Channel, wanted: Kind) -> bytes:
    kind, body = await channel.read()
    if kind == Kind.GOODBYE:
        raise Refused(reason_of(body), by_peer=True)
    if kind != wanted:
        raise PeerFault(20, f"it sent kind {kind} where {wanted.name} is due")
    return body


def _decoded(body: bytes, kind: type[_T]) -> _T:
    try:
        return decode(body, kind)
    except BadEncoding:
        raise PeerFault(20, f"it sent no {kind.__name__} where one is due") from None


def reason_of(body: bytes) -> Reason:
    """Return why a peer ends a link; what makes no sense is taken for `STOPPING`."""
    try:
        return Reason(decode(body, Goodbye).reason)
    except ValueError:
        return Reason.STOPPING
