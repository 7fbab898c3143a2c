"""Agents for tests of the gateway: one as others have written them (WIRE section 4), one of protocol 2."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from pocqueue import __version__
from pocqueue.hosts.wire import origin_of, rotation_text, signed_text
from tests.support.node_key import NodeKey
from tests.support.waiting import PATIENCE_S

HOST = {
    "hostname": "gpu-rig-01",
    "gpus": [{"name": "NVIDIA RTX 4090", "memory": "24GB"}],
    "os": "Ubuntu 22.04",
}


class Agent:
    """A socket that speaks JSON.

    Args:
        url: of the gateway.
        name: to call it by, if it is not the one in the URL.
        origin: of a web page that it is in.
        headers: that a proxy adds.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        origin: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url, self._origin, self._headers = url, origin, headers
        self._at: dict[str, Any] = {}
        if name is not None:
            place = urlsplit(url)
            self._at = {"host": place.hostname, "port": place.port}
            self.url = url.replace(str(place.hostname), name)
        self.ws: ClientConnection

    async def __aenter__(self) -> Self:
        """Connect."""
        self.ws = await connect(
            self.url,
            proxy=None,
            open_timeout=PATIENCE_S,
            origin=self._origin,  # type: ignore[arg-type]  # a text
            additional_headers=self._headers,
            max_size=None,
            ping_interval=None,  # the gateway's are enough
            **self._at,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect."""
        await self.ws.close()

    async def send(self, **message: Any) -> None:
        """Send a message."""
        await self.ws.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        """Return the next message."""
        async with asyncio.timeout(PATIENCE_S):
            message: dict[str, Any] = json.loads(await self.ws.recv())
        return message

    async def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and return the next one that comes."""
        await self.send(**message)
        return await self.receive()

    async def find(self, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message that will do; the others are passed over."""
        while not accept(message := await self.receive()):
            pass
        return message

    async def of_type(self, kind: str) -> dict[str, Any]:
        """Return the next message of a type."""
        return await self.find(lambda message: message["type"] == kind)

    async def close_code(self) -> int:
        """Wait for the socket's end; return its close code."""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.ws.recv()
        assert self.ws.close_code is not None
        return self.ws.close_code


class OldAgent(Agent):
    """As others have written them: a token, no key, silent while it works."""

    async def register(self, token: str) -> str:
        """Become a node; return its id."""
        reply = await self.ask(type="register", token=token, hostInfo=HOST)
        assert reply["type"] == "registered", reply
        assert reply["message"] == "Successfully registered"
        assert set(reply) == {"type", "nodeId", "message"}
        return str(reply["nodeId"])

    async def do_job(self, status: str = "completed") -> dict[str, Any]:
        """Take a job, do it, report it; return it."""
        job = await self.of_type("job")
        await sleep_as_told(job["command"])
        await self.send(type="job_result", id=job["id"], status=status, logs="done\n")
        assert await self.of_type("ack") == {"type": "ack", "message": "Job result received"}
        return job


class NewAgent(Agent):
    """Of protocol 2, with a key.

    Args:
        key: None: a new one.
    """

    def __init__(self, url: str, key: NodeKey | None = None, *, name: str | None = None) -> None:
        super().__init__(url, name=name)
        self.key = key or NodeKey.generate()
        self.node_id = ""

    async def challenge(self) -> str:
        """Say hello; return the nonce."""
        reply = await self.ask(type="hello", protocol=2, nodeKey=self.key.public_hex)
        assert reply["type"] == "challenge", reply
        return str(reply["nonce"])

    def introduction(self, node_id: str, nonce: str, **more: Any) -> dict[str, Any]:
        """Return what a register and a resume have in common, with the signature."""
        gpus = [{"uuid": "GPU-1", "name": "RTX 4090", "vramMib": 24564, "index": 0}]
        return {
            "hostInfo": HOST | {"gpus": gpus},
            "protocol": 2,
            "nodeKey": self.key.public_hex,
            "signature": self.key.sign(signed_text(origin_of(self.url), node_id, nonce)),
            "isolation": "bubblewrap",
            "kinds": ["test", "command", "container"],
            "agentVersion": __version__,
        } | more

    async def register(self, token: str, **more: Any) -> str:
        """Become a node; return its id."""
        nonce = await self.challenge()
        message = self.introduction("", nonce, **more)
        reply = await self.ask(type="register", token=token, **message)
        assert reply["type"] == "registered", reply
        self.node_id = str(reply["nodeId"])
        return self.node_id

    async def resume(self, node_id: str, **more: Any) -> dict[str, Any]:
        """Come back as a node; return the answer."""
        nonce = await self.challenge()
        message = self.introduction(node_id, nonce, **more)
        self.node_id = node_id
        return await self.ask(type="resume", nodeId=node_id, **message)

    async def rotate(self, key: NodeKey, **more: Any) -> dict[str, Any]:
        """Ask to be known by another key; return the answer, and have that key if it is taken."""
        text = rotation_text(origin_of(self.url), self.node_id, key.public_hex)
        message = {"nodeKey": key.public_hex, "signature": key.sign(text)} | more
        await self.send(type="new_key", **message)
        reply = await self.find(lambda reply: reply["type"] in {"key", "error"})
        if reply["type"] == "key":
            self.key = key
        return reply

    async def begin(self, job: dict[str, Any]) -> None:
        """Say that a job runs."""
        await self.send(type="job_started", id=job["id"], attempt=job["attempt"])

    async def result(self, job: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Report a job; return the answer."""
        message = {"status": "completed", "logs": "done\n", "exitCode": 0} | more
        await self.send(type="job_result", id=job["id"], attempt=job["attempt"], **message)
        return await self.find(
            lambda reply: reply.get("id") == job["id"] and reply["type"] != "job_cancel"
        )


async def sleep_as_told(command: str) -> None:
    """Run the one command that these agents know."""
    name, seconds = command.split()
    assert name == "sleep"
    await asyncio.sleep(float(seconds))
