"""Which peers have a link, and who may have one."""

from __future__ import annotations

import time

from pocqueue.pouw.p2p.handshake import Refused
from pocqueue.pouw.p2p.limits import Conduct, is_loopback
from pocqueue.pouw.p2p.link import Link
from pocqueue.pouw.p2p.messages import Reason
from pocqueue.pouw.p2p.service import NetworkConfig

#: Two links of the same two nodes that begin so close to each other were dialled at once, one by each. Above any
#: time that a handshake takes; a link that is older than that and is begun anew is dead at the other end.
_AT_ONCE_S = 10.0
#: Links that one address outside loopback, as of the nodes behind one router, may have with this node, beside
#: those that this node dialled.
MAX_INBOUND_OF_ADDRESS = 16


class Roster:
    """The links of a node by account.

    Args:
        account: this node's.
        config: `max_peers` is read anew each time.
    """

    def __init__(self, account: bytes, config: NetworkConfig) -> None:
        self._account, self._config = account, config
        self.links: dict[bytes, Link] = {}
        self.conduct = Conduct()
        self.is_open = True

    @property
    def max_inbound(self) -> int:
        """How many links may come from outside."""
        return max(1, self._config.max_peers // 2)

    def check(self, account: bytes, *, caller: str | None = None) -> None:
        """Return if a link with an account is wanted, whose key may not be proven yet.

        Args:
            account: of the other side.
            caller: the address that it dialled from; None: this node dialled.

        Raises:
            Refused: it is not.
        """
        if not self.is_open:
            raise Refused(Reason.STOPPING, account)
        if self.conduct.is_banned(account, time.monotonic()):
            raise Refused(Reason.BANNED, account)
        if account in self.links:
            if caller is None:
                raise Refused(Reason.DUPLICATE, account)
        elif len(self.links) >= self._config.max_peers or (
            caller is not None and not self._has_place_for(caller)
        ):
            raise Refused(Reason.FULL, account)

    def make_way(self, account: bytes, *, caller: str | None = None) -> None:
        """Have the older link with an account, if there is one, make way for a new one.

        Of two that were dialled at once by both sides, both keep the one that the smaller account dialled.

        Raises:
            Refused: the older one stays, or there is no place.
        """
        old = self.links.get(account)
        if old is None:
            self.check(account, caller=caller)
            return
        outbound = caller is None
        if old.outbound != outbound and time.monotonic() - old.began_s < _AT_ONCE_S:
            dialler = self._account if outbound else account
            if dialler != min(self._account, account):
                raise Refused(Reason.DUPLICATE, account)
        old.close(Reason.DUPLICATE)

    def find(self, who: bytes | str) -> Link | None:
        """Return the link with an account, or with a node that goes by this name; None if there is none."""
        if isinstance(who, bytes):
            return self.links.get(who)
        return next((each for each in self.links.values() if each.info.node_id == who), None)

    def _has_place_for(self, caller: str) -> bool:
        inbound = [link.info.host for link in self.links.values() if not link.outbound]
        return len(inbound) < self.max_inbound and (
            is_loopback(caller) or inbound.count(caller) < MAX_INBOUND_OF_ADDRESS
        )
