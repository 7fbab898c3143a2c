"""Database, messages and the gateway itself away: sockets stay, nothing finished is lost, nothing is paid twice."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import event, update

from pocqueue.hosts.errors import DatabaseUnavailable
from pocqueue.hosts.gateway import hub
from pocqueue.hosts.gateway.messenger import What
from pocqueue.hosts.gateway.socket.conversation import MAX_RESULTS
from pocqueue.hosts.records import Attempt, Beat
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.database import Database, file_url
from pocqueue.hosts.store.places import Places
from pocqueue.hosts.store.presence import Presence
from pocqueue.hosts.tables import attempt
from tests.hosts.agents import NewAgent, OldAgent
from tests.hosts.gateway.conftest import Gateway
from tests.hosts.parts import sleep
from tests.support.postgresql import PostgresServer
from tests.support.small_disk import fill, small_disk
from tests.support.waiting import PATIENCE_S, until


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A SQLite file, which a test can lock."""
    return file_url(tmp_path / "hosts.sqlite3")


@contextmanager
def locked(gateway: Gateway, file: Path) -> Iterator[None]:
    """Have the database locked by somebody else, and the gateway wait 0.1 s for that lock, where it would wait 5 s."""
    patience_ms = 100

    def checked_out(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA busy_timeout = {patience_ms}")

    event.listen(gateway.store.database.engine, "checkout", checked_out)
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield
        patience_ms = 5000
        holder.execute("ROLLBACK")


async def test_while_the_database_is_away(make: Callable[..., Gateway], tmp_path: Path) -> None:
    """Nobody new gets in, heartbeats are answered, and a result is acknowledged once it is kept."""
    gateway = make(timings={"retry_s": 0.05})
    token, other = gateway.token(), gateway.token()
    async with NewAgent(gateway.ws_url) as agent, OldAgent(gateway.ws_url) as late:
        node_id = await agent.register(token)
        job = await agent.of_type("job")
        with locked(gateway, tmp_path / "hosts.sqlite3"):
            await agent.send(
                type="job_result", id=job["id"], attempt=1, status="completed", logs="kept"
            )
            assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
            reply = await late.ask(type="register", token=other, hostInfo={})
            assert reply["message"] == "The gateway cannot do that for now; try again"
            assert gateway.http.get("/health").status_code == 200
            answer = gateway.http.post("/api/nodes/issue-token", json={"wallet": gateway.wallet})
            assert (answer.status_code, list(answer.json())) == (503, ["error"])
            assert "Retry-After" in answer.headers
        assert (await agent.of_type("ack"))["id"] == job["id"]
        await late.register(other)
    assert gateway.store.jobs.log(job["id"]).text == "kept"
    assert gateway.store.ledger.differences() == []


async def test_what_is_said_once_while_the_database_is_away(
    make: Callable[..., Gateway], tmp_path: Path
) -> None:
    """A self-test, the newest one, and a refusal, and then that it drains: all of them count once it is back."""
    gateway = make(timings={"retry_s": 0.05})
    async with NewAgent(gateway.ws_url) as agent:
        token = gateway.store.owners.issue_token(gateway.wallet, proven=True).token
        node_id = await agent.register(token)
        await agent.result(await agent.of_type("job"))
        gateway.submit(only_node=node_id)
        job = await agent.of_type("job")
        with locked(gateway, tmp_path / "hosts.sqlite3"):
            for state in ("pass", "fail"):
                row = {"name": "gpu", "state": state, "gpu": "GPU-1", "wanted": "w", "remedy": "r"}
                await agent.send(type="self_test", rows=[row])
            await agent.send(type="job_refused", id=job["id"], attempt=job["attempt"], reason="no")
            await agent.send(type="draining")
            assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}

        def is_kept() -> bool:
            node = gateway.store.nodes.get(node_id)
            [attempt] = gateway.store.jobs.attempts(job["id"])
            said = (node.gpus[0].healthy, str(attempt.outcome), node.kinds)
            return said == (False, "refused", ())

        await until(is_kept)


