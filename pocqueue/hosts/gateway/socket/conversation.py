"""What a node and its gateway say to each other: heartbeats, jobs, results, self-tests, and good-bye."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pocqueue.hosts import wire
from pocqueue.hosts.errors import LeaseLost, NodeKeyError, UnknownJob, UnknownNode
from pocqueue.hosts.gateway.limits import Limit, RateLimited
from pocqueue.hosts.gateway.results import count_end, count_result, signed_32
from pocqueue.hosts.gateway.socket.entrance import Refused
from pocqueue.hosts.node_keys import check_answer
from pocqueue.hosts.records import Report
from pocqueue.hosts.wire import CloseCode, ErrorText

if TYPE_CHECKING:
    from pocqueue.hosts.gateway.socket.agent_socket import AgentSocket

logger = logging.getLogger(__name__)

#: Answers a heartbeat.
ACK: Final = wire.Ack().to_json()
#: Results of one socket that wait for the database; it is not read on until one of them is kept.
MAX_RESULTS: Final = 64


class Conversation:
    """What a socket says once it is a node's."""

    __slots__ = ("_hub", "_results", "_socket")

    def __init__(self, socket: AgentSocket) -> None:
        self._socket, self._hub = socket, socket.hub
        self._results: set[asyncio.Task[None]] = set()

    async def end(self) -> None:
        """Give results that wait for the database a moment to be kept."""
        if self._results:
            await asyncio.wait(self._results, timeout=self._hub.timings.send_s)

    async def _heartbeat(self, message: wire.Heartbeat) -> None:
        if not self._socket.is_node or message.node_id != self._socket.node.id:
            await self._socket.error(ErrorText.INVALID_NODE)
            return
        self.beats(message)
        await self._socket.say(ACK)

    def beats(self, message: wire.Heartbeat) -> None:
        """Note what this node's heartbeat says."""
        self._hub.heard(self._socket, message.jobs)
        for gpu in message.gpus:
            if gpu.load is not None and any(gpu.uuid == one.uuid for one in self._socket.node.gpus):
                self._hub.load(self._socket.node.id, gpu.uuid, gpu.load)

    async def _new_key(self, message: wire.NewKey) -> None:
        self._must_be_node()
        hub, socket, key = self._hub, self._socket, message.node_key
        old = socket.node.key
        if old is None:
            await socket.error(ErrorText.INVALID_FORMAT)
            return
        try:
            await hub.limits.count(Limit.KEYS, socket.node.id)
            text = wire.rotation_text(socket.origin, socket.node.id, key)
            check_answer(key, message.signature, text)
            await hub.db(hub.store.nodes.set_key, socket.node.id, key, old=old)
        except RateLimited as exc:
            await socket.error(str(exc))
        except (NodeKeyError, UnknownNode):
            await socket.error(ErrorText.INVALID_SIGNATURE)
        else:
            socket.node = replace(socket.node, key=key)
            logger.info("Node %s has a new key.", socket.node.id)
            await socket.send(wire.Key(node_key=key))

    async def _job_started(self, message: wire.JobStarted) -> None:
        self._must_be_node()
        node, about = self._socket.node, (message.id, message.attempt)
        try:
            await self._hub.db(self._hub.store.leases.started, *about, node.id)
        except UnknownJob:
            await self._socket.error(ErrorText.JOB_NOT_FOUND, *about)
        except LeaseLost:
            # Nobody waits for it any more.
            await self._socket.send(wire.JobCancel(id=message.id, attempt=message.attempt))
        else:
            self._hub.changes.tell(node.wallet)

    async def _job_refused(self, message: wire.JobRefused) -> None:
        self._must_be_node()
        try:
            done = await self._hub.db(
                self._hub.store.leases.refuse,
                *(message.id, message.attempt, self._socket.node.id, message.reason),
            )
        except UnknownJob:
            await self._socket.error(ErrorText.JOB_NOT_FOUND, message.id, message.attempt)
            return
        self._socket.delivered.discard((message.id, message.attempt))
        count_end(self._hub.metrics, done)
        self._hub.messenger.place(done.job.id)

    async def _job_log(self, message: wire.JobLog) -> None:
        self._must_be_node()
        leases = self._hub.store.leases
        await self._hub.db(leases.add_log, message.id, self._socket.node.id, message.text)

    async def _job_result(self, message: wire.JobResult) -> None:
        if not self._socket.is_node:
            await self._socket.error(ErrorText.JOB_NOT_FOUND, message.id, message.attempt)
            return
        while len(self._results) >= MAX_RESULTS:
            await asyncio.wait(self._results, return_when=asyncio.FIRST_COMPLETED)
        # In the background: heartbeats go on while the database is away, and a socket that ends ends nothing of it.
        task = self._hub.spawn(self._keep_result(message))
        self._results.add(task)
        task.add_done_callback(self._results.discard)

    async def _keep_result(self, message: wire.JobResult) -> None:
        hub = self._hub
        seconds = message.seconds
        report = Report(
            status=message.status,
            log=message.logs,
            truncated=message.truncated,
            exit_code=signed_32(message.exit_code),
            claimed_ms=None if seconds is None else round(min(1000 * seconds, 2**53)),
            n=message.attempt,
        )
        try:
            done = await hub.patiently(
                hub.store.leases.finish, message.id, self._socket.node.id, report
            )
        except UnknownJob:
            await self._socket.error(ErrorText.JOB_NOT_FOUND, message.id, message.attempt)
            return
        about = (None, None) if message.attempt is None else (message.id, message.attempt)
        await self._socket.send(
            wire.Ack(message=wire.RESULT_RECEIVED, id=about[0], attempt=about[1])
        )
        self._socket.delivered.discard((message.id, done.attempt.n))
        count_result(hub, self._socket.node.wallet, done)

    async def _self_test(self, message: wire.SelfTest) -> None:
        self._must_be_node()
        bad = {
            row.gpu: f"{row.name}: {row.measured or row.state}"
            for row in message.rows
            if row.state == "fail" and row.gpu is not None
        }
        rows = [row.model_dump(by_alias=True, exclude_none=True) for row in message.rows]
        await self._hub.db(self._hub.store.health.set_self_test, self._socket.node.id, rows, bad)
        for row in message.rows:
            if row.state == "fail":
                self._hub.metrics.count("self_test_failures", _ROWS.get(row.name, "other"))
        self._hub.changes.tell(self._socket.node.wallet)
        self._hub.messenger.look()

    async def _draining(self, message: wire.Draining) -> None:
        self._must_be_node()
        # For as long as this connection lasts: when it comes back, it takes jobs again.
        facts = replace(self._socket.facts, kinds=())
        node, address = self._socket.node, self._socket.address
        with contextlib.suppress(UnknownNode):  # it gets nothing new either
            nodes = self._hub.store.nodes
            await self._hub.db(nodes.update, node.id, facts, address=address, key=node.key)

    async def _bye(self, message: wire.Bye) -> None:
        self._must_be_node()
        await self._socket.close(CloseCode.NORMAL)

    def _must_be_node(self) -> None:
        """Refuse what only a node may say.

        Raises:
            Refused: the socket is nobody's.
        """
        if not self._socket.is_node:
            raise Refused(ErrorText.INVALID_NODE, CloseCode.REFUSED)

    #: What takes a message, by its type.
    SAYS: ClassVar[Mapping[type[wire.Message], Callable[[Any, Any], Awaitable[None]]]] = {
        wire.Heartbeat: _heartbeat,
        wire.NewKey: _new_key,
        wire.JobStarted: _job_started,
        wire.JobRefused: _job_refused,
        wire.JobLog: _job_log,
        wire.JobResult: _job_result,
        wire.SelfTest: _self_test,
        wire.Draining: _draining,
        wire.Bye: _bye,
    }


#: Rows of self-tests that are a label of their own: what strangers make up is not.
_ROWS = {
    name: name
    for name in (
        *("driver", "gpu", "gpu_lost", "gpu_memory", "gpu_xid", "gpu_matrix", "disk_speed"),
        *("sandbox", "dns", "way", "tls", "clock", "speed"),
    )
}
