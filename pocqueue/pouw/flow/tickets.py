"""This node's stake and coins: its ticket, and what the faucet gives."""

from __future__ import annotations

import logging
from typing import Any

from pocqueue.pouw.chain.amounts import micro
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.config import check_preferences
from pocqueue.pouw.economics import NodeRole, Ticket
from pocqueue.pouw.errors import InvalidTransaction, TicketError
from pocqueue.pouw.flow.addresses import own_address
from pocqueue.pouw.flow.core import Core, Tasks
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.transactions import ROLES, Faucet, Release, TakeTicket, Transaction

_log = logging.getLogger(__name__)


class TicketDesk:
    """Takes the ticket of this node's role.

    Args:
        core, orders: of the node.
        secret: BLS key, which a supervisor signs with, and a miner seeds noise with.
        tasks: where what it sends is awaited.
    """

    def __init__(self, core: Core, orders: Orders, secret: bls.SecretKey, tasks: Tasks) -> None:
        self._core, self._orders, self._secret, self._tasks = core, orders, secret, tasks
        self._taken: Ticket | None = None

    @property
    def current(self) -> Ticket | None:
        """Return the ticket of the node's role, live or on its way."""
        if self._taken is not None and (self._taken.is_live or self._is_waiting(self._taken)):
            return self._taken
        role = self._core.config.role
        if role is NodeRole.PEER:
            return None
        state = self._core.chain.tip.state
        live = state.live_ticket(self._core.account, ROLES.index(role.value))
        record = None if live is None else state.ticket(live)
        if live is None or record is None:
            return None
        return Ticket(live.hex(), role, record.stake / 1e6, {}, lambda: self._is_live(live))

    async def ask_faucet(self) -> None:
        """Take what the faucet gives, where there is one, if the account has less than its first stake."""
        core = self._core
        account = core.chain.tip.state.account(core.account)
        if not core.genesis.parameters.faucet or account.has_faucet:
            return
        if account.balance < micro(core.config.initial_stake, "initial_stake"):
            await self._sent(self._orders.make(Faucet(), fee=0))

    def take(self, stake: float, preferences: dict[str, Any]) -> Ticket:
        """Order a ticket; see `PoUWNode.stake_and_register`."""
        core, role = self._core, self._core.config.role
        if role is NodeRole.PEER:
            raise TicketError("role is peer, which has no ticket; allowed: any other role.")
        is_supervisor = role is NodeRole.SUPERVISOR
        number = ROLES.index(role.value)
        try:
            amount = micro(stake, "stake_amount")
            least = core.genesis.parameters.minimum_stakes[number]
            if amount < least:
                raise TicketError(
                    f"stake_amount is {stake:g} PAI; allowed for a {role.value}: at least {least / 1e6:g}."
                )
            if self.current is not None:
                raise TicketError(
                    f"this {role.value} has ticket {self.current.ticket_id} already; one is all that it may have."
                )
            body = TakeTicket(
                number,
                amount,
                check_preferences(preferences),
                own_address(core.config.host, core.network.listening),
                self._secret.public_key,
                self._secret.prove_possession(core.account),
                Dealer(core.key, core.genesis.network).seal_key if is_supervisor else None,
            )
            transaction = self._orders.make(body)
        except TicketError:
            raise
        except ValueError as exc:  # of the amount, the preferences or the balance
            raise TicketError(str(exc)) from None
        ticket = transaction.id
        self._taken = Ticket(
            ticket.hex(), role, float(stake), preferences, lambda: self._is_live(ticket)
        )
        self._send(transaction)
        return self._taken

    def release(self) -> None:
        """Order that the ticket ends; see `PoUWNode.release_ticket`."""
        core, role = self._core, self._core.config.role
        live = (
            None
            if role is NodeRole.PEER
            else core.chain.tip.state.live_ticket(core.account, ROLES.index(role.value))
        )
        if live is None:
            raise TicketError(f"no block has a live ticket of this {role.value}.")
        try:
            transaction = self._orders.make(Release(live))
        except InvalidTransaction as exc:
            raise TicketError(str(exc)) from None
        self._send(transaction)

    def _send(self, transaction: Transaction) -> None:
        self._tasks.start(self._sent(transaction))

    async def _sent(self, transaction: Transaction) -> None:
        try:
            await self._orders.send(transaction)
        except InvalidTransaction as exc:
            _log.error(
                "%s Transaction %s is not sent: %s", self._core.name, transaction.id.hex(), exc
            )

    def _is_live(self, ticket: bytes) -> bool:
        record = self._core.chain.tip.state.ticket(ticket)
        return record is not None and record.free_at is None

    def _is_waiting(self, ticket: Ticket) -> bool:
        return bytes.fromhex(ticket.ticket_id) in self._orders.own