async def test_a_node_that_was_away_when_it_was_drained_hears_it(gateway: Gateway) -> None:
    """Whoever asked for it may have done so while it, or what it is told by, was away."""
    agent = NewAgent(gateway.ws_url)
    async with agent:
        node_id = await agent.register(gateway.token())
    assert gateway.admin("POST", f"/api/nodes/{node_id}/drain").json() == {"ok": True}
    async with NewAgent(gateway.ws_url, agent.key) as agent:
        assert (await agent.resume(node_id))["type"] == "registered"
        await agent.of_type("drain")
    assert gateway.admin("POST", f"/api/nodes/{node_id}/resume").json() == {"ok": True}
    async with NewAgent(gateway.ws_url, agent.key) as agent:
        await agent.resume(node_id)
        assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}


async def test_while_the_disk_is_full(make: Callable[..., Gateway], tmp_path: Path) -> None:
    """The same; the sentence says to make room, and once there is some the result is kept by itself."""
    with small_disk(tmp_path / "disk") as disk:
        url = SecretStr(file_url(disk / "hosts.sqlite3"))
        gateway = make(database_url=url, timings={"retry_s": 0.05})
        async with NewAgent(gateway.ws_url) as agent:
            node_id = await agent.register(gateway.token())
            job = await agent.of_type("job")
            filled = fill(disk)
            logs = "kept" * 20_000
            await agent.send(
                type="job_result", id=job["id"], attempt=1, status="completed", logs=logs
            )
            assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
            answer = gateway.http.post("/api/nodes/issue-token", json={"wallet": gateway.wallet})
            assert answer.status_code == 503
            assert "Make room on its disk" in answer.json()["error"]
            filled.unlink()
            assert (await agent.of_type("ack"))["id"] == job["id"]
        assert gateway.store.jobs.log(job["id"]).text == logs
        assert gateway.store.ledger.differences() == []
        gateway.end()


async def test_while_postgresql_is_away(make: Callable[..., Gateway]) -> None:
    """Killed under a gateway with machines at work: sockets stay, what ends meanwhile is kept and paid once."""
    with PostgresServer() as server:
        url = server.url(server.create())
        with Database(url) as database:
            database.migrate()
        gateway = make(timings={"retry_s": 0.05}, database_url=SecretStr(url))
        store = gateway.store
        async with NewAgent(gateway.ws_url) as new, OldAgent(gateway.ws_url) as old:
            token = store.owners.issue_token(gateway.wallet, proven=True).token
            new_id = await new.register(token)
            old_id = await old.register(gateway.token())
            test, other = await new.of_type("job"), await old.of_type("job")
            await asyncio.to_thread(
                server.stop, signal.SIGQUIT
            )  # without a farewell or a checkpoint
            await new.begin(test)
            said = await new.receive()
            assert (said["type"], said["id"], said["attempt"]) == ("error", test["id"], 1)
            await new.send(type="job_result", id=test["id"], attempt=1, status="completed", logs="")
            await old.send(type="job_result", id=other["id"], status="completed", logs="")
            for agent, node_id in ((new, new_id), (old, old_id)):
                assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
            job = sleep(0, only_node=new_id)
            with pytest.raises(DatabaseUnavailable):
                store.jobs.submit(job)
            assert gateway.http.get("/readyz").status_code == 503
            await asyncio.to_thread(server.start)
            for agent in (new, old):
                received = await agent.of_type("ack")
                assert received["message"] == "Job result received"
            job_id = store.jobs.submit(job).id
            gateway.messenger.look()
            again = await new.of_type("job")
            assert again["id"] == job_id
            assert (await new.result(again))["type"] == "ack"
        for done in (test["id"], other["id"], job_id):
            [attempt] = store.jobs.attempts(done)
            assert str(attempt.outcome) == "completed"
        assert store.ledger.differences() == []
        gateway.end()


def _run_out(store: HostStore) -> None:
    """Let all leases run out, as they do while nobody can renew them."""
    with store.database.write() as connection:
        connection.execute(update(attempt).values(lease_until_ms=store.now_ms() - 1))


