"""The network's chain with its node pointed at a pool: the timetable of a proof of compute, whatever is killed."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from typing_extensions import override

from tests.support.chain import Chain, Participant, Receiver, Stage, play
from tests.support.delegation_parts import SmallNode
from tests.support.mlnode import PREFIX
from tests.support.stack import Stack
from tests.support.waiting import PATIENCE_S, until

STAGE = Stage("embedded", seq_len=16)


class Patient(httpx.AsyncHTTPTransport):
    """Tries again while nobody is there, as the chain does by its reconciliations."""

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await super().handle_async_request(request)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)


@dataclass(kw_only=True)
class PatientChain(Chain):
    """Ends a stage when it may, and takes artifacts until it has them all."""

    stack: Stack  #: that computes them
    may_stop: asyncio.Event = field(default_factory=asyncio.Event)

    @override
    async def stop(self) -> None:
        await self.may_stop.wait()
        await super().stop()
        await until(lambda: self.receiver.artifacts == self.counted(), PATIENCE_S)

    def counted(self) -> dict[int, str]:
        """Return what the pool has counted of the stage, artifact for artifact."""
        store, found = self.stack.backend.store, dict[int, str]()
        for status in store.snapshot():
            if status.spec.public_key == STAGE.public_key and status.spec.given_nonces is None:
                for entry in store.iter_proofs(status):
                    found |= dict(entry.proofs)
        return found


@pytest.fixture
def node(stack: Stack) -> Iterator[SmallNode]:
    """A small node over the shared pool."""
    name = f"mlnode-{time.monotonic_ns()}"
    on_pool = {"POCQUEUE_NODE_WORK": "queue", "POCQUEUE_REDIS_URL": stack.server.url}
    made = SmallNode(stack, None, name, **on_pool)
    yield made
    made.close()


@pytest.fixture
async def chain(stack: Stack, node: SmallNode) -> AsyncIterator[PatientChain]:
    async with (
        Receiver(STAGE) as receiver,
        httpx.AsyncClient(base_url=f"{node.url}/v3.0.16", transport=Patient(), timeout=120) as http,
    ):
        yield PatientChain(http, PREFIX, STAGE, receiver, stack=stack)


async def participants(chain: Chain) -> list[Participant]:
    """Return an honest one, one with artifacts of another block, and one with a fifth of its vectors altered."""
    honest = await chain.participant("02" + "11" * 32, range(200))
    other = await chain.participant("02" + "22" * 32, range(7, 1007, 5), block_hash="00" * 32)
    altered = (await chain.participant("02" + "33" * 32, range(200))).altered(0.2)
    return [honest, other, altered]


def check_votes(chain: Chain, asked: list[Participant]) -> None:
    """Check who passes."""
    honest, other, altered = [one.public_key for one in asked]
    assert chain.receiver.votes == {honest: 200, other: -1, altered: -1}
    verdicts = {key: bodies[0] for key, bodies in chain.receiver.verdicts.items()}
    assert verdicts[honest]["n_mismatch"] == 0
    assert verdicts[other]["n_mismatch"] > 190
    assert 35 <= verdicts[altered]["n_mismatch"] <= 40


async def test_whatever_is_killed(stack: Stack, node: SmallNode, chain: PatientChain) -> None:
    """Worker, scheduler, Redis and node while artifacts are made; node and Redis while claims wait to be validated."""
    asked = await participants(chain)
    receiver = chain.receiver

    async def more(num: int) -> None:
        """Wait until so many more artifacts are there."""
        wanted = len(receiver.artifacts) + num
        await until(lambda: len(receiver.artifacts) >= wanted, PATIENCE_S)

    async def kill_redis() -> None:
        await asyncio.to_thread(stack.kill_redis)
        await asyncio.to_thread(stack.server.ensure)

    async def kill_node() -> None:
        # What it has not heard of as taken by its receiver it would send again.
        refused = len(receiver.refused)
        receiver.statuses = itertools.repeat(503)
        await until(lambda: len(receiver.refused) > refused, PATIENCE_S)
        await asyncio.to_thread(node.kill)
        receiver.statuses = iter(())
        await asyncio.to_thread(node.start)

    async def kill_while_generating() -> None:
        await more(50)
        stack.kill("gpu0")
        stack.worker("gpu0")
        await more(50)
        stack.kill("scheduler")
        stack.scheduler()
        await more(50)
        await kill_redis()
        await more(50)
        await kill_node()
        await more(50)
        chain.may_stop.set()

    async def kill_while_validating() -> None:
        await until(lambda: len(chain.requests) == len(asked), PATIENCE_S)
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)
        await kill_redis()
        assert receiver.verdicts == {}
        stack.scheduler()

    def to_be_validated() -> list[Participant]:
        # Nothing is handed out to GPUs until all else was killed.
        stack.kill("scheduler")
        return asked

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(play(chain, to_be_validated, in_order=False))
        tasks.create_task(kill_while_generating())
        tasks.create_task(kill_while_validating())
    check_votes(chain, asked)
    assert receiver.artifacts == chain.counted()
