"""The agents' socket, with agents of both protocols over real sockets: how they come in, work, leave and come back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

import pytest
from sqlalchemy import update
from typing_extensions import override
from websockets.exceptions import ConnectionClosed

from pocqueue import __version__
from pocqueue.hosts.gateway.socket.agent_socket import AgentSocket
from pocqueue.hosts.reputation import HOUR_MS
from pocqueue.hosts.store.bans import end_leases
from pocqueue.hosts.tables import attempt, node
from pocqueue.hosts.wire import CloseCode, rotation_text, signed_text
from pocqueue.web.websocket import LiveSocket
from tests.hosts.agents import Agent, NewAgent, OldAgent
from tests.hosts.gateway.conftest import Gateway
from tests.support.node_key import NodeKey
from tests.support.waiting import until, wait_until

#: What asks nothing new of the database; the other tests run on both.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_walk_through_of_an_older_agent(gateway: Gateway) -> None:
    """A token, Online at once, a test job by itself, its pay on the page."""
    token = gateway.token()
    async with OldAgent(gateway.ws_url) as agent:
        node_id = await agent.register(token)
        [node] = gateway.nodes()
        assert node["id"] == node_id
        assert (node["hostname"], node["gpu"]) == ("gpu-rig-01", "NVIDIA RTX 4090")
        assert node["status"] in {"online", "busy"}
        assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
        job = await agent.do_job()
        assert set(job) == {"type", "id", "command"}
        [done] = gateway.jobs()
        assert (done["id"], done["nodeId"], done["type"]) == (job["id"], node_id, "test")
        assert done["status"] == "completed"
        [node] = gateway.nodes()
        # However long it took: a test job pays for the seconds that it asks for, here none.
        assert node["earned"] == 0
    await until(lambda: gateway.nodes()[0]["status"] == "offline")


@on_sqlite
async def test_what_older_agents_are_told_of_their_mistakes(gateway: Gateway) -> None:
    """The seven texts; the socket stays."""
    token = gateway.token()
    async with OldAgent(gateway.ws_url) as first, OldAgent(f"{gateway.ws_url}/ws") as second:

        async def error(**message: object) -> str:
            reply = await first.ask(**message)
            assert set(reply) == {"type", "message"}
            assert reply["type"] == "error"
            return str(reply["message"])

        assert await error(type="register") == "Token is required"
        assert await error(type="register", token="") == "Token is required"
        assert await error(type="register", token="no") == "Invalid token"
        await second.register(token)
        assert await error(type="register", token=token) == "Token already used"
        assert await error(type="heartbeat", nodeId="x") == "Invalid node ID"
        assert await error(type="job_result", id="x", status="completed") == "Job not found"
        assert await error(type="what") == "Unknown message type"
        await first.ws.send("{")
        assert (await first.receive())["message"] == "Invalid message format"
        await first.ws.send(b"\xff\x00")
        assert (await first.receive())["message"] == "Invalid message format"
        await first.register(gateway.token())


async def test_a_node_comes_back_with_its_key(gateway: Gateway) -> None:
    """As the same node, as often as it likes; what it has is agreed on."""
    token = gateway.token()
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(token)
        job = await agent.of_type("job")
        assert (job["kind"], job["attempt"], job["argv"]) == ("test", 1, ["sleep", "0"])
        assert job["limits"]["seconds"] == 60
        key = agent.key
    # It has lost the job: it gets it again, and once.
    async with NewAgent(gateway.ws_url, key) as agent:
        assert (await agent.resume(node_id))["nodeId"] == node_id
        again = await agent.of_type("job")
        assert (again["id"], again["attempt"]) == (job["id"], 1)
    # It has it: it does not get it again. What it has and should not have is ended.
    async with NewAgent(gateway.ws_url, key) as agent:
        has = [{"id": job["id"], "attempt": 1}, {"id": job["id"], "attempt": 7}]
        assert (await agent.resume(node_id, jobs=has))["type"] == "registered"
        cancel = await agent.receive()
        assert cancel == {"type": "job_cancel", "id": job["id"], "attempt": 7}
        ack = await agent.result(job)
        assert ack == {
            "type": "ack",
            "message": "Job result received",
            "id": job["id"],
            "attempt": 1,
        }
        # Its ack may have been lost.
        assert await agent.result(job) == ack
    [done] = gateway.jobs()
    assert done["status"] == "completed"
    assert gateway.store.ledger.differences() == []
    # A used token with the key of its node is as good as a resume: the answer may have been lost.
    # What the machine says of itself now is written then.
    cards = [
        {"uuid": f"GPU-{index}", "name": "RTX 4090", "vramMib": 24564, "index": index}
        for index in range(2)
    ]
    async with NewAgent(gateway.ws_url, key) as agent:
        host = {"hostname": "renamed", "gpus": cards}
        assert await agent.register(token, hostInfo=host) == node_id
        node = gateway.store.nodes.get(node_id)
        assert (node.hostname, [gpu.uuid for gpu in node.gpus]) == ("renamed", ["GPU-0", "GPU-1"])
    async with NewAgent(gateway.ws_url) as stranger:
        nonce = await stranger.challenge()
        reply = await stranger.ask(type="register", token=token, **stranger.introduction("", nonce))
        assert reply["message"] == "Token already used"
        assert await stranger.close_code() == 4401


async def test_what_was_overheard_is_worth_nothing(gateway: Gateway) -> None:
    """All that a machine has ever said, said again by somebody else, in order and each by itself, changes nothing."""
    heard: list[dict[str, Any]] = []

    class Overheard(NewAgent):
        @override
        async def send(self, **message: Any) -> None:
            heard.append(message)
            await super().send(**message)

    node_id, key = "", NodeKey.generate()
    for life in range(2):
        async with Overheard(gateway.ws_url, key) as agent:
            if life == 0:
                node_id = await agent.register(gateway.token())
                job = await agent.of_type("job")
                await agent.begin(job)
                await agent.result(job)
            else:
                assert (await agent.resume(node_id))["type"] == "registered"
            assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
            await agent.send(type="draining")
        await until(lambda: gateway.nodes()[0]["status"] == "offline")

    def known() -> list[Any]:
        store = gateway.store
        return [
            *(store.nodes.of_wallet(gateway.wallet), gateway.jobs()),
            *(store.overview.earnings(gateway.wallet), store.jobs.log(job["id"])),
        ]

    before = known()
    assert {"hello", "register", "resume", "job_started", "job_result", "draining"} <= {
        message["type"] for message in heard
    }
    for messages in (heard, *([one] for one in heard)):
        async with Agent(gateway.ws_url) as thief:
            said = set()
            with contextlib.suppress(ConnectionClosed):
                for message in messages:
                    await thief.send(**message)
                await thief.send(type="the end")
                while (reply := await thief.receive()).get("message") != "Unknown message type":
                    said.add(reply["type"])
            assert said <= {"challenge", "error"}, messages
    assert known() == before


async def test_one_of_twenty_sockets_gets_the_token(gateway: Gateway) -> None:
    """At the same time, whichever protocol they speak."""
    token = gateway.token()

    async def race() -> str:
        async with OldAgent(gateway.ws_url) as agent:
            await barrier.wait()
            reply = await agent.ask(type="register", token=token, hostInfo={})
            return str(reply.get("message"))

    barrier = asyncio.Barrier(20)
    replies = await asyncio.gather(*(race() for _ in range(20)))
    assert sorted(replies) == ["Successfully registered", *["Token already used"] * 19]
    assert len(gateway.nodes()) == 1


async def _proven(gateway: Gateway, agent: NewAgent) -> str:
    """Let an agent in as a node that gets paid jobs, with its test job done."""
    token = gateway.store.owners.issue_token(gateway.wallet, proven=True).token
    node_id = await agent.register(token)
    await agent.result(await agent.of_type("job"))
    return node_id


async def test_jobs_go_to_their_node_alone(gateway: Gateway) -> None:
    """What others report of it is not found: before it is theirs, made up, or late."""
    async with NewAgent(gateway.ws_url) as one, NewAgent(gateway.ws_url) as other:
        first, second = await _proven(gateway, one), await _proven(gateway, other)
        job_id = gateway.submit(only_node=first)
        job = await one.of_type("job")
        assert (job["id"], job["kind"], job["gpus"]) == (job_id, "command", [])
        for message in (
            {"id": job_id, "status": "completed"},
            {"id": job_id, "status": "completed", "attempt": 1},
            {"id": "x" * 50, "status": "completed"},
        ):
            reply = await other.ask(type="job_result", **message)
            assert (reply["type"], reply["message"]) == ("error", "Job not found")
        await other.send(type="job_log", id=job_id, attempt=1, text="not mine")
        reply = await other.ask(type="job_refused", id=job_id, attempt=1, reason="no")
        assert reply["message"] == "Job not found"
        # A duration that is made up is not paid: the server has its own.
        assert (await one.result(job, seconds=1e9))["type"] == "ack"
        assert (await one.result(job, status="failed"))["type"] == "ack"  # a replay changes nothing
        done = gateway.store.jobs.attempts(job_id)[0]
        assert (done.node_id, str(done.outcome)) == (first, "completed")
        assert done.micro <= 10_000 * 120
        assert gateway.store.jobs.log(job_id).text == "done\n"
    assert second != first
    assert gateway.store.ledger.differences() == []


async def test_a_late_result_is_kept_and_not_paid(gateway: Gateway) -> None:
    """The job has another node by then, which is paid; both are acknowledged."""
    async with NewAgent(gateway.ws_url) as slow, NewAgent(gateway.ws_url) as quick:
        first, second = await _proven(gateway, slow), await _proven(gateway, quick)
        gateway.store.nodes.set_state(second, "draining", actor="admin")
        job_id = gateway.submit()
        job = await slow.of_type("job")
        gateway.store.nodes.set_state(second, "active", actor="admin")
        gateway.store.nodes.set_state(first, "draining", actor="admin")
        # Its lease runs out: it is told to stop, and the other one gets the job.
        with gateway.store.database.write() as connection:
            end_leases(connection, first, gateway.store.now_ms())
        gateway.messenger.look()
        again = await quick.of_type("job")
        assert (again["id"], again["attempt"]) == (job_id, 2)
        assert await slow.of_type("job_cancel") == {
            "type": "job_cancel",
            "id": job_id,
            "attempt": 1,
        }
        assert (await quick.result(again))["type"] == "ack"
        assert (await slow.result(job))["type"] == "ack"
        attempts = gateway.store.jobs.attempts(job_id)
        assert [str(one.outcome) for one in attempts] == ["node_lost", "completed"]
        assert attempts[0].micro == 0
    assert gateway.store.ledger.differences() == []


async def test_the_jobs_of_a_lost_node_go_to_another(make: Callable[..., Gateway]) -> None:
    """Once it counts as offline, not when its lease would have run out."""
    gateway = make(offline_seconds=600)
    store = gateway.store
    async with NewAgent(gateway.ws_url) as one, NewAgent(gateway.ws_url) as other:
        nodes = {await _proven(gateway, agent): agent for agent in (one, other)}
        job_id = gateway.submit()
        [turn] = await asyncio.to_thread(
            wait_until, lambda: store.jobs.attempts(job_id), message="a node for the job"
        )
        first = nodes.pop(turn.node_id)
        await first.of_type("job")
        with store.database.write() as connection:
            connection.execute(update(attempt).values(lease_until_ms=store.now_ms() + HOUR_MS))
        await first.ws.close()
        await until(lambda: store.nodes.get(turn.node_id).relay is None)
        [turn] = store.jobs.attempts(job_id)
        assert turn.lease_until_ms <= store.now_ms() + store.offline_ms
        with store.database.write() as connection:
            end_leases(connection, turn.node_id, store.now_ms())
        gateway.messenger.look()
        [second] = nodes.values()
        await second.result(await second.of_type("job"))
    lost, done = store.jobs.attempts(job_id)
    assert (str(lost.outcome), str(done.outcome)) == ("node_lost", "completed")
    assert store.ledger.differences() == []


async def test_a_job_runs_once_its_node_says_so(gateway: Gateway) -> None:
    """Until then it is pending; who says so of another's is not heard, of what is over is told to stop."""
    async with NewAgent(gateway.ws_url) as agent, NewAgent(gateway.ws_url) as other:
        node_id = await _proven(gateway, agent)
        await _proven(gateway, other)
        job_id = gateway.submit(only_node=node_id)
        job = await agent.of_type("job")
        assert str(gateway.store.jobs.get(job_id).state) == "leased"
        await other.begin(job)
        assert (await other.of_type("error"))["message"] == "Job not found"
        assert gateway.http.get(f"/api/jobs/{job_id}").json()["status"] == "pending"
        [sent] = gateway.store.jobs.attempts(job_id)
        for _ in range(2):  # as after a reconnect
            await agent.begin(job)
        await until(lambda: str(gateway.store.jobs.get(job_id).state) == "running")
        assert gateway.http.get(f"/api/jobs/{job_id}").json()["status"] == "running"
        [begun] = gateway.store.jobs.attempts(job_id)
        assert begun.sent_ms is not None
        assert sent.sent_ms is not None
        assert begun.sent_ms >= sent.sent_ms
        await agent.result(job)
        await agent.begin(job)
        cancel = await agent.of_type("job_cancel")
        assert cancel == {"type": "job_cancel", "id": job_id, "attempt": 1}
    assert gateway.store.ledger.differences() == []


