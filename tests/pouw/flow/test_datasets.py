"""What data a node fetches and for how long, what it says of them, and who gets them from it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.data.manifest import manifest_of
from pocqueue.pouw.data.store import DataStore
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import DataError, LinkError, TrainingError
from pocqueue.pouw.flow import datasets as datasets_module, fetches
from pocqueue.pouw.flow.core import Bell
from pocqueue.pouw.flow.datasets import Datasets
from pocqueue.pouw.flow.fetch import Fetch
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.data import MAX_DATA_BYTES, DataShape, Manifest, hash_of
from pocqueue.pouw.wire.requests import Chunk, ChunkRequest
from tests.pouw.data.files import hidden, vectors, write
from tests.pouw.flow.nodes import until
from tests.pouw.flow.test_fetch import Links, Peer, away
from tests.pouw.support import GENESIS, after, founded, order, signed

SHAPE = DataShape(features=6, num_classes=3, num_train=30, side=0, num_buckets=0)
FILES = [f"file {number}".encode() for number in range(6)]
NAMES = [manifest_of(data).name for data in FILES]


def has(*files: bytes) -> Peer:
    """Return a peer that has these files."""
    known = {hash_of(manifest_of(data).name): data for data in files}

    def answer(request: ChunkRequest) -> bytes:
        if request.data not in known:
            raise LinkError("no such data")
        data = known[request.data]
        return encode(manifest_of(data) if request.index is None else Chunk(data))

    return answer


@dataclass
class MadeUpTrainer:
    """A trainer that says of data what a test wants."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    problems: list[Exception | None] = field(default_factory=list)
    num_checks: int = 0

    def know(self, name: str, path: Path) -> None:
        """See `Trainer.know`."""
        self.files.setdefault(name, []).append(path)

    def forget(self, name: str, path: Path) -> None:
        """See `Trainer.forget`."""
        self.files[name].remove(path)

    async def check(self, task: TaskSpec) -> None:
        """See `Trainer.check`."""
        assert self.files[task.data]
        self.num_checks += 1
        problem = self.problems.pop(0) if self.problems else None
        if problem is not None:
            raise problem


@dataclass
class Node:
    """The data of a node, and what is around them."""

    datasets: Datasets
    store: DataStore
    trainer: MadeUpTrainer
    links: Links
    core: Any

    def at(self, state: State) -> None:
        """Have the chain go on to a state."""
        for position in (self.core.chain.anchor, self.core.chain.tip):
            position.state = state
        self.core.chain_changed.ring()


@contextlib.asynccontextmanager
async def opened(
    folder: Path | None = None,
    role: NodeRole = NodeRole.MINER,
    links: Links | None = None,
    state: State = GENESIS.state,
    max_bytes: int = 2 * MAX_DATA_BYTES,
) -> AsyncIterator[Node]:
    """Run the data of a node."""
    trainer, links = MadeUpTrainer(), links or Links({})
    core: Any = SimpleNamespace(
        config=SimpleNamespace(role=role),
        genesis=GENESIS,
        name="[node]",
        chain=SimpleNamespace(
            anchor=SimpleNamespace(state=state), tip=SimpleNamespace(state=state)
        ),
        network=links,
        trainer=trainer,
        chain_changed=Bell(),
    )
    with DataStore(folder, max_bytes) as store:
        datasets = Datasets(core, store)
        running = asyncio.create_task(datasets.run())
        try:
            yield Node(datasets, store, trainer, links, core)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            datasets.close()
        assert not any(trainer.files.values())


def ordered(*names: str) -> tuple[State, list[bytes]]:
    """Return a chain with a task on each of these data, and the tasks' ids."""
    orders = [
        replace(order(), task_type="classification", data=name, shape=SHAPE) for name in names
    ]
    sent = [signed("client", body, number) for number, body in enumerate(orders, 1)]
    return after(founded("client"), *sent), [one.id for one in sent]


