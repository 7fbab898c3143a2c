"""Requests for given nonces: kept over restarts, waiting out what passes, each told of once."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from pocqueue.engine.base import Engine, EngineInfo
from pocqueue.errors import EngineError, EngineUnavailable, NodeStateError, OutboxError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.mlnode.jobs import PREFIX
from pocqueue.node.mlnode.proxy import Proxy
from pocqueue.node.outbox import OUTBOX_NAME, Outbox
from pocqueue.node.service import NodeService
from pocqueue.poc.artifact.bodies import GenerateBody
from pocqueue.poc.artifact.jobs import Job, JobState
from pocqueue.poc.artifact.refusals import RequestFailed
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.spec import RoundState
from pocqueue.settings import NodeSettings
from tests.support.artifacts import artifact_of, artifact_round, artifacts_in
from tests.support.callback_receiver import Receiver
from tests.support.delegation_server import live_gpus
from tests.support.factories import OTHER_FINGERPRINT, make_info
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.live_pool import live_pool
from tests.support.mlnode import asked
from tests.support.node import TroubledOutbox, node_at_work, shows
from tests.support.waiting import until


async def take(node: NodeService, *nonces: int, **fields: Any) -> Job:
    """Have nonces computed."""
    return await node.jobs.take(GenerateBody.model_validate(asked(nonces, **fields)))


def told(receiver: Receiver) -> dict[str, list[int]]:
    """Return the nonces that each request's URL was told of."""
    assert len({body["request_id"] for body in receiver.accepted}) == len(receiver.accepted)
    return {
        body["request_id"]: [nonce for nonce, _ in artifacts_in([body])]
        for body in receiver.accepted
    }


def open_requests(folder: Path) -> list[str]:
    """Return the requests that the next run of a node goes on with."""
    with Outbox(folder / OUTBOX_NAME, beside_owner=True) as outbox:
        sessions = outbox.open_sessions()
    return [one.session_id.removeprefix(PREFIX) for one in sessions]


async def test_requests_go_on_after_a_restart(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver, tmp_path: Path
) -> None:
    """More than run at a time; those that ran go on with what the pool has of them, in the rounds that they had."""
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        jobs = [await take(node, number, url=receiver.url) for number in range(20)]
        await until(lambda: len(backend.store.active_ids()) == 16)
        assert node.jobs.queue.num_open == 20
    assert open_requests(tmp_path) == [job.request_id for job in jobs]
    rounds = backend.store.active_ids()
    with live_pool(backend, FakeEngine(artifact_of)):
        async with node_at_work(settings_for(), work="queue") as node:
            await until(lambda: len(receiver.accepted) == 20)
            found = [node.jobs.queue.find(job.request_id) for job in jobs]
            assert {job.state for job in found} == {JobState.COMPLETED}
            await until(lambda: not open_requests(tmp_path))
    assert told(receiver) == {job.request_id: [i] for i, job in enumerate(jobs)}
    made = backend.store.list_ids()
    assert set(rounds) <= set(made)
    assert len(made) == 20
    assert {status.state for status in backend.store.statuses(made)} == {RoundState.COMPLETED}


async def test_what_is_on_disk_already_is_not_computed_again(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver, tmp_path: Path
) -> None:
    """As a node leaves it that dies between its last two steps."""
    with live_pool(backend, FakeEngine(artifact_of)):
        async with node_at_work(settings_for(), work="queue") as node:
            receiver.verdict = lambda _: 503
            job = await take(node, 7, url=receiver.url)
            await until(lambda: not open_requests(tmp_path))
    with Outbox(tmp_path / OUTBOX_NAME) as outbox, outbox.transaction() as db:
        db.execute("UPDATE sessions SET state = 'open'")
    receiver.verdict = lambda _: 200
    async with node_at_work(settings_for(), work="queue") as node:
        await until(lambda: receiver.accepted)
        assert node.jobs.queue.num_open == 0
        assert open_requests(tmp_path) == []
    assert told(receiver) == {job.request_id: [7]}
    assert len(backend.store.list_ids()) == 1