@on_sqlite
async def test_older_agents_are_told_of_a_newer_one(gateway: Gateway) -> None:
    """Those of protocol 2 that are pocqueue's, once a connection; nobody is kept out for it."""
    for version, is_older in (("0.0.9", True), (__version__, False), ("99", False), ("x", False)):
        async with NewAgent(gateway.ws_url) as agent:
            node_id = await agent.register(gateway.token(), agentVersion=version)
            reply = await agent.ask(type="heartbeat", nodeId=node_id)
            if is_older:
                assert (reply["type"], reply["version"]) == ("upgrade", __version__)
                assert "0.0.9" in reply["message"]
                reply = await agent.receive()
            assert reply["type"] in {"ack", "job"}


async def test_a_refused_job_goes_to_another_node(gateway: Gateway) -> None:
    """With what the node said about it."""
    async with NewAgent(gateway.ws_url) as one, NewAgent(gateway.ws_url) as other:
        nodes = {await _proven(gateway, agent): agent for agent in (one, other)}
        job_id = gateway.submit()
        [turn] = await asyncio.to_thread(
            wait_until, lambda: gateway.store.jobs.attempts(job_id), message="a node for the job"
        )
        first = nodes.pop(turn.node_id)
        job = await first.of_type("job")
        for _ in range(2):  # it counts once
            await first.send(
                type="job_refused", id=job_id, attempt=job["attempt"], reason="no\nimage"
            )
        [second] = nodes.values()
        again = await second.of_type("job")
        assert (again["id"], again["attempt"]) == (job_id, 2)
        await second.result(again)
    turns = gateway.store.jobs.attempts(job_id)
    assert [str(one.outcome) for one in turns] == ["refused", "completed"]
    assert gateway.store.jobs.log(job_id, 1).text == "no image"
    page = gateway.admin("GET", "/metrics").text
    assert 'pocqueue_hosts_job_attempts_total{kind="command",outcome="refused"} 1.0' in page
    assert 'pocqueue_hosts_jobs_requeued_total{reason="refused"} 1.0' in page