async def test_what_an_anchored_task_needs_is_fetched() -> None:
    """Then the trainer knows it, and the node may take part; once the task is over, neither."""
    state, (task,) = ordered(NAMES[0])
    async with opened(links=Links({"peer": has(FILES[0])})) as node:
        assert node.datasets.path(NAMES[0]) is None
        node.core.chain.tip.state = state
        assert not node.datasets.has(task)
        node.at(state)
        await until(lambda: node.datasets.has(task), "its data")
        path = node.datasets.path(NAMES[0])
        assert path is not None
        assert path.read_bytes() == FILES[0]
        assert node.trainer.files == {NAMES[0]: [path]}
        assert node.datasets.problem(task) is None
        assert node.datasets.has(GENESIS.filler_task(3))
        assert node.trainer.num_checks == 1
        node.store.remove(NAMES[0])
        node.links.answers["peer"] = away
        node.core.chain_changed.ring()
        await until(lambda: not node.trainer.files[NAMES[0]], "the trainer to forget it")
        assert not node.datasets.has(task)


async def test_a_peer_fetches_nothing_for_tasks() -> None:
    """It trains nothing over."""
    state, _ = ordered(NAMES[0])
    async with opened(role=NodeRole.PEER, links=Links({"peer": has(*FILES)})) as node:
        node.at(state)
        # What it waits for itself comes all the same, and nothing else with it.
        assert await node.datasets.have(NAMES[1], 60.0) is not None
        assert node.store.names == [NAMES[1]]


async def test_what_does_not_come_in_time_is_none() -> None:
    """A file that nobody has."""
    async with opened() as node:
        assert await node.datasets.have(NAMES[0], 0.01) is None


async def test_unfit_data_are_told_and_not_tried_again() -> None:
    """They are what the client ordered; they do not get better."""
    state, (task,) = ordered(NAMES[0])
    async with opened(links=Links({"peer": has(FILES[0])})) as node:
        node.trainer.problems.append(DataError("y_train has 3; 3 classes are ordered."))
        node.at(state)
        await until(lambda: node.datasets.problem(task) is not None, "the problem")
        assert node.datasets.problem(task) == "y_train has 3; 3 classes are ordered."
        node.core.chain_changed.ring()
        assert await node.datasets.have(NAMES[0], 60.0) is not None
        assert not node.datasets.has(task)
        assert node.trainer.num_checks == 1


async def test_a_trainer_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause; nothing is held against the data."""
    monkeypatch.setattr(datasets_module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(datasets_module, "_LOOK_S", 0.01)
    state, (task,) = ordered(NAMES[0])
    async with opened(links=Links({"peer": has(FILES[0])})) as node:
        node.trainer.problems += [TrainingError("it ended"), None]
        node.at(state)
        await until(lambda: node.datasets.has(task), "its data")
        assert node.trainer.num_checks == 2


async def test_data_that_end_the_trainer_again_and_again_are_unfit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else they would interrupt its other work for as long as their task is open."""
    monkeypatch.setattr(datasets_module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(datasets_module, "_LOOK_S", 0.01)
    state, (task,) = ordered(NAMES[0])
    async with opened(links=Links({"peer": has(FILES[0])})) as node:
        node.trainer.problems += [TrainingError("it ended")] * 9
        node.at(state)
        await until(lambda: node.datasets.problem(task) is not None, "the problem")
        assert node.datasets.problem(task) == "looked at 4 times, each time in vain: it ended"
        assert node.trainer.num_checks == 4


async def test_data_that_nobody_gives_are_a_problem_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the committee can say that the task is over."""
    state, (task,) = ordered(NAMES[0])
    async with opened() as node:
        node.at(state)
        await until(lambda: task in node.datasets._waits, "the wait")
        assert node.datasets.problem(task) is None
        monkeypatch.setattr(datasets_module, "PATIENCE_S", 0.0)
        problem = node.datasets.problem(task)
        assert problem is not None
        assert "nobody gave its data" in problem


async def test_data_that_nobody_has_hold_up_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that pay more and do not come make way; each has its turn again."""
    monkeypatch.setattr(fetches, "_STUCK_S", 0.05)
    monkeypatch.setattr(fetches, "_PAUSE_S", 0.1)
    monkeypatch.setattr(datasets_module, "_LOOK_S", 0.01)
    state, tasks = ordered(*NAMES)
    # The order of turns is that of the ids where all pay the same.
    last = max(range(len(tasks)), key=lambda number: tasks[number])
    async with opened(links=Links({"peer": has(FILES[last])})) as node:
        node.at(state)
        await until(lambda: node.datasets.has(tasks[last]), "the last one's data")
        asked = {index for _, index in node.links.asked}
        assert asked == {None, 0}
        node.links.answers["peer"] = has(*FILES)
        await until(lambda: all(map(node.datasets.has, tasks)), "all of them")


async def test_what_pays_more_makes_what_pays_less_go() -> None:
    """Also where what is needed is more than there is room for; what pays less finds none."""
    cheap, tasks = ordered(*NAMES[:2])
    body = replace(order(), task_type="classification", shape=SHAPE)
    best = signed("client", replace(body, data=NAMES[2], training_fee=6 * PAI), 3)
    least = signed("client", replace(body, data=NAMES[3], training_fee=4 * PAI), 4)
    links = Links({"peer": has(*FILES)})
    async with opened(links=links, state=cheap, max_bytes=2 * len(FILES[0])) as node:
        await until(lambda: all(map(node.datasets.has, tasks)), "those that pay little")
        node.at(after(cheap, best, least))
        await until(lambda: node.datasets.has(best.id), "what pays best")
        tried = node.datasets._fetches._left
        await until(lambda: NAMES[3] in tried and len(tried) == 2, "the others to find no room")
        assert set(node.store.names) - {*NAMES[:2]} == {NAMES[2]}
        assert links.charged == []


async def test_a_trickle_makes_way() -> None:
    """A chunk now and then keeps nobody else from their turn."""
    with DataStore(None, MAX_DATA_BYTES) as store:
        fetch = Fetch(Links({}), store, NAMES[0])
        one = fetches._Running(asyncio.create_task(fetch.run()), fetch, looked_s=100.0)
        fetch.num_chunks = 1
        assert not one.is_stuck(130.0)
        assert one.is_stuck(130.1)
        fetch.num_chunks += 8
        assert not one.is_stuck(161.0)
        assert one.is_stuck(192.0)
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)