async def test_a_request_that_cannot_be_read_any_more(
    settings_for: SettingsFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and ends."""
    with Outbox(tmp_path / OUTBOX_NAME) as outbox:
        outbox.open_session(f"{PREFIX}abc", "queue", '{"nonces": []}')
    async with node_at_work(settings_for(), work="queue"):
        assert open_requests(tmp_path) == []
    assert "Request abc cannot go on and is closed: " in caplog.text


async def test_what_redis_has_lost_is_begun_again(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """With all that it knew."""
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        job = await take(node, 3, 1, url=receiver.url)
        await until(backend.store.active_ids)
        backend.client.flushall()
        with live_pool(backend, FakeEngine(artifact_of)):
            await until(lambda: receiver.accepted)
    assert told(receiver) == {job.request_id: [3, 1]}


async def test_a_round_that_somebody_stopped_is_begun_again(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """So is one that was stopped because its start failed."""
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        job = await take(node, 3, 1, url=receiver.url)
        await until(backend.store.active_ids)
        [round_id] = backend.store.active_ids()
        backend.store.close(round_id, RoundState.STOPPED, "by hand")
        with live_pool(backend, FakeEngine(artifact_of)):
            await until(lambda: receiver.accepted)
    assert told(receiver) == {job.request_id: [3, 1]}


async def test_gpus_that_are_away_are_waited_for(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver, caplog: Any
) -> None:
    """Once a request is taken."""
    caplog.set_level(logging.INFO)
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        job = await take(node, 3, url=receiver.url)
        await until(backend.store.active_ids)
    backend.client.flushall()
    async with node_at_work(settings_for(), work="queue") as node:
        node.jobs.computer.pause_s = 0.01
        await until(lambda: "No live GPU takes work now" in caplog.text)
        with live_pool(backend, FakeEngine(artifact_of)):
            await until(lambda: receiver.accepted)
    assert told(receiver) == {job.request_id: [3]}


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (make_info(model="other", fingerprint=OTHER_FINGERPRINT), "Model conflict: "),
        (make_info(max_pass_tokens=7), "seq_len is 8; allowed: at most 7"),
    ],
)
async def test_a_model_that_is_away_is_waited_for(
    backend: Backend,
    settings_for: SettingsFactory,
    receiver: Receiver,
    caplog: Any,
    info: EngineInfo,
    said: str,
) -> None:
    """While its workers start again, or only small GPUs of it are there."""
    caplog.set_level(logging.INFO)
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        job = await take(node, 3, url=receiver.url)
        await until(backend.store.active_ids)
    backend.client.flushall()
    live_gpus(backend, info=info)
    async with node_at_work(settings_for(), work="queue") as node:
        node.jobs.computer.pause_s = 0.01
        await until(lambda: said in caplog.text)
        with live_pool(backend, FakeEngine(artifact_of)):
            await until(lambda: receiver.accepted)
    assert told(receiver) == {job.request_id: [3]}


async def test_an_engine_that_cannot_be_loaded_ends_no_request(
    settings_for: SettingsFactory, receiver: Receiver, tmp_path: Path, caplog: Any
) -> None:
    """The next run, whose engine can, goes on with them."""
    caplog.set_level(logging.INFO)
    request_id, body = str(uuid.uuid4()), GenerateBody.model_validate(asked([3], url=receiver.url))
    with Outbox(tmp_path / OUTBOX_NAME) as outbox:
        outbox.open_session(PREFIX + request_id, "engine", body.model_dump_json())

    def broken(*_: object) -> Engine:
        raise EngineError("out of memory")

    host = EngineHost(settings_for(), broken)
    async with node_at_work(settings_for(), work="engine", host=host) as node:
        node.jobs.computer.pause_s = 0.01
        await until(lambda: "The nonces of a request wait: The engine of this" in caplog.text)
        assert node.jobs.queue.num_open == 1
    assert open_requests(tmp_path) == [request_id]
    async with node_at_work(settings_for(), work="engine", engine=FakeEngine(artifact_of)):
        await until(lambda: receiver.accepted)
    assert told(receiver) == {request_id: [3]}


async def test_a_stop_ends_a_request_that_is_not_taken_yet(
    backend: Backend, settings_for: SettingsFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that is still being checked."""
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        came, go = threading.Event(), threading.Event()
        look = node.jobs.computer.searches.backend

        def slow() -> Backend:
            came.set()
            go.wait(60)
            return look()

        monkeypatch.setattr(node.jobs.computer.searches, "backend", slow)
        coming = asyncio.create_task(take(node, 1))
        await until(came.is_set)
        await node.jobs.stop()
        go.set()
        with pytest.raises(NodeStateError, match="stopped before it was begun"):
            await coming
        assert node.jobs.queue.num_open == 0
    assert open_requests(tmp_path) == []


async def test_an_engine_that_is_away_is_waited_for(
    settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """One whose model a server has."""

    def away(number: int) -> None:
        if number == 1:
            raise EngineUnavailable("The vLLM server does not answer.")

    async with node_at_work(
        settings_for(), work="engine", engine=FakeEngine(artifact_of, away)
    ) as node:
        assert node.engine is not None
        await node.engine.ready()
        node.jobs.computer.pause_s = 0.01
        job = await take(node, 3, 1, 3, url=receiver.url)
        await until(lambda: receiver.accepted)
    assert told(receiver) == {job.request_id: [3, 1, 3]}


async def test_what_is_not_computed_in_time_fails(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver, tmp_path: Path
) -> None:
    """Its caller is told why, its URL nothing; the next run does not begin it again."""
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        node.jobs.computer.window_s = 0.2
        job = await take(node, 3, 1, url=receiver.url)
        await until(lambda: job.over)
        assert job.answer()["status"] == "failed"
        assert job.error is not None
        assert job.error.startswith("2 of 2 nonces were not computed: its time was over;")
        await until(lambda: not open_requests(tmp_path))
    assert receiver.received == []


async def test_a_full_disk(
    settings_for: SettingsFactory, receiver: Receiver, tmp_path: Path
) -> None:
    """A request that cannot be kept is refused and forgotten; a result waits until there is room."""
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def waits(_: int) -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(60)

    outbox = TroubledOutbox(tmp_path / OUTBOX_NAME)
    engine = FakeEngine(artifact_of, waits)
    async with node_at_work(settings_for(), work="engine", engine=engine, outbox=outbox) as node:
        assert node.engine is not None
        await node.engine.ready()
        outbox.trouble = 1 << 30
        with pytest.raises(OutboxError, match="disk full"):
            await take(node, 1, url=receiver.url)
        await until(lambda: node.jobs.queue.num_open == 0)
        outbox.trouble = 0
        job = await take(node, 2, url=receiver.url)
        outbox.trouble = 3
        gate.set()
        await until(lambda: receiver.accepted)
        await shows(node, waiting=0)
    assert told(receiver) == {job.request_id: [2]}


async def test_nobody_waits_for_ever(backend: Backend, settings_for: SettingsFactory) -> None:
    """What was waited for in vain is given up."""
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        assert node.jobs.queue.wait_s == 60
        node.jobs.queue.wait_s = 0.1
        proxy = Proxy(node, NodeSettings())
        with pytest.raises(RequestFailed, match=r"Not computed within 0\.1 s: "):
            await proxy.generate(GenerateBody.model_validate(asked([1], wait=True)))
        await until(lambda: not backend.store.active_ids())


async def test_more_nonces_than_a_round_takes(
    backend: Backend, settings_for: SettingsFactory
) -> None:
    """In several rounds, one after the other, and in the order of the request."""
    nonces = list(range(10_010, 0, -1))
    with live_pool(backend, FakeEngine(artifact_of)):
        async with node_at_work(settings_for(), work="queue") as node:
            job = await take(node, *nonces, wait=True, batch_size=1000)
            await node.jobs.queue.result(job)
            assert job.state is JobState.COMPLETED
            assert [one["nonce"] for one in job.answer()["artifacts"]] == nonces
    assert sorted(status.checked for status in backend.store.snapshot()) == [10, 10_000]


async def test_requests_and_a_round_on_one_pool(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """A request does not wait for the end of the round, nor does it end it."""
    engine = FakeEngine(artifact_of)
    with live_pool(backend, engine):
        async with node_at_work(settings_for(), work="queue") as node:
            await node.generate(artifact_round(receiver.url))
            await until(lambda: len(engine.batches) > 5)
            job = await take(node, *range(1_000_000, 1_000_200), wait=True)
            answer = await node.jobs.queue.result(job)
            assert len(answer["artifacts"]) == 200
            assert node.current is not None
            assert node.current.is_searching
            num_batches = len(engine.batches)
            await until(lambda: len(engine.batches) > num_batches + 5)
