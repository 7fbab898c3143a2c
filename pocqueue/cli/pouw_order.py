"""One order: a node that sends it, watches it as long as it is asked to, and leaves."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocqueue.cli.output import console, print_error
from pocqueue.cli.pouw_story import Story, now

if TYPE_CHECKING:
    from pocqueue.files import FileLock
    from pocqueue.pouw.blockchain import MLTask
    from pocqueue.pouw.node import PoUWNode

#: Data that everybody has, and the type of a task on them.
BUILT_IN = {"digits": "image_classification", "words": "text_classification"}
_LOOK_S = 0.5
#: A line is said at least this often while an order is watched.
_LINE_S = 10.0


@contextmanager
def client_node(bootstrap: list[str], stake: float) -> Iterator[PoUWNode]:
    """Give a node of the client's account, and keep other orders from having one: the two would drive each other off.

    Raises:
        PouwError: another order of this account runs on this machine.
        ConfigError, KeyFileError, NodeDataError: of what is configured; says what is wrong.
    """
    from pocqueue.pouw.chain.signatures import account_of
    from pocqueue.pouw.config import NodeConfig, parse_peer
    from pocqueue.pouw.economics import NodeRole
    from pocqueue.pouw.files import CLIENT_KEY, account_key, data_dir
    from pocqueue.pouw.node import PoUWNode
    from pocqueue.settings import PouwSettings

    settings = PouwSettings.load()
    folder = data_dir(settings)
    key = account_key(settings, folder, CLIENT_KEY)
    config = NodeConfig(
        node_id="client",
        role=NodeRole.PEER,
        port=0,
        # What the faucet is asked for, where there is one.
        initial_stake=stake,
        bootstrap_peers=[parse_peer(one) for one in bootstrap],
        network=settings.network,
        key=key,
    )
    with _only_order(folder / f"order-{account_of(key).hex()[:16]}.lock"):
        yield PoUWNode("client", NodeRole.PEER, config=config)


def _only_order(path: Path) -> FileLock:
    """Return the lock of an account's order that runs.

    Raises:
        PouwError: another order has it.
        NodeDataError: it cannot be made.
    """
    from pocqueue.files import FileLock, lock_holder
    from pocqueue.pouw.errors import NodeDataError, PouwError

    try:
        lock = FileLock(path, wait=False)
    except BlockingIOError:
        raise PouwError(
            f"Another order of this account is running (process {lock_holder(path) or 'unknown'}), and an account has one "
            "place in the network: wait for its end, or set POCQUEUE_POUW_KEY to another key."
        ) from None
    except OSError as exc:
        raise NodeDataError(
            f"The lock {path} cannot be made ({exc.strerror}): set POCQUEUE_POUW_DIR to another folder."
        ) from None
    lock.note_holder(os.getpid())
    return lock


async def order(
    client: PoUWNode, task: MLTask, fee: float, test: Path | None, *, watch: bool
) -> dict[str, Any]:
    """Send an order; return what the chain says of it, at the end if it is to be watched or others need its files."""
    from pocqueue.pouw.errors import PouwError

    view, story, said_at = console(stderr=True), Story(), time.monotonic()
    await client.start()
    try:
        if task.dataset_hash not in BUILT_IN:
            watch = True
            task = replace(task, dataset_hash=await client.add_dataset(task.dataset_hash))
        if test is not None:
            watch = True
            shown = {"test_hash": await client.add_dataset(test, is_test=True)}
            task = replace(task, model_requirements={**task.model_requirements, **shown})
        try:
            identifier = await client.order_task(task, fee)
        except PouwError as exc:
            print_error(f"Task {task.task_id} was not submitted: {exc}")
            return {"name": task.task_id, "state": "refused", "reason": str(exc)}
        view.print(
            f"{task.task_id}: sent; {task.reward_amount + fee:g} PAI go into escrow.", markup=False
        )
        while True:
            found = {"name": task.task_id, **await client.views.task(identifier)}
            lines = story.lines(found)
            if not lines and time.monotonic() - said_at >= _LINE_S:
                lines = [now(found)]
            for line in lines:
                view.print(line, markup=False, highlight=False, soft_wrap=True)
                said_at = time.monotonic()
            if not watch or found["state"] in {"settled", "refunded", "refused"}:
                return found
            await asyncio.sleep(_LOOK_S)
    finally:
        await client.stop()