async def test_heartbeats_renew_leases(gateway: Gateway) -> None:
    """Of the jobs that they name; loads are kept, and a clock that is off by a day changes nothing."""
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await _proven(gateway, agent)
        job_id = gateway.submit()
        job = await agent.of_type("job")
        [turn] = gateway.store.jobs.attempts(job_id)
        beat = {
            "nodeId": node_id,
            "jobs": [{"id": job_id, "attempt": job["attempt"]}, {"id": "nobody's", "attempt": 1}],
            "gpus": [{"uuid": "GPU-1", "load": 50.0}, {"uuid": "GPU-9", "load": 50.0}],
            "clockMs": turn.leased_ms - 86_400_000,
        }

        async def is_renewed() -> bool:
            assert await agent.ask(type="heartbeat", **beat) == {"type": "ack"}
            await asyncio.sleep(0.05)  # not more than a machine may send
            [now] = gateway.store.jobs.attempts(job_id)
            is_longer = now.lease_until_ms > turn.lease_until_ms
            return is_longer and bool(gateway.store.health.loads([node_id]))

        await until(is_renewed)
        assert list(gateway.store.health.loads([node_id])) == [(node_id, "GPU-1")]
        assert gateway.nodes()[0]["status"] == "busy"
        reply = await agent.ask(type="heartbeat", nodeId="another")
        assert reply["message"] == "Invalid node ID"


