"""Accusations: only by who may, once for each culprit, and judged by training over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pocqueue.pouw.chain.records import VERIFIER
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.errors import ChainError, InvalidBlock, NotSigned, TrainingError
from pocqueue.pouw.flow.accusations import Accusations
from pocqueue.pouw.flow.core import Tasks
from pocqueue.pouw.wire.evidence import Fault, TwoMessages, TwoVotes
from pocqueue.pouw.wire.slots import Iteration
from pocqueue.pouw.wire.transactions import Body, Evidence, Transaction
from tests.pouw.offences import found_false, message, vote
from tests.pouw.support import GENESIS, account, after, founded, signed, ticket

TWO_MESSAGES = TwoMessages(message(), message(loss=1))


@pytest.fixture(scope="module")
def state() -> State:
    """ "finder" is a verifier, "supervisor" is in office, "miner" mines."""
    return after(founded("finder"), signed("finder", ticket(VERIFIER), 1))


@dataclass
class _Node:
    """What accusations ask for, all of it made up but the state."""

    state: State
    verdict: Exception | None = None
    refusal: NotSigned | None = None
    certified: Iteration | None = field(default_factory=message)
    trained: int = 0
    asked: list[Fault] = field(default_factory=list)
    own: list[Transaction] = field(default_factory=list)
    in_blocks: set[bytes] = field(default_factory=set)

    async def sign(self, statement: Fault) -> bytes:
        """See `Signer`."""
        self.asked.append(statement)
        if self.refusal is not None:
            raise self.refusal
        return found_false(finder="finder").signature

    def make(self, body: Body) -> Transaction:
        """See `Sender`."""
        return signed("finder", body, 2 + len(self.own))

    async def send(self, transaction: Transaction) -> None:
        """See `Sender`."""
        self.own.append(transaction)

    def is_waiting(self, transaction: bytes) -> bool:
        """See `Sender`."""
        return transaction not in self.in_blocks

    async def train_over(self, winner: Iteration) -> str:
        """See `Retrainer`."""
        self.trained += 1
        if self.verdict is not None:
            raise self.verdict
        return "it is good."

    async def message(self, task: bytes, slot: int, miner: bytes, lane: int) -> Iteration:
        """See `Certified`."""
        if self.certified is None:
            raise ChainError("it is not here")
        return self.certified

    async def in_chain(self, work: Any, *args: Any) -> Any:
        """See `Core`."""
        return work(*args)

    @property
    def shown(self) -> list[object]:
        """What was sent as evidence."""
        bodies = [one.body for one in self.own]
        return [body.fault for body in bodies if isinstance(body, Evidence)]


class _Running:
    """Accusations of a node, whose tasks can be waited for."""

    def __init__(self, node: _Node, name: str, *, mitigates: bool) -> None:
        self.tasks = Tasks("[node]")
        core = SimpleNamespace(
            account=account(name),
            name="[node]",
            genesis=GENESIS,
            config=SimpleNamespace(enable_attack_mitigation=mitigates),
            chain=SimpleNamespace(tip=SimpleNamespace(state=node.state)),
            in_chain=node.in_chain,
        )
        self.core = core
        self.accusations = Accusations(cast(Any, core), self.tasks, node, node, node, node)

    async def done(self) -> None:
        """Wait until everything that was begun has ended."""
        while running := list(self.tasks._running):
            await asyncio.gather(*running)
            await asyncio.sleep(0)  # they are taken out then


@contextlib.asynccontextmanager
async def _running(
    node: _Node, name: str = "finder", *, mitigates: bool = True
) -> AsyncIterator[_Running]:
    running = _Running(node, name, mitigates=mitigates)
    try:
        yield running
    finally:
        await running.tasks.close()


async def test_what_was_found_false_is_signed_and_shown(state: State) -> None:
    """With the finder's own account in it; and the chain takes it."""
    node = _Node(state)
    async with _running(node) as running:
        running.accusations.accuse(message())
        await running.done()
        assert node.shown == [found_false(finder="finder")]
        left = after(state, *node.own)
        assert list(left.slashes()) == [account("miner")]


