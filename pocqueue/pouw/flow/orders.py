"""Transactions: others' that come in, and our own, which are sent again until a block has them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from pocqueue.pouw.chain.amounts import text
from pocqueue.pouw.chain.apply import apply_transaction, begin_block, income, least_fee, spent
from pocqueue.pouw.chain.office import Step
from pocqueue.pouw.chain.signatures import sign_transaction
from pocqueue.pouw.errors import BadEncoding, InvalidTransaction, PeerFault
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.wire.blocks import Block
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.transactions import MAX_TRANSACTION_BYTES, Body, Transaction, Transfer

#: Of our own transactions, µPAI; more where the network asks for more.
FEE = 1000
_REPEAT_S = 10.0
#: Blocks in which one is looked for: more than come while somebody waits for it.
_LOOK_BACK = 200
#: What passes by itself: a later block may take it, or has it already; `changed` says when its number is used up.
_MAY_PASS = ("sequence", "balance", "replacement", "full", "early")
_MALFORMED_POINTS = 50
_BAD_POINTS = 100

_log = logging.getLogger(__name__)


class Orders:
    """Transactions on their way into a block."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._own: dict[bytes, Transaction] = {}
        self._given_up: dict[bytes, str] = {}
        self._given: dict[bytes, asyncio.Event] = {}
        self._sending = asyncio.Lock()

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

    def is_waiting(self, identifier: bytes) -> bool:
        """Say whether this is one of our own that no block of the chain has."""
        return identifier in self._own

    def why_given_up(self, identifier: bytes) -> str | None:
        """Return why one of our own was given up since the node was started; None: it was not."""
        return self._given_up.get(identifier)

    async def height_of(self, identifier: bytes) -> int | None:
        """Return the height of the block that has a transaction; None: none of the newest has it."""
        return await self._core.in_chain(self._height_of, identifier)

    def _height_of(self, identifier: bytes) -> int | None:
        tip = self._core.chain.tip.height
        for height in range(tip, max(0, tip - _LOOK_BACK), -1):
            block = self._core.chain.block_at(height)
            if block is not None and any(one.id == identifier for one in block.transactions):
                return height
        return None

    @property
    def usual_fee(self) -> int:
        """Return what our own transactions pay, in µPAI: enough for the largest one on this network."""
        return max(FEE, least_fee(self._core.genesis.parameters, MAX_TRANSACTION_BYTES))

    def make(self, body: Body, *, fee: int | None = None) -> Transaction:
        """Sign a transaction of our own; it pays the usual fee if none is given.

        Its number follows those that wait, also those in the mempool that another process signed with this key.

        Raises:
            InvalidTransaction: our coins do not suffice, those that are on their way counted.
        """
        core = self._core
        sequence = self.next_sequence(core.account)
        signed = sign_transaction(
            core.key, core.genesis.network, sequence, self.usual_fee if fee is None else fee, body
        )
        self._own[signed.id] = signed
        missing = -self.owned()
        if missing > 0:
            del self._own[signed.id]
            raise InvalidTransaction(
                "balance", f"it takes {text(missing)} more than there are.", is_fault=False
            )
        return signed

    def withdraw(self, is_over: Callable[[Body], bool]) -> None:
        """Give up those of our own that no block can have any more, whose mempools drop them as well."""
        for one in [one for one in self._own.values() if is_over(one.body)]:
            del self._own[one.id]

    def next_sequence(self, account: bytes) -> int:
        """Return the number of an account's next transaction: after those that wait, as far as they are known here."""
        core = self._core
        taken = {one.sequence for one in self._own.values() if one.sender == account}
        return core.mempool.next_sequence(account, core.chain.tip.state, taken)

    async def take(self, data: bytes) -> None:
        """Take a transaction that was signed beside this node, and give it to the network.

        Raises:
            InvalidTransaction: it is none, or not good here.
        """
        try:
            transaction = decode(data, Transaction)
        except BadEncoding as exc:
            raise InvalidTransaction("encoding", str(exc), is_fault=True) from None
        refused = await self._core.in_chain(self._tried, [transaction])
        if transaction.id in refused:
            raise refused[transaction.id]
        await self._add(transaction)
        if transaction.sender == self._core.account:
            self._own[transaction.id] = transaction  # said again until a block has it
        self._core.network.announce(Kind.TX, transaction.id)

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
        """Give all that waits of our own to the network; return those that come to nothing, which are given up."""
        async with self._sending:
            own = sorted(self._own.values(), key=lambda one: one.sequence)
            refused = await self._core.in_chain(self._tried, own)
            for transaction in own:
                if transaction.id not in refused:
                    try:
                        await self._add(transaction)
                    except InvalidTransaction as exc:
                        if exc.rule not in _MAY_PASS:
                            refused[transaction.id] = exc
            for transaction in own:
                if transaction.id in refused:
                    if self._own.pop(transaction.id, None) is None:
                        del refused[transaction.id]  # a block has it meanwhile
                        continue
                    self._given_up[transaction.id] = str(refused[transaction.id])
                    if (filler := self._instead(transaction)) is not None:
                        with contextlib.suppress(InvalidTransaction):
                            await self._add(filler)
        for identifier in list(self._own):
            if identifier in self._core.mempool:
                self._core.network.announce(Kind.TX, identifier)
        return refused

    def _tried(self, own: list[Transaction]) -> dict[bytes, InvalidTransaction]:
        """Return those that no block on the tip can have, whatever comes before them. In the chain's thread."""
        core = self._core
        draft, refused = core.chain.tip.state.child(), {}
        begin_block(core.genesis, draft, now_ms(), is_founding=True)
        for transaction in own:
            try:
                apply_transaction(core.genesis, draft, transaction)
            except InvalidTransaction as exc:
                if exc.rule not in _MAY_PASS:
                    refused[transaction.id] = exc
        return refused

    def _instead(self, given_up: Transaction) -> Transaction | None:
        """Return what fills the gap in our sequence that one leaves which was given up; None: nothing waits behind it."""
        if all(one.sequence < given_up.sequence for one in self._own.values()):
            return None
        # A µPAI to ourselves, for more than the one in whose place it comes, which others may still have.
        core, fee = self._core, 2 * max(given_up.fee, self.usual_fee)
        body = Transfer(core.account, 1)
        made = sign_transaction(core.key, core.genesis.network, given_up.sequence, fee, body)
        self._own[made.id] = made
        return made

    async def passed_on(self, transaction: Transaction, timeout_s: float) -> bool:
        """Wait until a peer has asked for a transaction of our own and was sent it; False: none was in time."""
        given = self._given.setdefault(transaction.id, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await given.wait()
        except TimeoutError:
            return False
        finally:
            self._given.pop(transaction.id, None)
        return True

    def given(self, identifier: bytes) -> None:
        """Hear that a peer was sent a transaction."""
        if identifier in self._given:
            self._given[identifier].set()

    def changed(self, left: tuple[Block, ...], entered: tuple[Block, ...]) -> None:
        """Hear which blocks the chain has left and entered; two spendings of one number are told."""
        numbers = {
            (one.sender, one.sequence): one.id for block in entered for one in block.transactions
        }
        for block in left:
            for one in block.transactions:
                other = numbers.get((one.sender, one.sequence), one.id)
                # What candidates say is said anew where their key is made of other deals.
                if other != one.id and not isinstance(one.body, Step):
                    self._core.alert(
                        "double_spend",
                        f"{one.sender.hex()} spent its number {one.sequence} on two sides of a fork",
                        source=one.sender,
                        evidence=other,
                    )
                if one.sender == self._core.account and other == one.id:
                    self._own[one.id] = one
                    self._given_up.pop(one.id, None)
        for block in entered:
            for one in block.transactions:
                if one.sender == self._core.account:
                    self._used(one)

    def _used(self, taken: Transaction) -> None:
        """Let go of what of our own has a number that a block has used up."""
        self._own.pop(taken.id, None)
        self._given_up.pop(taken.id, None)
        for one in [one for one in self._own.values() if one.sequence == taken.sequence]:
            del self._own[one.id]
            self._given_up[one.id] = f"another one of this key, {taken.id.hex()}, has its number."
            _log.warning(
                "%s Transaction %s was given up: another one of this key, %s, has its number.",
                *(self._core.name, one.id.hex(), taken.id.hex()),
            )

    async def _add(self, transaction: Transaction) -> None:
        core = self._core
        if await core.in_chain(core.mempool.add, transaction, core.chain.tip.state, now_ms()):
            core.mempool_changed.ring()
