"""What a node does about those who break the rules: it has the committee sign that a message is false, and shows it,
as well as words that contradict each other, to the chain.

Only what was trained over and found false is accused; an audit that could not be done accuses nobody.
"""

from __future__ import annotations

import logging
from typing import Protocol

import msgspec

from pocqueue.pouw.chain.evidence import check_evidence, is_due, offence_of
from pocqueue.pouw.chain.records import SUPERVISOR, VERIFIER
from pocqueue.pouw.errors import ChainError, InvalidBlock, InvalidTransaction, NotSigned, PouwError
from pocqueue.pouw.flow.core import Core, Tasks
from pocqueue.pouw.wire.evidence import Fault, TwoMessages, TwoProposals, TwoVotes
from pocqueue.pouw.wire.slots import Iteration
from pocqueue.pouw.wire.statements import UNSIGNED
from pocqueue.pouw.wire.transactions import Body, Evidence, Transaction

#: Words that anybody can see contradict each other.
Contradiction = TwoMessages | TwoVotes | TwoProposals

#: Messages whose verdict is remembered.
_MAX_VERDICTS = 1000

_log = logging.getLogger(__name__)


class Signer(Protocol):
    """Who has a committee sign (`flow.statements.Statements`)."""

    async def sign(self, statement: Fault) -> bytes:
        """Return a committee's signature; raise NotSigned if there is none."""
        ...


class Sender(Protocol):
    """Who sends our own transactions (`flow.orders.Orders`)."""

    def make(self, body: Body) -> Transaction:
        """Sign one."""
        ...

    async def send(self, transaction: Transaction) -> None:
        """Give it to the network."""
        ...

    def is_waiting(self, transaction: bytes) -> bool:
        """Say whether no block has it yet."""
        ...


class Retrainer(Protocol):
    """Who trains over what was certified (`flow.blocks.BlockFlow`)."""

    async def train_over(self, winner: Iteration) -> str:
        """Raise InvalidBlock if a message is false, another error if nobody can tell."""
        ...


class Certified(Protocol):
    """Who knows which messages are certified (`flow.slot_sync.SlotSync`)."""

    async def message(self, task: bytes, slot: int, miner: bytes, lane: int) -> Iteration:
        """Return a lane's message of a slot; raise ChainError if there is none here."""
        ...


class Accusations:
    """Accuses, judges, and shows evidence.

    Args:
        core, tasks: of the node.
        statements, orders, retrainer, certified: see the protocols.
    """

    def __init__(
        self,
        core: Core,
        tasks: Tasks,
        statements: Signer,
        orders: Sender,
        retrainer: Retrainer,
        certified: Certified,
    ) -> None:
        self._core, self._tasks = core, tasks
        self._statements, self._orders = statements, orders
        self._retrainer, self._certified = retrainer, certified
        #: Whether a message is false, by its id.
        self._verdicts: dict[bytes, bool] = {}
        #: Culprits that the committee is being asked about.
        self._accused: set[bytes] = set()
        #: Our newest evidence of each culprit.
        self._shown: dict[bytes, bytes] = {}

    @property
    def may_accuse(self) -> bool:
        """A supervisor or verifier with a live ticket, whose operator wants it."""
        state, account = self._core.chain.tip.state, self._core.account
        return self._core.config.enable_attack_mitigation and any(
            state.live_ticket(account, role) is not None for role in (SUPERVISOR, VERIFIER)
        )

    def accuse(self, iteration: Iteration) -> None:
        """Have the committee sign that a certified message is false, as this node found; show that to the chain."""
        self._remember(iteration.id, is_false=True)
        if self.may_accuse and iteration.miner not in self._accused:
            self._accused.add(iteration.miner)
            self._tasks.start(self._accuse(iteration))

    def show(self, found: Contradiction) -> None:
        """Show the chain what was said twice; what shows nothing there is left."""
        if self._core.config.enable_attack_mitigation:
            self._tasks.start(self._show_contradiction(found))

    async def judge(self, accused: Fault) -> bool:
        """Say whether a message is as false as it is accused to be, by training over it.

        Raises:
            PouwError: it cannot be trained over here, now; or there is nothing to be had for it: others may have shown
                it before, so that is held against nobody.
        """
        if not await self._core.in_chain(is_due, self._core.chain.tip.state, Evidence(accused)):
            raise ChainError("what somebody is accused of is paid for, or there is no stake.")
        place = (accused.task, accused.slot, accused.miner, accused.lane)
        iteration = await self._certified.message(*place)
        if iteration.id != accused.message:
            return False
        if iteration.id not in self._verdicts:
            try:
                await self._retrainer.train_over(iteration)
            except InvalidBlock as exc:
                _log.info("%s %s", self._core.name, exc)
                self._remember(iteration.id, is_false=True)
            else:
                self._remember(iteration.id, is_false=False)
        return self._verdicts[iteration.id]

    async def _accuse(self, iteration: Iteration) -> None:
        office = self._core.chain.tip.state.office
        try:
            if office is None:
                return
            fault = Fault(
                epoch=office.epoch,
                task=iteration.task,
                slot=iteration.slot,
                miner=iteration.miner,
                lane=iteration.lane,
                message=iteration.id,
                finder=self._core.account,
                signature=UNSIGNED,
            )
            if await self._is_to_be_shown(fault):
                signature = await self._statements.sign(fault)
                await self._show(msgspec.structs.replace(fault, signature=signature))
        except NotSigned as exc:
            _log.warning(
                "%s %s is accused in vain: %s", self._core.name, iteration.miner.hex()[:16], exc
            )
        finally:
            self._accused.discard(iteration.miner)

    async def _show_contradiction(self, found: Contradiction) -> None:
        try:
            check_evidence(self._core.genesis, Evidence(found))
        except InvalidTransaction as exc:
            _log.debug("%s No evidence: %s", self._core.name, exc)
            return
        if await self._is_to_be_shown(found):
            await self._show(found)

    async def _is_to_be_shown(self, found: Fault | Contradiction) -> bool:
        """There is a stake to take, and no evidence of ours against its owner waits for a block."""
        core, shown = self._core, Evidence(found)
        is_ours = self._is_waiting(offence_of(core.chain.tip.state, shown).account)
        return not is_ours and await core.in_chain(is_due, core.chain.tip.state, shown)

    def _is_waiting(self, culprit: bytes) -> bool:
        before = self._shown.get(culprit)
        return before is not None and self._orders.is_waiting(before)

    async def _show(self, found: Fault | Contradiction) -> None:
        core, shown = self._core, Evidence(found)
        culprit = offence_of(core.chain.tip.state, shown).account
        # Again: somebody else may have shown it while the committee was asked, or we something else of the same one.
        if not await self._is_to_be_shown(found) or self._is_waiting(culprit):
            return
        try:
            transaction = self._orders.make(shown)
            self._shown[culprit] = transaction.id
            await self._orders.send(transaction)
        except PouwError as exc:
            _log.warning("%s Evidence against %s: %s", core.name, culprit.hex()[:16], exc)
            return
        _log.warning(
            "%s Evidence %s against %s: %s",
            *(core.name, transaction.id.hex()[:16], culprit.hex()[:16], type(found).__name__),
        )

    def _remember(self, message: bytes, *, is_false: bool) -> None:
        self._verdicts[message] = is_false
        if len(self._verdicts) > _MAX_VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]