async def test_keys_are_checked(gateway: Gateway) -> None:
    """Each challenge is good for one answer, on its socket, by this name; a wrong one ends the socket."""
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        key = agent.key

    async def refused(node: str, nonce: str | None = None, **more: object) -> str:
        async with NewAgent(gateway.ws_url, key) as agent:
            asked = await agent.challenge() if nonce is None else nonce
            message = agent.introduction(node, asked) | more
            reply = await agent.ask(type="resume", nodeId=node, **message)
            assert reply["type"] == "error", reply
            # A socket on which nobody said hello stays, as one of protocol 1 does.
            if nonce is None:
                assert await agent.close_code() == 4401
            return str(reply["message"])

    assert await refused("unknown") == "Invalid node ID"
    assert await refused(node_id, nonce="") == "Invalid signature"
    assert await refused(node_id, signature="00" * 64) == "Invalid signature"
    assert await refused(node_id, signature="") == "Invalid signature"
    elsewhere = key.sign(signed_text("hosts.example.com", node_id, "0" * 32))
    assert await refused(node_id, signature=elsewhere) == "Invalid signature"
    async with NewAgent(gateway.ws_url, key) as first, NewAgent(gateway.ws_url, key) as second:
        # A challenge of another socket, and one that was answered already.
        message = second.introduction(node_id, await first.challenge())
        await second.challenge()
        reply = await second.ask(type="resume", nodeId=node_id, **message)
        assert reply["message"] == "Invalid signature"
        assert await second.close_code() == 4401
    # A key of small order, for which anybody could sign.
    async with NewAgent(gateway.ws_url) as agent:
        message = agent.introduction("", await agent.challenge())
        message |= {"nodeKey": "01" + "00" * 31, "signature": "01" + "00" * 63}
        reply = await agent.ask(type="register", token=gateway.token(), **message)
        assert reply["message"] == "Invalid signature"
    # An agent of protocol 1 has no key, so that nobody can be it.
    async with OldAgent(gateway.ws_url) as old:
        old_id = await old.register(gateway.token())
    assert await refused(old_id) == "Invalid node ID"


