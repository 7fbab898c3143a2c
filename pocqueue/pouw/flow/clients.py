"""Tasks that this node orders for its client."""

from __future__ import annotations

import asyncio
import logging
import re

from pocqueue.pouw.blockchain import MLTask
from pocqueue.pouw.chain.amounts import micro
from pocqueue.pouw.chain.escrow import open_fee
from pocqueue.pouw.chain.tasks import DATA_OF_TYPE, TaskModel, check_data, parse_requirements
from pocqueue.pouw.data.parts import read
from pocqueue.pouw.errors import DataError, InvalidTask, InvalidTransaction
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.datasets import Datasets
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.training.samples import own, own_test
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.data import DATA_NAME, DataShape, name_of
from pocqueue.pouw.wire.transactions import TASK_NAME, OrderTask

#: A peer has so long to ask for an order that it is told of.
_PASS_S = 10.0
#: The chain has so long to be here: an order's number follows what it and the peers' mempools have of the account.
_CURRENT_S = 120.0
#: A new link brings what waits in the peer's mempool within this time.
_MEMPOOLS_S = 1.0

_log = logging.getLogger(__name__)


class TaskDesk:
    """Turns a client's task into an order on the chain."""

    def __init__(self, core: Core, orders: Orders, datasets: Datasets) -> None:
        self._core, self._orders, self._datasets = core, orders, datasets
        self._has_mempools = False

    async def submit(self, task: MLTask, fee: float) -> bytes:
        """Order a task, see `PoUWNode.submit_task`; return its id.

        Raises:
            InvalidTask, ConfigError: a field of it is not allowed; names it.
            InvalidTransaction: it cannot be paid for.
        """
        if not re.search(TASK_NAME, task.task_id):
            raise InvalidTask(
                f"task_id is {task.task_id!r}; allowed: 1 to 64 characters of ASCII, from the space to ~."
            )
        data, shape = await self._data(task)
        model = parse_requirements(task.model_requirements, data, shape)
        await self._check_samples(model, model.spec(bytes(32), data, shape))
        try:
            reward, training_fee = micro(task.reward_amount, "reward_amount"), micro(fee, "fee")
        except ValueError as exc:
            raise InvalidTask(str(exc)) from None
        order = OrderTask(
            *(task.task_id, task.task_type, data, encode(model), reward, training_fee),
            *(int(task.deadline * 1000), shape),
        )
        peers = self._core.network.peers
        if not peers:
            raise InvalidTask("no node is linked that the task could be sent to.")
        await self._catch_up()
        try:
            parameters, clock = self._core.genesis.parameters, self._core.chain.tip.state.clock
            open_ms = min(order.deadline_ms - clock.time_ms, parameters.longest_ms)
            open_for = open_fee(parameters, open_ms)
            transaction = self._orders.make(order, fee=max(open_for, self._orders.usual_fee))
            passed_on = asyncio.create_task(self._orders.passed_on(transaction, _PASS_S))
            await self._orders.send(transaction)
        except InvalidTransaction as exc:
            raise InvalidTask(str(exc)) from None
        if not await passed_on:
            raise InvalidTask(
                f"no peer asked for it within {_PASS_S:.0f} s; this node goes on offering it while it runs."
            )
        return transaction.id

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

    async def _data(self, task: MLTask) -> tuple[str, DataShape | None]:
        """Return how the chain names a task's data, and their sizes if they are the client's own.

        On `dev` what names no data means the built-in ones of its type.
        """
        named, due = task.dataset_hash, DATA_OF_TYPE.get(task.task_type)
        if DATA_NAME.fullmatch(named.lower()):
            path = self._datasets.path(named.lower())
            if path is None:
                raise InvalidTask(
                    f"dataset_hash is {named!r}, and no such data are here; add_dataset takes a file and returns its hash."
                )
            file = await asyncio.to_thread(read, path)
            check_data(task.task_type, named.lower(), file.shape)
            return named.lower(), file.shape
        if named != due and due is not None and self._core.genesis.name == "dev":
            _log.warning(
                "%s dataset_hash is %r, which names no data: on dev that means the built-in %s.",
                *(self._core.name, named, due),
            )
            return due, None
        check_data(task.task_type, named, None)
        return named, None

    async def _check_samples(self, model: TaskModel, spec: TaskSpec) -> None:
        """Raise if those who train or evaluate could do nothing with a client's own data."""
        if spec.shape is not None:
            path = self._datasets.path(spec.data)
            if path is None:
                raise DataError("the data have made way for others; add them again.")
            await asyncio.to_thread(own, path, spec)
        if model.test_hash is not None:
            path = self._datasets.path(name_of(model.test_hash))
            if path is None:
                raise DataError(
                    "test_hash names no file that is here; add_dataset(path, is_test=True) takes one and returns its hash."
                )
            await asyncio.to_thread(own_test, path, spec)
