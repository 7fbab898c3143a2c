"""What follows a task's training: its chain and orders are real, weights, data and the trainer are made up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.chain.records import EVALUATOR
from pocqueue.pouw.errors import DataError, SlotError, TrainingError
from pocqueue.pouw.flow import evaluation, orders as orders_module
from pocqueue.pouw.flow.evaluation import Evaluation
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots.history import Checkpoint
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.slots.weights import first_weights, weights_bytes
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.data import DataShape
from pocqueue.pouw.wire.requests import WeightsRequest
from pocqueue.pouw.wire.statements import UNSIGNED, statement_digest
from pocqueue.pouw.wire.transactions import Body, Close, Faucet, Result, Reveal
from tests.pouw.blocks import GENESIS, START_MS, sent, trained
from tests.pouw.flow.nodes import until
from tests.pouw.flow.parts import Parts, Signed, parts, piece
from tests.pouw.support import account, group_key, key, order, ticket

_DEADLINE_MS = START_MS + 3_600_000
_SHAPE = DataShape(features=64, num_classes=10, num_train=50, side=8, num_buckets=0)
_DATA, _TEST = "0x" + "cd" * 32, "ab" * 32


@dataclass
class _Evaluator:
    """A node, "who" by name, and a task of its own data whose training is over."""

    node: Parts
    evaluation: Evaluation
    orders: Orders
    task: bytes
    now_ms: int = START_MS
    is_broken: bool = False
    #: Part and file of each count that was asked for, and files that are here and shown.
    counted: list[tuple[str, Path | None]] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    unfit: list[Path] = field(default_factory=list)
    #: Names of files that nobody gives.
    kept_back: list[str] = field(default_factory=list)

    async def accuracy(
        self, task: object, theta: bytes, part: str, test: Path | None = None
    ) -> Any:
        """See `Trainer.accuracy`."""
        if self.is_broken:
            raise TrainingError("its child has ended.")
        assert theta == b"weights"
        self.counted.append((part, test))
        if test in self.unfit:
            raise DataError("y_test has 99; 10 classes are ordered.")
        return SimpleNamespace(correct=70, total=100, majority=10)

    async def weights(self, task: object, num_slots: int, theta: bytes) -> bytes:
        """See `SlotSync.weights`."""
        assert (num_slots, theta) == (8, bytes(32))
        return b"weights"

    async def have(self, name: str, timeout_s: float) -> Path | None:
        """See `Datasets.have`."""
        if name in self.kept_back:
            await asyncio.Event().wait()
        return self.files.get(name)

    async def ready(self, name: str, timeout_s: float) -> bool:
        """See `Datasets.ready`."""
        return name in self.files

    async def show(self, name: str) -> None:
        """See `Datasets.show`."""
        self.shown.append(name)

    def path(self, name: str) -> Path | None:
        """See `Datasets.path`."""
        return self.files.get(name)

    @property
    def said(self) -> list[Body]:
        """Return what it has sent."""
        return [one.body for one in self.orders.own.values()]

    async def step(self) -> list[Body]:
        """Let it do what is to be done, to the end; return what it has sent."""
        async with asyncio.TaskGroup() as group:
            self.evaluation.step(group)
        return self.said

    def block(self, *transactions: Any) -> None:
        """Add a block."""
        chain = self.node.core.chain
        block = trained(chain.tip, transactions, slot=9 + chain.tip.height)
        chain.add(block, block.header.time_ms)


@contextlib.asynccontextmanager
async def _closed(
    monkeypatch: pytest.MonkeyPatch, who: str, **requirements: object
) -> AsyncIterator[_Evaluator]:
    async with parts() as node:
        core = node.core
        core.key, core.account = key(who), account(who)
        made: Any = SimpleNamespace()
        orders = Orders(core)
        body = replace(
            order(PAI, PAI, _DEADLINE_MS, architecture="MLP", **requirements),
            data=_DATA if requirements else "digits",
            shape=_SHAPE if requirements else None,
        )
        ordered = sent("client", 1, body)
        found = _Evaluator(node, made, orders, ordered.id)
        found.evaluation = Evaluation(core, found, found, orders)  # type: ignore[arg-type]
        core.trainer = found  # type: ignore[assignment]
        for module in (evaluation, orders_module):
            monkeypatch.setattr(module, "now_ms", lambda: found.now_ms)
        names = ("client", "judge", "nobody")
        found.block(*(sent(name, 0, Faucet()) for name in names), ordered)
        found.block(sent("judge", 1, ticket(EVALUATOR, 50 * PAI)))
        assert await found.step() == []
        found.block(sent("supervisor", 2, _close(ordered.id)))
        yield found


def _close(task: bytes) -> Close:
    blank = Close(0, task, 0, 8, bytes(32), 60, 100, 10, (), UNSIGNED)
    signature = group_key("group").sign(statement_digest(GENESIS.network, blank))
    return replace(blank, signature=signature)


async def test_an_evaluator_says_what_it_finds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of built-in data their test part; the chain takes it, and it is paid for."""
    async with _closed(monkeypatch, "judge") as at:
        result = Result(at.task, 70, 100, 10)
        for _ in range(3):
            assert await at.step() == [result]
        assert at.counted == [("test", None)]
        at.block(*at.orders.own.values())
        at.orders.changed((), ())
        assert at.node.core.chain.tip.state.results(at.task) == {account("judge"): result}
        at.orders._own.clear()
        assert await at.step() == []