async def test_a_node_takes_another_key(gateway: Gateway) -> None:
    """One whose secret it has; from then on the old one is of no use."""
    async with NewAgent(gateway.ws_url) as agent, OldAgent(gateway.ws_url) as old_agent:
        await agent.register(gateway.token())
        await old_agent.register(gateway.token())
        old, new, other = agent.key, NodeKey.generate(), NodeKey.generate()
        text = rotation_text("127.0.0.1", agent.node_id, new.public_hex)
        for wrong in (
            {"signature": old.sign(text)},
            {"signature": new.sign(signed_text("127.0.0.1", agent.node_id, new.public_hex))},
            {"signature": new.sign(text.replace(b"127.0.0.1", b"elsewhere"))},
            {"nodeKey": other.public_hex, "signature": new.sign(text)},
            {"nodeKey": "01" + "00" * 31, "signature": "01" + "00" * 63},
            {"nodeKey": "", "signature": ""},
        ):
            assert (await agent.rotate(new, **wrong))["message"] == "Invalid signature"
        assert agent.key == old
        await old_agent.send(type="new_key", nodeKey=new.public_hex, signature=new.sign(text))
        said = await old_agent.find(lambda reply: reply["type"] == "error")
        assert said["message"] == "Invalid message format"
        for _ in range(2):  # the first answer may be lost
            assert await agent.rotate(new) == {"type": "key", "nodeKey": new.public_hex}
        newest = NodeKey.generate()
        assert (await agent.rotate(newest))["type"] == "key"
        node_id = agent.node_id
    for key in (old, new):
        async with NewAgent(gateway.ws_url, key) as thief:
            assert (await thief.resume(node_id))["message"] == "Invalid signature"
            assert await thief.close_code() == 4401
    async with NewAgent(gateway.ws_url, newest) as agent:
        reply = await agent.resume(node_id)
        assert (reply["nodeId"], reply["nodeKey"]) == (node_id, newest.public_hex)


async def test_whatever_ends_while_a_key_changes(gateway: Gateway) -> None:
    """An agent that does not know which of its two keys counts signs with both, and is told."""
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        old, new = agent.key, NodeKey.generate()

    async def resume(key: NodeKey, following: NodeKey) -> dict[str, object]:
        async with NewAgent(gateway.ws_url, key) as agent:
            nonce = await agent.challenge()
            message = agent.introduction(node_id, nonce)
            text = signed_text("127.0.0.1", node_id, nonce)
            message["nextSignature"] = following.sign(text)
            return await agent.ask(type="resume", nodeId=node_id, **message)

    assert (await resume(old, new))["nodeKey"] == old.public_hex
    gateway.store.nodes.set_key(node_id, new.public_hex, old=old.public_hex)
    assert (await resume(old, new))["nodeKey"] == new.public_hex
    assert (await resume(old, NodeKey.generate()))["message"] == "Invalid signature"