async def test_a_culprit_is_accused_once(state: State) -> None:
    """Not again while the committee is asked, nor while evidence waits, nor once its stake is gone."""
    node = _Node(state)
    async with _running(node) as running:
        for slot in (9, 10, 11):
            running.accusations.accuse(message(slot=slot))
        await running.done()
        running.accusations.accuse(message(slot=12))
        running.accusations.show(TWO_MESSAGES)
        await running.done()
        assert len(node.asked) == len(node.shown) == 1
        node.in_blocks.add(node.own[0].id)
        running.core.chain.tip.state = after(state, *node.own)
        running.accusations.accuse(message(slot=13))
        await running.done()
        assert len(node.asked) == len(node.shown) == 1


async def test_who_was_not_heard_accuses_again(state: State) -> None:
    """The committee may have been away."""
    node = _Node(state, refusal=NotSigned("too few members"))
    async with _running(node) as running:
        running.accusations.accuse(message())
        await running.done()
        assert not node.own
        node.refusal = None
        running.accusations.accuse(message(slot=10))
        await running.done()
        assert len(node.asked) == 2
        assert len(node.own) == 1


@pytest.mark.parametrize(
    ("name", "mitigates"), [("miner", True), ("nobody", True), ("finder", False)]
)
async def test_who_may_not_accuse_does_not(state: State, name: str, mitigates: bool) -> None:
    """A miner, somebody without a ticket, and one whose operator does not want it."""
    node = _Node(state)
    async with _running(node, name, mitigates=mitigates) as running:
        running.accusations.accuse(message("other"))
        await running.done()
        assert not node.asked


async def test_contradictions_are_shown_without_asking_anybody(state: State) -> None:
    """Those that are some; each culprit's once."""
    votes = TwoVotes(vote(), vote(value=b"v" * 32))
    node = _Node(state)
    async with _running(node) as running:
        for found in (
            TwoMessages(message(), message(slot=10)),
            TwoMessages(message(slot=0), message(slot=0, loss=1)),
            TwoMessages(message("nobody"), message("nobody", loss=1)),
            *(TWO_MESSAGES, TWO_MESSAGES, votes),
            TwoVotes(vote(turn=6), vote(turn=6, value=b"v" * 32)),
        ):
            running.accusations.show(found)
        await running.done()
        assert node.shown == [TWO_MESSAGES, votes]
        assert not node.asked
        assert set(after(state, *node.own).slashes()) == {account("miner"), account("supervisor")}


async def test_a_judge_trains_over_once_and_says_what_comes_of_it(state: State) -> None:
    """Whoever accuses, and however often."""
    for verdict, is_false in ((InvalidBlock("re-execution", "it is false."), True), (None, False)):
        node = _Node(state, verdict=verdict)
        async with _running(node, "supervisor") as running:
            for finder in ("finder", "other"):
                assert await running.accusations.judge(found_false(finder=finder)) is is_false
            assert node.trained == 1


async def test_a_judge_that_cannot_train_over_says_nothing(state: State) -> None:
    """It is asked again, and then it may be able to."""
    node = _Node(state, verdict=TrainingError("the trainer is away"))
    async with _running(node, "supervisor") as running:
        with pytest.raises(TrainingError):
            await running.accusations.judge(found_false())
        node.certified = None
        with pytest.raises(ChainError):
            await running.accusations.judge(found_false())
        node.certified, node.verdict = message(), InvalidBlock("re-execution", "it is false.")
        assert await running.accusations.judge(found_false())


async def test_a_judge_signs_nothing_about_what_is_not_certified_or_paid_for(state: State) -> None:
    """Another message of the lane; and of a miner without a stake, or an offence that has cost one, it says nothing."""
    node = _Node(state, verdict=InvalidBlock("re-execution", "it is false."))
    async with _running(node, "supervisor") as running:
        assert not await running.accusations.judge(found_false(message=message(loss=5).id))
        with pytest.raises(ChainError):
            await running.accusations.judge(found_false("nobody"))
        running.core.chain.tip.state = after(state, signed("finder", Evidence(TWO_MESSAGES), 2))
        with pytest.raises(ChainError):
            await running.accusations.judge(found_false())
        assert node.trained == 0