async def test_nobody_loses_a_job_to_an_outage(
    make: Callable[..., Gateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was heard is written down before leases end; other gateways get time to do so. Then the silent lose theirs."""
    now_s = 0.0
    monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=lambda: now_s))
    gateway = make(timings={"flush_s": 3600.0})
    store = gateway.store

    def sweep() -> str:
        _run_out(store)
        return gateway.service.sweep()

    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        job = await agent.of_type("job")
        named = {"jobs": [{"id": job["id"], "attempt": 1}]}
        assert await agent.ask(type="heartbeat", nodeId=node_id, **named) == {"type": "ack"}
        assert await asyncio.to_thread(sweep) == "0 attempts lost, 0 begun"
        assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
        with locked(gateway, tmp_path / "hosts.sqlite3"):
            await asyncio.to_thread(gateway.service.sweep)
            now_s += 100
        for _ in range(2):
            assert await asyncio.to_thread(sweep) == "0 attempts lost, 0 begun"
            now_s += 59
        assert await asyncio.to_thread(sweep) == "1 attempt lost, 1 begun"


async def test_while_somebody_has_to_mend_the_database(
    make: Callable[..., Gateway], caplog: pytest.LogCaptureFixture
) -> None:
    """Heartbeats and results wait for that, too."""
    gateway = make(timings={"retry_s": 0.01})
    store, is_read_only = gateway.store, True

    def checked_out(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA query_only = {is_read_only:d}")

    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        job_id = (await agent.of_type("job"))["id"]
        _run_out(store)
        event.listen(store.database.engine, "checkout", checked_out)
        named = {"jobs": [{"id": job_id, "attempt": 1}]}
        assert await agent.ask(type="heartbeat", nodeId=node_id, **named) == {"type": "ack"}
        await until(lambda: "kept for later" in caplog.text)
        is_read_only = False
        await until(lambda: store.leases.open_on(node_id)[0][1].lease_until_ms > store.now_ms())
        is_read_only = True
        caplog.clear()
        await agent.send(type="job_result", id=job_id, attempt=1, status="completed", logs="")
        await until(lambda: "kept for later" in caplog.text)
        is_read_only = False
        assert (await agent.of_type("ack"))["id"] == job_id
    assert store.ledger.differences() == []


async def test_an_error_of_our_own_ends_no_heartbeats(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written for it is written the next time."""
    store, heard, errors = gateway.store, Presence.heard, [MemoryError()]

    def fail_once(presence: Presence, beats: Sequence[Beat]) -> None:
        if any(beat.job_ids for beat in beats) and errors:
            raise errors.pop()
        heard(presence, beats)

    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        job = await agent.of_type("job")
        _run_out(store)
        monkeypatch.setattr(Presence, "heard", fail_once)
        named = {"jobs": [{"id": job["id"], "attempt": 1}]}
        assert await agent.ask(type="heartbeat", nodeId=node_id, **named) == {"type": "ack"}
        await until(lambda: store.leases.open_on(node_id)[0][1].lease_until_ms > store.now_ms())
    assert errors == []


async def test_results_that_wait_are_bounded(make: Callable[..., Gateway], tmp_path: Path) -> None:
    """As long as the database is away the rest stays with the machine; all are answered in the end."""
    gateway = make(timings={"retry_s": 0.05})
    async with NewAgent(gateway.ws_url) as agent:
        await agent.register(gateway.token())
        await agent.result(await agent.of_type("job"))
        with locked(gateway, tmp_path / "hosts.sqlite3"):
            # The job's own end may still be under way, so this may be a few too many.
            others = gateway.service.hub.num_tasks
            for n in range(90):
                await agent.send(type="job_result", id=f"{n}", attempt=1, logs="x")

            async def all_wait() -> bool:
                return gateway.service.hub.num_tasks >= MAX_RESULTS

            await until(all_wait)
            assert gateway.service.hub.num_tasks <= others + MAX_RESULTS + 2
        answered = {(await agent.of_type("error"))["id"] for _ in range(90)}
    assert answered == {f"{n}" for n in range(90)}


async def test_a_gateway_that_ends_meanwhile_says_nothing_of_each_socket(
    make: Callable[..., Gateway], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not where it was when it was given up: of thousands that takes longer than all else."""
    gateway = make(timings={"retry_s": 0.05})
    async with OldAgent(gateway.ws_url) as agent:
        await agent.register(gateway.token())
        with locked(gateway, tmp_path / "hosts.sqlite3"):
            await asyncio.to_thread(gateway.end)
    assert "graceful shutdown exceeded" in caplog.text
    assert "Exception in ASGI application" not in caplog.text


@contextmanager
def busy(gateway: Gateway) -> Iterator[None]:
    """Have the store's thread at something else."""
    hub, go = gateway.service.hub, threading.Event()
    assert hub.loop is not None
    held = asyncio.run_coroutine_threadsafe(hub.db(go.wait), hub.loop)
    try:
        yield
    finally:
        go.set()
    held.result(PATIENCE_S)


async def test_who_was_sent_away_is_not_let_in_later(make: Callable[..., Gateway]) -> None:
    """Calls of sockets that have ended do not hold up those that come after them, and use up no token."""
    gateway = make(timings={"register_s": 0.3})
    token = gateway.token()
    with busy(gateway):
        async with OldAgent(gateway.ws_url) as agent:
            await agent.send(type="register", token=token, hostInfo={})
            assert await agent.close_code() == 1013
    assert gateway.nodes() == []


async def test_nodes_do_not_wait_for_all_who_come(make: Callable[..., Gateway]) -> None:
    """What the store is called for by nodes that are in stands behind a few of those who want to be."""
    gateway = make()
    hub, tokens = gateway.service.hub, [gateway.token() for _ in range(4)]
    hub.entering = asyncio.Semaphore(1)
    order: list[str] = []
    nodes = type(gateway.store.nodes)
    register = nodes.register

    def noted(*args: Any, **kwargs: Any) -> Any:
        order.append("register")
        return register(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "register", noted)
        async with contextlib.AsyncExitStack() as stack:
            agents = [await stack.enter_async_context(OldAgent(gateway.ws_url)) for _ in tokens]
            with busy(gateway):
                for agent, token in zip(agents, tokens, strict=True):
                    await agent.send(type="register", token=token, hostInfo={})
                line = b'messages_total{type="register"} 4.0'
                await until(lambda: line in hub.metrics.page(()))
                assert hub.loop is not None
                result = asyncio.run_coroutine_threadsafe(hub.db(order.append, "result"), hub.loop)
            for agent in agents:
                assert (await agent.receive())["type"] == "registered"
            result.result(PATIENCE_S)
    assert order == ["register", "result", *["register"] * 3]


async def test_while_no_message_arrives(make: Callable[..., Gateway]) -> None:
    """Sockets stay, nodes join, results are kept; what waited is placed by the next sweep."""
    gateway = make()
    gateway.messenger.is_away = True
    async with OldAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())

        async def is_queued() -> bool:
            return bool(gateway.admin("GET", "/api/jobs").json())

        await until(is_queued)
        assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
        gateway.messenger.is_away = False
        gateway.messenger.look()
        job = await agent.do_job()
        assert gateway.store.jobs.get(job["id"]).state == "completed"


async def test_a_message_that_was_lost_or_comes_twice(make: Callable[..., Gateway]) -> None:
    """An attempt that was never sent goes out when the node is back, and once a socket."""
    gateway = make()
    async with NewAgent(gateway.ws_url) as agent:
        token = gateway.store.owners.issue_token(gateway.wallet, proven=True).token
        node_id = await agent.register(token)
        await agent.result(await agent.of_type("job"))
        gateway.messenger.leave()
        job_id = gateway.submit()
        turn = gateway.store.places.place(job_id)
        assert turn is not None
        assert not isinstance(turn, str)
        # Its message is lost with the gateway's Redis.
        key = agent.key
    async with NewAgent(gateway.ws_url, key) as agent:
        assert (await agent.resume(node_id))["type"] == "registered"
        job = await agent.of_type("job")
        assert (job["id"], job["attempt"]) == (job_id, turn.n)
        gateway.messenger.is_away = False
        for _ in range(3):
            assert gateway.service.tell("job", node_id, job_id, turn.n) == "sent before"
        assert (await agent.result(job))["type"] == "ack"
        assert gateway.service.tell("job", node_id, job_id, turn.n) == "over"
        assert gateway.service.tell("job", node_id, "unknown", 1) == "unknown"
        assert gateway.service.tell("job", "unknown", job_id, 1) == "not connected"
    assert len(gateway.store.jobs.attempts(job_id)) == 1
    assert gateway.store.ledger.differences() == []


async def test_a_job_is_sent_by_whom_its_node_is_connected_to(
    make: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever places it sends it to a node of its own; of another gateway's that one is told."""
    gateway = make()
    told: list[tuple[object, ...]] = []
    async with NewAgent(gateway.ws_url) as agent:
        token = gateway.store.owners.issue_token(gateway.wallet, proven=True).token
        node_id = await agent.register(token)
        await agent.result(await agent.of_type("job"))
        gateway.messenger.leave()
        monkeypatch.setattr(gateway.messenger, "tell", lambda *about: told.append(about))
        job_id = gateway.submit()
        line = await asyncio.to_thread(gateway.service.place, job_id)
        assert line == f"attempt 1 is given to node {node_id}: sent"
        job = await agent.of_type("job")
        assert (job["id"], job["attempt"], told) == (job_id, 1, [])
        assert (await agent.result(job))["type"] == "ack"
        gateway.store.presence.connected(node_id, "there", "another socket")
        job_id = gateway.submit()
        line = await asyncio.to_thread(gateway.service.place, job_id)
        assert line == f"attempt 1 is given to node {node_id}"
        assert told == [("there", What.JOB, node_id, job_id, 1)]
    assert gateway.store.ledger.differences() == []


async def test_a_node_that_leaves_as_it_is_given_a_job(
    make: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the choice of it and the message: it gets the job when it is back, once."""
    gateway = make()
    async with NewAgent(gateway.ws_url) as agent:
        token = gateway.store.owners.issue_token(gateway.wallet, proven=True).token
        node_id = await agent.register(token)
        await agent.result(await agent.of_type("job"))
        gateway.messenger.leave()
        job_id, place = gateway.submit(), Places.place
        is_placed, is_gone = threading.Event(), threading.Event()

        def slow_place(places: Places, job_id: str) -> Attempt | str | None:
            found = place(places, job_id)
            is_placed.set()
            assert is_gone.wait(PATIENCE_S)
            return found

        monkeypatch.setattr(Places, "place", slow_place)
        placing = asyncio.create_task(asyncio.to_thread(gateway.service.place, job_id))
        assert await asyncio.to_thread(is_placed.wait, PATIENCE_S)
        key = agent.key
    await until(lambda: not gateway.service.hub.has(node_id))
    is_gone.set()
    assert await placing == f"attempt 1 is given to node {node_id}: not connected"
    async with NewAgent(gateway.ws_url, key) as agent:
        assert (await agent.resume(node_id))["type"] == "registered"
        job = await agent.of_type("job")
        assert (job["id"], job["attempt"]) == (job_id, 1)
        assert (await agent.result(job))["type"] == "ack"
    assert len(gateway.store.jobs.attempts(job_id)) == 1
    assert gateway.store.ledger.differences() == []


async def test_a_gateway_begins_anew(make: Callable[..., Gateway]) -> None:
    """In the middle of a job: the agent comes back with its key, and the result counts once."""
    first = make()
    async with NewAgent(first.ws_url) as agent:
        node_id = await agent.register(first.token())
        job = await agent.of_type("job")
        first.end()
        assert await agent.close_code() == 1012
        key = agent.key
    second = make()
    async with NewAgent(second.ws_url, key) as agent:
        has = [{"id": job["id"], "attempt": job["attempt"]}]
        assert (await agent.resume(node_id, jobs=has))["type"] == "registered"
        for _ in range(2):
            assert (await agent.result(job))["type"] == "ack"
    [attempt] = second.store.jobs.attempts(job["id"])
    assert str(attempt.outcome) == "completed"
    assert second.store.ledger.differences() == []