@on_sqlite
async def test_a_key_that_changes_once_it_was_checked(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lets nobody in any more; its machine is not told that it is banned, and comes again with the new one."""
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
    hub, nodes = gateway.service.hub, gateway.store.nodes
    new, plain_db = NodeKey.generate(), hub.db

    async def db(call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if call.__name__ == "resume":
            await plain_db(nodes.set_key, node_id, new.public_hex, old=agent.key.public_hex)
        return await plain_db(call, *args, **kwargs)

    monkeypatch.setattr(hub, "db", db)
    async with NewAgent(gateway.ws_url, agent.key) as again:
        assert "try again" in (await again.resume(node_id))["message"]
        assert await again.close_code() == 1013
    monkeypatch.undo()
    async with NewAgent(gateway.ws_url, new) as again:
        assert (await again.resume(node_id))["nodeKey"] == new.public_hex


async def test_an_owner_wants_another_key(gateway: Gateway) -> None:
    """His node is asked for it, if it is there and has one."""
    async with NewAgent(gateway.ws_url) as agent, OldAgent(gateway.ws_url) as old:
        node_id = await agent.register(gateway.token())
        old_id = await old.register(gateway.token())
        path = "/api/nodes/{}/rotate-key"
        assert gateway.http.post(path.format(node_id)).status_code == 401
        assert gateway.admin("POST", path.format("nobody")).status_code == 404
        reply = gateway.admin("POST", path.format(old_id))
        assert (reply.status_code, "has no key" in reply.json()["error"]) == (409, True)
        assert gateway.admin("POST", path.format(node_id)).json() == {"ok": True}
        assert await agent.of_type("rotate_key") == {"type": "rotate_key"}
    await until(lambda: gateway.store.nodes.get(node_id).relay is None)
    reply = gateway.admin("POST", path.format(node_id))
    assert (reply.status_code, "not connected" in reply.json()["error"]) == (409, True)


@on_sqlite
async def test_a_gateway_has_a_name(make: Callable[..., Gateway]) -> None:
    """Where its public URL is set, a signature for another name is refused, whatever `Host` says."""
    gateway = make(public_url="https://hosts.example.com")
    async with NewAgent(gateway.ws_url) as agent:  # 127.0.0.1 is the machine itself
        node_id = await agent.register(gateway.token())
        key = agent.key
    async with NewAgent(gateway.ws_url, key, name="evil.example.com") as agent:
        assert (await agent.resume(node_id))["message"] == "Invalid signature"
    async with NewAgent(gateway.ws_url, key, name="Hosts.Example.com") as agent:
        assert (await agent.resume(node_id))["type"] == "registered"


async def test_two_sockets_of_one_node(gateway: Gateway) -> None:
    """The older one stays as long as its machine answers; then the newer one is the node."""
    hub = gateway.service.hub
    async with NewAgent(gateway.ws_url) as older, NewAgent(gateway.ws_url) as newer:
        node_id = await older.register(gateway.token())
        newer.key = older.key
        reply = await newer.resume(node_id)
        assert reply["message"] == "Node is connected from elsewhere"
        assert await newer.close_code() == 4409
        assert await older.ask(type="heartbeat", nodeId=node_id)
        # Its machine answers no ping any more.
        hub.timings = replace(hub.timings, ping_s=0.2)
        older.ws.transport.pause_reading()
        async with NewAgent(gateway.ws_url, older.key) as again:
            assert (await again.resume(node_id))["type"] == "registered"
            older.ws.transport.resume_reading()
            assert (await older.of_type("replaced")) == {"type": "replaced"}
            assert await older.close_code() == 4409
            # The end of the older one changes nothing.
            assert gateway.nodes()[0]["status"] in {"online", "busy"}
            assert await again.ask(type="heartbeat", nodeId=node_id)
    assert len(gateway.nodes()) == 1


@on_sqlite
async def test_two_sockets_at_two_gateways(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has the node tells the other, which closes that socket and no newer one."""
    told = list[tuple[object, ...]]()
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        ours = str(gateway.store.nodes.get(node_id).socket)
        for socket in ("a-socket-before", ours):
            await asyncio.to_thread(gateway.service.tell, "replaced", node_id, socket)
            if socket != ours:
                assert (await agent.ask(type="heartbeat", nodeId=node_id))["type"] != "replaced"
        assert await agent.close_code() == 4409
    gateway.store.presence.connected(node_id, "elsewhere", "theirs")
    with gateway.store.database.write() as connection:
        connection.execute(update(node).where(node.c.id == node_id).values(last_ms=0))
    monkeypatch.setattr(gateway.messenger, "tell", lambda *what: told.append(what))
    async with NewAgent(gateway.ws_url, agent.key) as again:
        assert (await again.resume(node_id))["type"] == "registered"
    assert ("elsewhere", "replaced", node_id, "theirs") in told


@on_sqlite
async def test_who_sends_too_fast_is_cut_off(gateway: Gateway) -> None:
    """A hundred messages at once are fine, a thousand are not."""
    async with OldAgent(gateway.ws_url) as agent:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(1000):
                await agent.ws.send('{"type": "heartbeat"}')
        said = await agent.find(lambda reply: reply["message"] != "Invalid node ID")
        assert said["message"] == "Too many messages"
        assert await agent.close_code() == 4429


@on_sqlite
async def test_a_node_whose_heart_beats_too_fast_is_cut_off(gateway: Gateway) -> None:
    """By the same measure, though heartbeats are taken as they come; each one that is answered is counted."""
    async with OldAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        with contextlib.suppress(ConnectionClosed):
            for _ in range(1000):
                await agent.send(type="heartbeat", nodeId=node_id)
        num_acks = 0

        def is_no_ack(reply: dict[str, Any]) -> bool:
            nonlocal num_acks
            num_acks += reply["type"] == "ack"
            return reply["type"] not in {"ack", "job"}

        assert (await agent.find(is_no_ack))["message"] == "Too many messages"
        assert await agent.close_code() == 4429
    page = gateway.admin("GET", "/metrics").text
    counted = re.search(r'^pocqueue_hosts_messages_total{type="heartbeat"} (\d+)', page, re.M)
    assert counted is not None
    assert int(counted[1]) >= num_acks > 0


@on_sqlite
async def test_who_does_not_read_is_cut_off(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept for it, and nobody else waits for it."""
    # A ping that is not answered would end the socket as well, half a minute later.
    monkeypatch.setattr(LiveSocket, "start_keepalive", lambda _socket: None)
    hub = gateway.service.hub
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await _proven(gateway, agent)
        hub.timings = replace(hub.timings, send_s=0.2)
        agent.ws.transport.pause_reading()
        # The kernel would keep megabytes of what is sent for who reads it later.
        agent.ws.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        gateway.submit(spec={"argv": ["echo", "x" * 4_000_000], "text": None}, kind="command")

        async def is_cut_off() -> bool:
            # Its answer finds no room any more once the job is on its way.
            with contextlib.suppress(ConnectionClosed):
                await agent.send(type="heartbeat", nodeId=node_id)
            await asyncio.sleep(0.05)
            return hub.num_connections == 0

        await until(is_cut_off)
        agent.ws.transport.resume_reading()


async def test_who_was_banned_is_sent_away_without_a_message(gateway: Gateway) -> None:
    """The message that says so may be lost with a Redis that is away."""
    gateway.messenger.is_away = True
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        gateway.store.nodes.set_state(node_id, "banned", actor="admin")
        assert await agent.close_code() == 4403


@on_sqlite
async def test_a_node_is_there_while_its_older_socket_ends(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ban that comes then ends the newer one, too."""
    is_over, close = asyncio.Event(), AgentSocket.close

    async def close_late(socket: AgentSocket, code: CloseCode) -> None:
        if code is CloseCode.REPLACED:
            await is_over.wait()
        await close(socket, code)

    hub = gateway.service.hub
    async with NewAgent(gateway.ws_url) as older, NewAgent(gateway.ws_url, older.key) as newer:
        node_id = await older.register(gateway.token())
        hub.timings = replace(hub.timings, ping_s=0.2)
        older.ws.transport.pause_reading()
        monkeypatch.setattr(AgentSocket, "close", close_late)
        assert (await newer.resume(node_id))["type"] == "registered"
        assert await asyncio.to_thread(gateway.service.tell, "end", node_id) == "closed"
        assert await newer.close_code() == 4403
        assert hub.loop is not None
        hub.loop.call_soon_threadsafe(is_over.set)
        older.ws.transport.resume_reading()
        assert await older.close_code() == 4409


@on_sqlite
async def test_who_joins_and_never_reads_is_nobodys_trouble(gateway: Gateway) -> None:
    """It is a node like any other, and others are answered meanwhile."""
    async with OldAgent(gateway.ws_url) as deaf, OldAgent(gateway.ws_url) as other:
        deaf.ws.transport.pause_reading()
        await deaf.send(type="register", token=gateway.token(), hostInfo={})
        for _ in range(50):
            await deaf.send(type="heartbeat", nodeId="x" * 100)
        node_id = await other.register(gateway.token())
        await other.do_job()
        assert await other.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
        await until(lambda: gateway.service.hub.num_connections == 2)
        deaf.ws.transport.resume_reading()


@on_sqlite
async def test_hostile_introductions(gateway: Gateway) -> None:
    """A machine of 100,000 GPUs is none; HTML in a host name is text; too large a message ends the socket."""
    token = gateway.token()
    async with OldAgent(gateway.ws_url) as agent:
        many = {"gpus": [{"name": "x"}] * 100_000}
        reply = await agent.ask(type="register", token=token, hostInfo=many)
        assert reply["message"] == "Invalid message format"
        odd = {"hostname": "<script>alert(1)</script>\r\n", "gpus": [{}, {"memory": "lots"}]}
        reply = await agent.ask(type="register", token=token, hostInfo=odd)
        assert reply["type"] == "registered"
        [node] = gateway.nodes()
        assert node["hostname"] == "<script>alert(1)</script>"
        assert node["gpu"] == "unknown"
        with contextlib.suppress(ConnectionClosed):  # while it is being sent
            await agent.ws.send("x" * (5 << 20))
        assert await agent.close_code() == 1009


async def test_leaving(gateway: Gateway) -> None:
    """A node that drains gets nothing new; one that says bye is offline at once; one that is revoked stays out."""
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await _proven(gateway, agent)
        key = agent.key
        await agent.send(type="draining")
        assert await agent.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}
        job_id = gateway.submit()
        reason = "No connected node takes jobs of kind command."
        await until(lambda: gateway.store.jobs.get(job_id).reason == reason)
        await agent.send(type="bye")
        assert await agent.close_code() == 1000
    await until(lambda: gateway.nodes()[0]["status"] == "offline")
    async with NewAgent(gateway.ws_url, key) as agent:
        await agent.resume(node_id)
        await agent.result(await agent.of_type("job"))  # it takes jobs again
        assert gateway.admin("POST", f"/api/nodes/{node_id}/revoke").json() == {"ok": True}
        assert await agent.close_code() == 4403
    async with NewAgent(gateway.ws_url, key) as agent:
        assert (await agent.resume(node_id))["message"] == "Node is banned"
        assert await agent.close_code() == 4403


async def test_self_tests(gateway: Gateway) -> None:
    """A GPU that failed gets no job and is shown with the reason; what strangers make up is no label of a metric."""
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await _proven(gateway, agent)
        row = {"state": "fail", "wanted": "no errors", "remedy": "Replace it."}
        rows = [
            row | {"name": "gpu_xid", "gpu": "GPU-1", "measured": "Xid 79"},
            row | {"name": "mine"},
        ]
        await agent.send(type="self_test", rows=rows)
        await agent.ask(type="heartbeat", nodeId=node_id)
        job_id = gateway.submit(gpus=1)
        await until(
            lambda: gateway.store.jobs.get(job_id).reason == "No connected node has 1 healthy GPU."
        )
        [gpu] = gateway.admin("GET", f"/api/nodes/{node_id}").json()["gpus"]
        assert (gpu["healthy"], gpu["reason"]) == (False, "gpu_xid: Xid 79")
        assert len(gateway.admin("GET", f"/api/nodes/{node_id}/self-test").json()) == 2
        page = gateway.admin("GET", "/metrics").text
        assert 'self_test_failures_total{row="gpu_xid"} 1.0' in page
        assert 'self_test_failures_total{row="other"} 1.0' in page


@on_sqlite
async def test_who_never_becomes_a_node_is_sent_away(make: Callable[..., Gateway]) -> None:
    """A socket is held for a while only."""
    gateway = make(timings={"register_s": 0.1})
    async with OldAgent(gateway.ws_url) as agent:
        assert await agent.close_code() == 1013
