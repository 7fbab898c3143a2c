"""Machines that poll: the same tokens, leases, ledger and limits as with a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from pocqueue.hosts.leases import JobState
from pocqueue.hosts.store.bans import end_leases
from pocqueue.hosts.tables import node
from tests.hosts.agents import NewAgent, OldAgent
from tests.hosts.gateway.conftest import Gateway
from tests.hosts.parts import new_wallet
from tests.hosts.polling_client import PollingClient
from tests.support.waiting import wait_until

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


Client = Callable[..., PollingClient]


@pytest.fixture
def client() -> Iterator[Client]:
    """Return a function that makes a machine, with a token of its own or a given one."""
    made: list[PollingClient] = []

    def make_one(
        gateway: Gateway, token: str | None = None, *, proven: bool = False, **more: Any
    ) -> PollingClient:
        if proven:
            token = gateway.store.owners.issue_token(gateway.wallet, proven=True).token
        made.append(PollingClient(gateway.url, gateway.wallet, token or gateway.token(), **more))
        return made[-1]

    yield make_one
    for one in made:
        one.http.close()


def error(reply: httpx.Response, status: int) -> str:
    """Return the sentence of a refusal."""
    assert reply.status_code == status, reply.text
    return str(reply.json()["error"])


def test_a_machine_without_a_socket(gateway: Gateway, client: Client) -> None:
    """Joins with its token, is online, does its test job, is paid by the gateway's clock, and is the same after a restart."""
    machine = client(gateway)
    node_id = machine.join()
    [node] = gateway.nodes()
    assert (node["id"], node["gpu"]) == (node_id, "NVIDIA GeForce RTX 4090")
    assert node["status"] in {"online", "busy"}
    assert machine.beat().status_code == 200
    job = machine.next_job()
    assert (job["jobType"], job["command"], job["argv"]) == ("test", "sleep 0", ["sleep", "0"])
    assert gateway.nodes()[0]["status"] == "busy"
    assert gateway.jobs()[0]["status"] == "running"
    [turn] = gateway.store.jobs.attempts(job["jobId"])
    with gateway.store.database.write() as connection:
        end_leases(connection, node_id, turn.lease_until_ms - 1)
    assert machine.beat().status_code == 200
    wait_until(
        lambda: gateway.store.jobs.attempts(job["jobId"]) == [turn],
        message="the lease to be renewed",
    )
    # Its answer was lost, or the machine has started again.
    assert machine.join() == node_id
    assert machine.poll() == job
    for _ in range(2):  # the second one changes nothing
        assert machine.result(job["jobId"]).json() == {"success": True}
    assert machine.poll() is None
    [done] = gateway.jobs()
    assert (done["id"], done["status"], done["nodeId"]) == (job["jobId"], "completed", node_id)
    # However long it took: a test job pays for the seconds that it asks for, here none.
    assert gateway.nodes()[0]["earned"] == 0
    log = gateway.store.jobs.log(job["jobId"]).text
    assert log == '{"result": "Generic job completed", "exit_code": 0}'
    assert len(gateway.nodes()) == 1
    assert gateway.store.ledger.differences() == []


def test_jobs_of_the_list_are_for_those_who_say_that_they_can(
    gateway: Gateway, client: Client
) -> None:
    """Known by their owner, as with a socket; what fails is a failure."""
    cannot, can = (
        client(gateway, proven=True, capabilities=kinds) for kinds in (("inference",), ("command",))
    )
    for machine in (cannot, can):
        machine.join()
        machine.result(machine.next_job()["jobId"])
    jobs = [gateway.submit(max_attempts=1) for _ in range(2)]
    first = can.next_job()
    assert first["jobId"] in jobs
    assert cannot.poll() is None
    assert can.poll() == first  # one at a time
    assert can.failure(first["jobId"], "no GPU\0 left").json() == {"success": True}
    second = can.next_job()
    assert {first["jobId"], second["jobId"]} == set(jobs)
    assert can.result(second["jobId"], {"exit_code": 3, "out": "x"}).status_code == 200
    for job, text in ((first, "no GPU\ufffd left"), (second, '{"exit_code": 3, "out": "x"}')):
        [attempt] = gateway.store.jobs.attempts(job["jobId"])
        assert (str(attempt.outcome), attempt.micro) == ("failed", 0)
        assert gateway.store.jobs.log(job["jobId"]).text == text
    assert gateway.store.ledger.differences() == []


def test_who_is_not_the_node(gateway: Gateway, client: Client) -> None:
    """Has no job, brings no result and is told nothing: made-up tokens, other nodes, other wallets, the revoked."""
    machine, other = client(gateway), client(gateway)
    node_id = machine.join()
    other.join()
    job_id = machine.next_job()["jobId"]
    assert error(other.result(job_id), 404) == "Job not found"
    assert error(other.failure(job_id, "mine"), 404) == "Job not found"
    assert error(machine.result("x"), 404) == "Job not found"
    stranger = client(gateway, "6d3f5c4b-0b29-4ac1-a1e8-4e02f39c1e9f")
    for ask in (stranger.register, stranger.beat, lambda: stranger.result(job_id)):
        assert error(ask(), 401) == "Invalid token"
    for path in ("/api/nodes/register", "/api/nodes/heartbeat", f"/api/jobs/{job_id}/failure"):
        assert "Authorization: Bearer TOKEN" in error(gateway.http.post(path, json={}), 401)
    assert "Authorization: Bearer TOKEN" in error(gateway.http.get("/api/jobs/available"), 401)
    thief = client(gateway)
    thief.wallet = new_wallet()
    assert "walletAddress is not that" in error(thief.register(), 400)
    # The token is not used up by that.
    thief.wallet = gateway.wallet
    thief.join()
    assert machine.result(job_id).status_code == 200
    assert gateway.admin("POST", f"/api/nodes/{node_id}/revoke").json() == {"ok": True}
    assert error(machine.beat(), 401) == "Invalid token"
    assert error(machine.register(), 401) == "Token already used"
    assert gateway.store.ledger.differences() == []