async def test_who_has_no_ticket_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result would be refused."""
    async with _closed(monkeypatch, "nobody") as at:
        assert await at.step() == []
        assert at.counted == []


async def test_a_hidden_part_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its client has shown it, it is fetched and counts."""
    async with _closed(monkeypatch, "judge", test_hash=_TEST) as at:
        at.files = {_DATA: Path("data"), "0x" + _TEST: Path("test")}
        assert await at.step() == []
        at.block(sent("client", 2, Reveal(at.task)))
        assert await at.step() == [Result(at.task, 70, 100, 10)]
        assert at.counted == [("test", Path("test"))]


@pytest.mark.parametrize("kept_back", [0, 1])
async def test_a_file_that_nobody_gives_holds_up_no_other_task(
    monkeypatch: pytest.MonkeyPatch, kept_back: int
) -> None:
    """Whichever of two tasks that are closed comes first."""
    tests = [_TEST, "ba" * 32]
    async with _closed(monkeypatch, "judge", test_hash=_TEST) as at:
        body = order(PAI, PAI, _DEADLINE_MS, architecture="MLP", test_hash=tests[1])
        second = sent("client", 3, replace(body, data=_DATA, shape=_SHAPE))
        at.block(sent("client", 2, Reveal(at.task)), second)
        at.block(sent("supervisor", 3, _close(second.id)))
        at.block(sent("client", 4, Reveal(second.id)))
        at.files = {_DATA: Path("data"), **{"0x" + name: Path(name) for name in tests}}
        at.kept_back = ["0x" + tests[kept_back]]
        running = asyncio.create_task(at.evaluation.run())
        await until(lambda: bool(at.said), "a result")
        assert at.said == [Result((second.id, at.task)[kept_back], 70, 100, 10)]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_part_that_is_no_good_counts_as_if_it_were_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its client gains nothing by it, and the evaluator is paid."""
    async with _closed(monkeypatch, "judge", test_hash=_TEST) as at:
        at.files = {_DATA: Path("data"), "0x" + _TEST: Path("test")}
        at.unfit = [Path("test")]
        at.block(sent("client", 2, Reveal(at.task)))
        assert await at.step() == [Result(at.task, 70, 100, 10)]
        assert at.counted == [("test", Path("test")), ("val", None)]


async def test_without_a_hidden_part_the_known_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """When its client's time to show it is over."""
    async with _closed(monkeypatch, "judge", test_hash=_TEST) as at:
        at.files = {_DATA: Path("data")}
        for _ in range(GENESIS.parameters.reveal_blocks):
            assert await at.step() == []
            at.block()
        assert await at.step() == [Result(at.task, 70, 100, 10)]
        assert at.counted == [("val", None)]


async def test_a_client_shows_its_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """When its task is closed, to everybody, and says so; not what it does not have."""
    async with _closed(monkeypatch, "client", test_hash=_TEST) as at:
        assert await at.step() == []
        at.files, at.now_ms = {"0x" + _TEST: Path("test")}, at.now_ms + 2000
        for _ in range(2):
            assert await at.step() == [Reveal(at.task)]
        assert set(at.shown) == {"0x" + _TEST}


async def test_trouble_is_tried_again_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds later; when the time is over, nothing is said."""
    async with _closed(monkeypatch, "judge") as at:
        at.is_broken = True
        assert await at.step() == []
        at.is_broken = False
        assert await at.step() == []
        at.now_ms += 2000
        assert len(await at.step()) == 1
    async with _closed(monkeypatch, "judge") as at:
        for _ in range(GENESIS.parameters.result_blocks + 1):
            at.block()
        assert await at.step() == []


async def test_weights_are_fetched_by_their_hash() -> None:
    """From a peer that has them; another's do not count."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(LAP)
        spec = spec_of(GENESIS, GENESIS.state, signed.history.task.id)
        theta = weights_bytes(first_weights(spec))
        due = hashlib.sha256(theta).digest()
        sent_theta = [theta[:-4] + b"else"]

        def answer(body: bytes) -> bytes:
            request = decode(body, WeightsRequest)
            assert request.slot == LAP
            checkpoint = signed.checkpoints[LAP]
            return encode(piece(Checkpoint(checkpoint.signed, sent_theta[0]), request.piece))

        node.net.answers[Kind.THETA] = answer
        with pytest.raises(SlotError, match="theta: nobody gives the weights after its slot 8"):
            await node.slot_sync.weights(spec, LAP, due)
        sent_theta[0] = theta
        assert await node.slot_sync.weights(spec, LAP, due) == theta
        # What is here is not asked for.
        for slot in signed.slots:
            assert await node.slots.take(slot.record, slot.messages)
        node.net.answers.clear()
        assert await node.slot_sync.weights(spec, LAP, due) == theta