async def _asked(node: Node, name: str, index: int | None) -> bytes:
    return await node.datasets.answer(ChunkRequest(hash_of(name), index))


async def test_own_files_are_given_to_whoever_asks(tmp_path: Path) -> None:
    """The manifest, then its chunks; of others and of chunks beyond the end there is nothing."""
    async with opened(role=NodeRole.PEER) as node:
        name = await node.datasets.add(write(tmp_path / "own", vectors()))
        manifest = decode(await _asked(node, name, None), Manifest)
        assert manifest.name == name
        chunk = decode(await _asked(node, name, 0), Chunk).chunk
        assert chunk == (tmp_path / "own").read_bytes()
        for data, index in ((name, 1), (NAMES[0], None), (NAMES[0], 0)):
            with pytest.raises(LinkError):
                await _asked(node, data, index)


async def test_a_file_that_cannot_be_trained_on_is_not_taken(tmp_path: Path) -> None:
    """A test part where data to train on are due, and the other way round."""
    async with opened(role=NodeRole.PEER) as node:
        with pytest.raises(DataError, match="x_test, y_test; allowed: x_train"):
            await node.datasets.add(write(tmp_path / "own", hidden(vectors())))
        with pytest.raises(DataError, match="allowed: x_test, y_test"):
            await node.datasets.add(write(tmp_path / "own", vectors()), is_hidden=True)
        assert node.store.names == []


async def test_a_hidden_file_is_given_once_it_is_shown(tmp_path: Path) -> None:
    """Not before, whoever knows its name; a restart in between shows nothing."""
    path = write(tmp_path / "test", hidden(vectors()))
    async with opened(tmp_path, NodeRole.PEER) as node:
        name = await node.datasets.add(path, is_hidden=True)
        assert node.datasets.path(name) is not None
    async with opened(tmp_path, NodeRole.PEER) as node:
        for index in (None, 0):
            with pytest.raises(LinkError):
                await _asked(node, name, index)
        await node.datasets.show(name)
        assert decode(await _asked(node, name, None), Manifest).name == name
    async with opened(tmp_path, NodeRole.PEER) as node:
        assert decode(await _asked(node, name, 0), Chunk).chunk == path.read_bytes()


async def test_a_damaged_file_is_refused_and_not_sent(tmp_path: Path) -> None:
    """Whoever asked looks elsewhere, and holds nothing against this node."""
    async with opened(tmp_path, NodeRole.PEER) as node:
        name = await node.datasets.add(write(tmp_path / "own", vectors()))
        path = node.datasets.path(name)
        assert path is not None
        path.write_bytes(b"?" + path.read_bytes()[1:])
        with pytest.raises(LinkError, match="that chunk is not here"):
            await _asked(node, name, 0)
        assert node.datasets.path(name) is None