@on_sqlite
async def test_a_token_is_for_a_socket_or_for_polling(gateway: Gateway, client: Client) -> None:
    """Whoever used it first is its machine, in that way."""
    token, key_token = gateway.token(), gateway.token()
    async with OldAgent(gateway.ws_url) as old, NewAgent(gateway.ws_url) as new:
        await old.register(token)
        await new.register(key_token)
        for one in (token, key_token):
            machine = client(gateway, one)
            assert error(machine.register(), 401) == "Token already used"
            assert error(machine.beat(), 401) == "Token already used"
    machine = client(gateway, polled := gateway.token())
    machine.join()
    async with OldAgent(gateway.ws_url) as old:
        reply = await old.ask(type="register", token=polled, hostInfo={})
        assert reply["message"] == "Token already used"


def test_a_gateway_begins_anew_under_it(make: Callable[..., Gateway], client: Client) -> None:
    """In the middle of a job: the machine notices nothing, and the job counts once."""
    first = make()
    machine = client(first)
    node_id = machine.join()
    job = machine.next_job()
    first.end()
    second = make()
    machine.http.base_url = httpx.URL(second.url)
    # Not sent away for having no connection: it polls.
    second.service.sweep()
    assert machine.poll() == job
    assert second.store.nodes.get(node_id).relay == "here"
    assert machine.result(job["jobId"]).status_code == 200
    [attempt] = second.store.jobs.attempts(job["jobId"])
    assert str(attempt.outcome) == "completed"
    assert second.store.ledger.differences() == []


@on_sqlite
def test_one_that_is_silent_gets_nothing(gateway: Gateway, client: Client) -> None:
    """Offline after a while, and online with its next question; a job that is for it alone waits."""
    machine = client(gateway)
    node_id = machine.join()
    machine.result(machine.next_job()["jobId"])
    asked_ms = gateway.store.now_ms()
    machine.beat()
    wait_until(
        lambda: gateway.store.nodes.get(node_id).last_ms >= asked_ms, message="it to be heard"
    )
    with gateway.store.database.write() as connection:
        connection.execute(update(node).values(last_ms=0))
    assert gateway.nodes()[0]["status"] == "offline"
    job_id = gateway.submit(kind="test", only_node=node_id)
    wait_until(lambda: gateway.store.jobs.get(job_id).reason, message="the job to wait")
    gateway.service.sweep()
    assert gateway.store.jobs.get(job_id).state is JobState.QUEUED

    def is_given() -> bool:
        job = machine.poll()
        gateway.messenger.look()
        return job is not None and job["jobId"] == job_id

    wait_until(is_given, message="the job")
    assert machine.result(job_id).status_code == 200


@on_sqlite
@pytest.mark.usefixtures("still_limits")
def test_who_polls_is_counted_before_the_database_is_asked(
    make: Callable[..., Gateway], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By address; so is each new node, whose token is not used up by a refusal, and a node before it is written."""
    gateway = make(limits_factor=0.05)  # 1 new node, 5 polls of a node, 100 of an address
    hub, asked = gateway.service.hub, list[str]()
    plain_db = hub.db

    async def db(call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        asked.append(call.__name__)
        return await plain_db(call, *args, **kwargs)

    monkeypatch.setattr(hub, "db", db)
    first, second = (client(gateway, proven=True) for _ in range(2))
    first.join()
    assert "20 connects in 60 seconds" in error(second.register(), 429)
    assert asked.count("register") == 1
    assert len(gateway.store.tokens.open(gateway.wallet)) == 1
    assert [first.register().status_code for _ in range(6)] == [200] * 5 + [429]
    assert (asked.count("register"), asked.count("update")) == (1, 5)
    error(client(gateway, "a-made-up-one").register(), 401)
    assert asked.count("register") == 1
    while "2,000 polls" not in error(first.beat(), 429):
        pass
    asked.clear()
    for reply in (first.beat(), first.register(), first.failure("x", "")):
        error(reply, 429)
    assert not {"of_token", "known_token"} & set(asked)


@on_sqlite
@pytest.mark.usefixtures("still_limits")
def test_each_has_its_own_limit(make: Callable[..., Gateway], client: Client) -> None:
    """Those who have shown their token are counted by node, all others by address."""
    gateway = make(limits_factor=1.0)
    loud, quiet = client(gateway), client(gateway)
    loud.join()
    quiet.join()
    assert {loud.beat().status_code for _ in range(130)} == {200, 429}
    assert quiet.beat().status_code == 200
    assert gateway.http.get("/api/session").status_code == 200
    wrong = client(gateway, "no", number=2)
    assert {wrong.beat().status_code for _ in range(30)} == {401, 429}
    assert quiet.beat().status_code == 200
