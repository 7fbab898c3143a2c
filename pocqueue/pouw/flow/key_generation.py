"""A supervisor's part in the making of committees' keys, and its seat in those that it is a member of."""

from __future__ import annotations

import logging

from pocqueue.pouw.chain.office import Step, is_over
from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.committee.seats import Seat, seat_at, seat_in
from pocqueue.pouw.committee.steps import steps_of
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.transactions import Answer, Complaint, Confirm, Deal

_IDLE_S = 5.0
#: Of the newest committees.
_MAX_SEATS = 4
_DOES = {
    Deal: "deals",
    Complaint: "complains",
    Answer: "answers",
    Confirm: "confirms its shares",
}

_log = logging.getLogger(__name__)


class Seats:
    """Finds this node's seat in a committee. In the chain's thread.

    Args:
        core: of the node.
        secret: BLS key of its ticket.
        dealer: of its account.
    """

    def __init__(self, core: Core, secret: bls.SecretKey, dealer: Dealer) -> None:
        self._core, self._secret, self._dealer = core, secret, dealer
        # By epoch and group key. What they follow from is gone from the chain once a successor is in office there.
        self._found: dict[tuple[int, bytes], Seat] = {}

    def __call__(self, committee: Committee) -> Seat | None:
        """Return the seat; None: there is none."""
        name = committee.epoch, committee.group_key
        if name in self._found:
            return self._found[name]
        seat = seat_in(committee, self._core.account, self._secret) or self._by_deals(committee)
        if seat is not None:
            self._found[name] = seat
            if len(self._found) > _MAX_SEATS:
                del self._found[next(iter(self._found))]
        elif self._core.account in committee.members:
            _log.warning(
                "%s It is a member of the committee of epoch %d without a share of its key",
                *(self._core.name, committee.epoch),
            )
        return seat

    def _by_deals(self, committee: Committee) -> Seat | None:
        chain = self._core.chain
        states = (chain.anchor.state, *(position.state for position in chain.tip.down()))
        seats = (seat_at(state, committee, self._dealer) for state in states)
        return next((seat for seat in seats if seat is not None), None)


class KeyGenerationDuty:
    """Deals, complains and answers while this node is a candidate.

    Args:
        core, orders: of the node.
        dealer: of its account.
    """

    def __init__(self, core: Core, orders: Orders, dealer: Dealer) -> None:
        self._core, self._orders, self._dealer = core, orders, dealer

    async def run(self) -> None:
        """Say what is due after each block."""
        while True:
            await self.say()
            await self._core.chain_changed.heard(_IDLE_S)

    async def say(self) -> None:
        """Send what is due now and not on its way."""
        core = self._core
        # Their numbers are for what is due: whoever has staked all cannot pay for anything else in their place.
        self._orders.withdraw(
            lambda one: isinstance(one, Step) and is_over(one, core.chain.tip.height + 1)
        )
        due = await core.in_chain(steps_of, core.chain.tip.state, self._dealer)
        sent = [one.body for one in self._orders.own.values()]
        for step in due:
            if step in sent:
                continue
            _log.info("%s It %s for a committee's key", core.name, _DOES[type(step)])
            try:
                await self._orders.send(self._orders.make(step, fee=0))
            except InvalidTransaction as exc:
                _log.warning("%s Nothing is said for a committee's key: %s", core.name, exc)
