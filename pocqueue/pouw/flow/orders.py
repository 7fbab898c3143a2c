"""Transactions: others' that come in, and our own, which are sent again until a block has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from pocqueue.pouw.chain.amounts import text
from pocqueue.pouw.chain.apply import income, spent
from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.errors import BadEncoding, InvalidTransaction, PeerFault
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.wire.blocks import Block
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.transactions import Body, Transaction

#: Of our own transactions, µPAI.
FEE = 1000
_REPEAT_S = 10.0
_MALFORMED_POINTS = 50
_BAD_POINTS = 100

_log = logging.getLogger(__name__)


class Orders:
    """Transactions on their way into a block."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._own: dict[bytes, Transaction] = {}
        self._asked: dict[bytes, asyncio.Event] = {}

    @property
    def own(self) -> Mapping[bytes, Transaction]:
        """Return our own ones that no block of the chain has, by their ids."""
        return self._own

    async def receive(self, peer: PeerInfo, body: bytes) -> bool:
        """Take a peer's transaction; True if it is good and new."""
        try:
            transaction = decode(body, Transaction)
        except BadEncoding as exc:
            raise PeerFault(_MALFORMED_POINTS, str(exc)) from None
        try:
            await self._add(transaction)
        except InvalidTransaction as exc:
            if exc.is_fault:
                raise PeerFault(_BAD_POINTS, f"a transaction: {exc}") from None
            _log.debug("%s Transaction %s: %s", self._core.name, transaction.id.hex(), exc)
            return False
        return True

    def make(self, body: Body, *, fee: int = FEE) -> Transaction:
        """Sign a transaction of our own, the next one after those that wait.

        Raises:
            InvalidTransaction: our coins do not suffice, those that are on their way counted.
        """
        core = self._core
        account = core.chain.tip.state.account(core.account)
        waiting = [one for one in self._own.values() if one.sequence >= account.sequence]
        made = Transaction(
            1,
            *(core.genesis.network, core.account, account.sequence + len(waiting), fee, body),
            bytes(64),
        )
        signed = msgspec.structs.replace(made, signature=sign(core.key, made.id))
        self._own[signed.id] = signed
        missing = -self.owned()
        if missing > 0:
            del self._own[signed.id]
            raise InvalidTransaction(
                "balance", f"it takes {text(missing)} more than there are.", is_fault=False
            )
        return signed

    def owned(self) -> int:
        """Return what the account has once everything of its own that waits is in a block, in µPAI."""
        core = self._core
        account = core.chain.tip.state.account(core.account)
        waiting = [one for one in self._own.values() if one.sequence >= account.sequence]
        return account.balance + sum(income(core.genesis, one) - spent(one) for one in waiting)

    async def send(self, transaction: Transaction) -> None:
        """Give a transaction of our own to the network, those before it first.

        Raises:
            InvalidTransaction: our own mempool does not take it.
        """
        refused = (await self._send_all()).get(transaction.id)
        if refused is not None:
            raise refused

    async def run(self) -> None:
        """Say again and again what of our own no block has."""
        while True:
            await asyncio.sleep(_REPEAT_S)
            for identifier, refused in (await self._send_all()).items():
                _log.warning(
                    "%s Transaction %s was given up: %s", self._core.name, identifier.hex(), refused
                )

    async def _send_all(self) -> dict[bytes, InvalidTransaction]:
        """Give all that waits of our own to the network; return those that our mempool does not take, which are dropped."""
        refused = {}
        for transaction in sorted(self._own.values(), key=lambda one: one.sequence):
            try:
                await self._add(transaction)
            except InvalidTransaction as exc:
                self._own.pop(transaction.id, None)
                refused[transaction.id] = exc
            else:
                self._core.network.announce(Kind.TX, transaction.id)
        return refused

    async def passed_on(self, transaction: Transaction, timeout_s: float) -> bool:
        """Wait until a peer has asked for a transaction of our own; False: none did in time."""
        asked = self._asked.setdefault(transaction.id, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await asked.wait()
        except TimeoutError:
            return False
        finally:
            self._asked.pop(transaction.id, None)
        return True

    def was_asked(self, identifier: bytes) -> None:
        """Hear that a peer is given a transaction."""
        if identifier in self._asked:
            self._asked[identifier].set()

    def changed(self, left: tuple[Block, ...], entered: tuple[Block, ...]) -> None:
        """Hear which blocks the chain has left and entered; two spendings of one number are told."""
        numbers = {
            (one.sender, one.sequence): one.id for block in entered for one in block.transactions
        }
        for block in left:
            for one in block.transactions:
                other = numbers.get((one.sender, one.sequence), one.id)
                if other != one.id:
                    self._core.alert(
                        "double_spend",
                        f"{one.sender.hex()} spent its number {one.sequence} on two sides of a fork",
                        source=one.sender,
                        evidence=other,
                    )
                if one.sender == self._core.account and other == one.id:
                    self._own[one.id] = one
        for block in entered:
            for one in block.transactions:
                self._own.pop(one.id, None)

    async def _add(self, transaction: Transaction) -> None:
        core = self._core
        if await core.in_chain(core.mempool.add, transaction, core.chain.tip.state, now_ms()):
            core.mempool_changed.ring()
