"""Heartbeats of a moment are taken together: each by its own socket, whatever becomes of the others and of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pocqueue.hosts.gateway.beats import Beats
from pocqueue.hosts.gateway.hub import Hub
from pocqueue.hosts.wire import JobRef
from tests.hosts.agents import NewAgent, OldAgent
from tests.hosts.gateway.conftest import Gateway
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def take(hub: Hub, waiting: list[Callable[[], None]]) -> None:
    """Take what waits, in the hub's own thread."""
    assert hub.loop is not None
    for one in waiting:
        hub.loop.call_soon_threadsafe(one)
    waiting.clear()


async def test_a_node_that_comes_back_while_its_heartbeat_waits(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its older socket has said counts for nothing; the newer one is answered."""
    hub = gateway.service.hub
    waiting: list[Callable[[], None]] = []
    monkeypatch.setattr(hub.beats, "add", waiting.append)
    async with NewAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        job, key = await agent.of_type("job"), agent.key
        about = [{"id": job["id"], "attempt": job["attempt"]}]
        await agent.send(type="heartbeat", nodeId=node_id, jobs=about)
        await until(lambda: bool(waiting))
        older = gateway.store.nodes.get(node_id).socket
    await until(lambda: not hub.has(node_id))
    async with NewAgent(gateway.ws_url, key) as agent:
        assert (await agent.resume(node_id, jobs=about))["type"] == "registered"
        spoke: list[tuple[str, tuple[JobRef, ...]]] = []

        def heard(_node_id: str, socket: str, jobs: tuple[JobRef, ...] = ()) -> None:
            spoke.append((socket, jobs))

        monkeypatch.setattr(hub, "spoke", heard)
        take(hub, waiting)
        await agent.send(type="heartbeat", nodeId=node_id)
        await until(lambda: bool(waiting))
        take(hub, waiting)
        assert await agent.receive() == {"type": "ack"}
        newer = gateway.store.nodes.get(node_id).socket
        assert older != newer
        assert spoke == [(newer, ())]


async def test_heartbeats_that_are_wrong_are_told_so(gateway: Gateway) -> None:
    """As if they had come by themselves; what is none is taken for what it is."""
    async with OldAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        await agent.do_job()
        for said, reply in (
            ('{"type": "heartbeat", "nodeId": "another"}', "Invalid node ID"),
            ('{"type": "heartbeat", "gpus": 5}', "Invalid message format"),
            ('{"type": "heartbeat", ', "Invalid message format"),
            ('{"type": "heartbeat", "type": "else"}', "Unknown message type"),
        ):
            await agent.ws.send(said)
            assert await agent.receive() == {"type": "error", "message": reply}
        # Several at once, in parts, or spelled otherwise.
        right = f'"nodeId":"{node_id}"'
        for said in (
            *(f'{{"type":"heartbeat",{right}}}' for _ in range(3)),
            f'{{{right},  "type" : "heartbeat"}}',
        ):
            await agent.ws.send(said)
        await agent.ws.send(['{"type": "heart', f'beat", {right}', "}"])
        for _ in range(5):
            assert await agent.receive() == {"type": "ack"}
        await agent.ws.send('{"type": "heartbeat", "type": "bye"}')
        assert await agent.close_code() == 1000


async def test_one_that_fails_keeps_none_of_the_others(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They are taken all the same, and so are those that come later."""
    beats, taken = Beats(), list[int]()

    def fail() -> None:
        raise ZeroDivisionError

    for moment in range(2):
        beats.add(fail)
        beats.add(lambda: taken.append(1))
        await until(lambda: len(taken) == moment + 1)  # noqa: B023 - awaited here
    assert caplog.text.count("A heartbeat is not taken.") == 2
