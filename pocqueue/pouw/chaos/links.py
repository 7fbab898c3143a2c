"""A partition, made at the roster: links with some accounts end, and new ones with them are refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from typing_extensions import override

from pocqueue.pouw.p2p.handshake import Refused
from pocqueue.pouw.p2p.messages import Reason
from pocqueue.pouw.p2p.network import Network
from pocqueue.pouw.p2p.roster import Roster


class CutRoster(Roster):
    """A roster that wants no link with some accounts. The accounts are the process's: it has one node."""

    cut: ClassVar[frozenset[bytes]] = frozenset()

    @override
    def check(self, account: bytes, *, caller: str | None = None) -> None:
        """See `Roster.check`."""
        if account in self.cut:
            raise Refused(Reason.UNWANTED, account)
        super().check(account, caller=caller)


def cut(network: Network, accounts: Collection[bytes]) -> None:
    """End the links with these accounts, and refuse new ones until `heal`. They have to do the same with this one."""
    CutRoster.cut = frozenset(accounts)
    for account in CutRoster.cut:
        link = network._roster.links.get(account)
        if link is not None:
            link.close(Reason.UNWANTED)


def heal() -> None:
    """Let everybody in again. Who dials whom, and when, is the node's own affair, as after any cut."""
    CutRoster.cut = frozenset()
