"""Tasks that this node orders for its client."""

from __future__ import annotations

import asyncio
import logging
import re

from pocqueue.pouw.blockchain import MLTask
from pocqueue.pouw.chain.amounts import micro
from pocqueue.pouw.chain.tasks import DATA_OF_TYPE, parse_requirements
from pocqueue.pouw.errors import InvalidTask, InvalidTransaction
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.transactions import OrderTask

#: A peer has so long to ask for an order that it is told of.
_PASS_S = 10.0
#: The chain has so long to be here: an order's number follows what it and the peers' mempools have of the account.
_CURRENT_S = 120.0
#: A new link brings what waits in the peer's mempool within this time.
_MEMPOOLS_S = 1.0

_log = logging.getLogger(__name__)
_HASH = re.compile(r"0x[0-9a-fA-F]{64}")


class TaskDesk:
    """Turns a client's task into an order on the chain."""

    def __init__(self, core: Core, orders: Orders) -> None:
        self._core, self._orders = core, orders
        self._has_mempools = False

    async def submit(self, task: MLTask, fee: float) -> None:
        """Order a task; see `PoUWNode.submit_task`.

        Raises:
            InvalidTask, ConfigError: a field of it is not allowed; names it.
            InvalidTransaction: it cannot be paid for.
        """
        if not 1 <= len(task.task_id) <= 64:
            raise InvalidTask(f"task_id is {task.task_id!r}; allowed: 1 to 64 characters.")
        data = self._data(task)
        model = parse_requirements(task.model_requirements, data)
        try:
            reward, training_fee = micro(task.reward_amount, "reward_amount"), micro(fee, "fee")
        except ValueError as exc:
            raise InvalidTask(str(exc)) from None
        order = OrderTask(
            *(task.task_id, task.task_type, data, encode(model), reward, training_fee),
            int(task.deadline * 1000),
        )
        peers = self._core.network.peers
        if not peers:
            raise InvalidTask("no node is linked that the task could be sent to.")
        await self._catch_up()
        try:
            transaction = self._orders.make(order)
            passed_on = asyncio.create_task(self._orders.passed_on(transaction, _PASS_S))
            await self._orders.send(transaction)
        except InvalidTransaction as exc:
            raise InvalidTask(str(exc)) from None
        if not await passed_on:
            raise InvalidTask(
                f"no peer asked for it within {_PASS_S:.0f} s; this node goes on offering it while it runs."
            )

    async def _catch_up(self) -> None:
        """Wait until this node has the chain, and once until its first peers have told what waits."""
        try:
            async with asyncio.timeout(_CURRENT_S):
                await self._core.is_current.wait()
        except TimeoutError:
            raise InvalidTask(
                f"the network's chain was not here within {_CURRENT_S:.0f} s; try again, or name a nearer node."
            ) from None
        if not self._has_mempools:
            await asyncio.sleep(_MEMPOOLS_S)
            self._has_mempools = True

    def _data(self, task: MLTask) -> str:
        """Return the built-in data that a task names; on `dev` what names none means that of its type."""
        due = DATA_OF_TYPE.get(task.task_type)
        if due is None:
            raise InvalidTask(
                f"task_type is {task.task_type!r}; allowed: {', '.join(DATA_OF_TYPE)}."
            )
        if task.dataset_hash == due:
            return due
        if self._core.genesis.name == "dev" and not _HASH.fullmatch(task.dataset_hash):
            _log.warning(
                "%s dataset_hash is %r, which names no data: on dev that means the built-in %s.",
                *(self._core.name, task.dataset_hash, due),
            )
            return due
        raise InvalidTask(
            f"dataset_hash is {task.dataset_hash!r}; allowed for {task.task_type}: {due}. Data of your own cannot be "
            "sent over the network yet."
        )
