"""One agent's socket, from its handshake to its end: the conversation of `hosts.wire`.

A socket is nobody's until its `register` or `resume` is taken; then it is its node's, and speaks of that node's jobs
alone. What is refused is answered with an `error`, and the socket stays, unless the same again would be refused again
(an agent of protocol 2 is then told so by the close code) or somebody sends too fast.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from typing_extensions import override

from pocqueue.errors import TooManyFailures
from pocqueue.hosts import wire
from pocqueue.hosts.errors import (
    DatabaseUnavailable,
    NodeKeyError,
    TokenRefused,
    UnknownJob,
    UnknownNode,
)
from pocqueue.hosts.gateway.facts import facts_of
from pocqueue.hosts.gateway.hub import Connection, Hub
from pocqueue.hosts.gateway.job_message import sleep_job
from pocqueue.hosts.gateway.limits import MessageBudget
from pocqueue.hosts.leases import JobState, Verdict
from pocqueue.hosts.node_keys import check_answer, new_nonce
from pocqueue.hosts.records import HostFacts, Node, Report
from pocqueue.hosts.wire import CloseCode, ErrorText
from pocqueue.web.websocket import SOCKET, LiveSocket

logger = logging.getLogger(__name__)

#: An agent's clock is off by more than this, in ms: said in the log, once a socket.
_CLOCK_MS = 5000
#: Results of one socket that wait for the database; it is not read on until one of them is kept.
MAX_RESULTS = 64


class _Refused(Exception):
    """A socket does not become a node's."""

    def __init__(self, text: str, code: CloseCode) -> None:
        super().__init__(text)
        self.text, self.code = text, code


class AgentSocket(Connection):
    """A socket of the hub.

    Args:
        hub: of this gateway.
        websocket: not accepted yet.
        address: network address of the agent.
        origin: the name by which the agent has called this gateway, see `wire.origin_of`.
    """

    def __init__(self, hub: Hub, websocket: WebSocket, address: str, origin: str) -> None:
        self.id = uuid.uuid4().hex
        self.delivered = set()
        self._hub, self._websocket = hub, websocket
        self._address, self._origin = address, origin
        self._nonce: str | None = None
        self._speaks_2 = False  # it has said hello
        self._is_node = False
        self._facts = HostFacts()
        self._budget = MessageBudget()
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._results: set[asyncio.Task[None]] = set()
        self._says: dict[type[wire.Message], Callable[[Any], Awaitable[None]]] = {
            wire.Hello: self._hello,
            wire.Register: self._register,
            wire.Resume: self._resume,
            wire.Heartbeat: self._heartbeat,
            wire.JobStarted: self._job_started,
            wire.JobRefused: self._job_refused,
            wire.JobLog: self._job_log,
            wire.JobResult: self._job_result,
            wire.SelfTest: self._self_test,
            wire.Draining: self._draining,
            wire.Bye: self._bye,
        }

    async def run(self) -> None:
        """Speak until the socket ends."""
        await self._websocket.accept()
        deadline = asyncio.get_running_loop().call_later(
            self._hub.timings.register_s, self._end_if_nobody
        )
        try:
            while (text := await self._next()) is not None:
                await self._take(text)
        finally:
            deadline.cancel()
            for task in list(self._tasks):
                task.cancel()
            if self._results:
                await asyncio.wait(self._results, timeout=self._hub.timings.send_s)
            if self._is_node:
                await self._hub.leave(self)

    # As the hub sees it

    @override
    async def send(self, message: wire.Message) -> bool:
        try:
            async with asyncio.timeout(self._hub.timings.send_s), self._sending:
                await self._websocket.send_text(message.to_json())
        except TimeoutError:
            # It does not read. There may be a lot on its way, so that no farewell would arrive either.
            self._live.abort()
            return False
        except (RuntimeError, WebSocketDisconnect):
            return False  # it has ended
        return True

    @override
    async def answers(self) -> bool:
        return await self._live.answers(self._hub.timings.ping_s)

    @override
    async def close(self, code: CloseCode) -> None:
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        try:
            async with asyncio.timeout(self._hub.timings.send_s):
                await self._websocket.close(code)
        except TimeoutError:
            self._live.abort()
        except (RuntimeError, WebSocketDisconnect):
            logger.debug("a socket had ended before it was closed")

    # The conversation

    async def _next(self) -> str | bytes | None:
        """Return the next message; None: the socket has ended."""
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            return None
        text: str | None = event.get("text")
        return text if text is not None else bytes(event.get("bytes") or b"")

    async def _take(self, text: str | bytes) -> None:
        if not self._budget.take():
            await self._error(ErrorText.TOO_FAST)
            await self.close(CloseCode.TOO_FAST)
            return
        try:
            message = wire.read_from_agent(text)
        except wire.BadMessage as exc:
            self._hub.metrics.count("messages", "none")
            await self._error(str(exc))
            return
        self._hub.metrics.count("messages", message.type)
        if self._is_node:
            self._hub.heard(self)
        try:
            await self._says[type(message)](message)
        except _Refused as exc:
            await self._error(exc.text)
            if self._speaks_2 or exc.code is CloseCode.TOO_FAST:
                await self.close(exc.code)
        except DatabaseUnavailable as exc:
            logger.warning("A message of an agent is not taken. %s", exc)
            await self._error(ErrorText.NOT_NOW)
            if self._speaks_2 and not self._is_node:
                await self.close(CloseCode.TRY_LATER)

    async def _error(self, text: str, job_id: str | None = None, n: int | None = None) -> None:
        about = (job_id, n) if n is not None else (None, None)
        await self.send(wire.Error(message=text, id=about[0], attempt=about[1]))

    # Becoming a node's

    async def _hello(self, message: wire.Hello) -> None:
        self._speaks_2 = True
        self._nonce = new_nonce()
        await self.send(wire.Challenge(nonce=self._nonce))

    async def _register(self, message: wire.Register) -> None:
        if self._is_node:
            raise _Refused(ErrorText.INVALID_FORMAT, CloseCode.REFUSED)
        if not message.token:
            raise _Refused(ErrorText.TOKEN_REQUIRED, CloseCode.REFUSED)
        key = message.node_key or None
        if key is not None:
            await self._check_key(key, message.signature, "")
        facts = facts_of(message)
        if key is None:
            facts = replace(facts, protocol=1)
        nodes = self._hub.store.nodes
        try:
            node = await self._hub.db(
                nodes.register, message.token, facts, address=self._address, key=key
            )
        except TokenRefused as exc:
            self._hub.metrics.count("tokens", "refused")
            await self._failed(str(exc))
        except NodeKeyError:
            await self._failed(ErrorText.INVALID_SIGNATURE)
        except UnknownNode:
            raise _Refused(ErrorText.BANNED, CloseCode.BANNED) from None
        else:
            self._hub.metrics.count("tokens", "used")
            async with self._hub.joining(node.id):
                await self._join(node, facts, ())

    async def _resume(self, message: wire.Resume) -> None:
        if self._is_node:
            raise _Refused(ErrorText.INVALID_FORMAT, CloseCode.REFUSED)
        nodes = self._hub.store.nodes
        try:
            node = await self._hub.db(nodes.get, message.node_id)
        except UnknownNode:
            await self._failed(ErrorText.INVALID_NODE)
            return
        if node.key is None:
            await self._failed(ErrorText.INVALID_NODE)
            return
        await self._check_key(node.key, message.signature, message.node_id)
        facts = facts_of(message)
        async with self._hub.joining(node.id):
            try:
                node = await self._hub.db(nodes.update, node.id, facts, address=self._address)
            except UnknownNode:
                raise _Refused(ErrorText.BANNED, CloseCode.BANNED) from None
            await self._join(node, facts, message.jobs)

    async def _check_key(self, key: str, signature: str | None, node_id: str) -> None:
        nonce, self._nonce = self._nonce, None  # good for one answer, right or wrong
        is_ours = self._hub.origins is None or self._origin in self._hub.origins
        if nonce is None or not is_ours:
            await self._failed(ErrorText.INVALID_SIGNATURE)
        try:
            text = wire.signed_text(self._origin, node_id, nonce or "")
            check_answer(key, signature or "", text)
        except NodeKeyError:
            await self._failed(ErrorText.INVALID_SIGNATURE)

    async def _failed(self, text: str) -> None:
        """Count a wrong token or signature, and refuse it.

        Raises:
            _Refused: always.
        """
        self._hub.metrics.count("auth_failures")
        logger.warning("Refused an agent from %s: %s", self._address, text)
        try:
            await self._hub.failures.count(self._address)
        except TooManyFailures as exc:
            raise _Refused(str(exc), CloseCode.TOO_FAST) from None
        raise _Refused(text, CloseCode.REFUSED)

    async def _join(self, node: Node, facts: HostFacts, has: tuple[wire.JobRef, ...]) -> None:
        self.node, self._facts = node, facts
        if not await self._hub.join(self):
            raise _Refused(ErrorText.CONNECTED_ELSEWHERE, CloseCode.REPLACED)
        self._is_node = True
        self._hub.heard(self, has)
        is_new = node.protocol > 1
        server_ms = self._hub.store.now_ms() if is_new else None
        await self.send(wire.Registered(node_id=node.id, server_ms=server_ms))
        logger.info("Node %s is connected from %s.", node.id, self._address)
        self._spawn(self._settle(has))

    async def _settle(self, has: tuple[wire.JobRef, ...]) -> None:
        """Agree on the jobs that the node has: what it lacks is sent again, what is over is ended."""
        hub = self._hub
        if self.node.protocol > 1:
            known = {(ref.id, ref.attempt) for ref in has}
            self.delivered |= known
            turns = await hub.patiently(hub.store.leases.open_on, self.node.id)
            for job, turn in turns:
                await hub.deliver(self, job, turn.n)
            open_ones = {(job.id, turn.n) for job, turn in turns}
            for job_id, n in sorted(known - open_ones):
                await self.send(wire.JobCancel(id=job_id, attempt=n))
        hub.messenger.look()
        await asyncio.sleep(hub.timings.first_job_s)
        new = sleep_job(self.node.id, hub.timings.test_job_s)
        made = await hub.patiently(hub.store.jobs.submit_test, new)
        if made is not None:
            hub.messenger.place(made.id)

    # Being one

    async def _heartbeat(self, message: wire.Heartbeat) -> None:
        if not self._is_node or message.node_id != self.node.id:
            await self._error(ErrorText.INVALID_NODE)
            return
        self._hub.heard(self, message.jobs)
        for gpu in message.gpus:
            if gpu.load is not None and any(gpu.uuid == one.uuid for one in self.node.gpus):
                self._hub.load(self.node.id, gpu.uuid, gpu.load)
        await self.send(wire.Ack())

    async def _job_started(self, message: wire.JobStarted) -> None:
        self._must_be_node()

    async def _job_refused(self, message: wire.JobRefused) -> None:
        self._must_be_node()
        try:
            job = await self._hub.db(
                self._hub.store.leases.refuse,
                *(message.id, message.attempt, self.node.id, message.reason),
            )
        except UnknownJob:
            await self._error(ErrorText.JOB_NOT_FOUND, message.id, message.attempt)
            return
        self.delivered.discard((message.id, message.attempt))
        self._hub.metrics.count("job_attempts", job.kind, "refused")
        self._hub.metrics.count("jobs_requeued", "refused")
        self._hub.messenger.place(job.id)

    async def _job_log(self, message: wire.JobLog) -> None:
        self._must_be_node()
        leases = self._hub.store.leases
        await self._hub.db(leases.add_log, message.id, self.node.id, message.text)

    async def _job_result(self, message: wire.JobResult) -> None:
        if not self._is_node:
            await self._error(ErrorText.JOB_NOT_FOUND, message.id, message.attempt)
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
            exit_code=_exit_code(message.exit_code),
            claimed_ms=None if seconds is None else round(min(1000 * seconds, 2**53)),
            n=message.attempt,
        )
        try:
            done = await hub.patiently(hub.store.leases.finish, message.id, self.node.id, report)
        except UnknownJob:
            await self._error(ErrorText.JOB_NOT_FOUND, message.id, message.attempt)
            return
        about = (None, None) if message.attempt is None else (message.id, message.attempt)
        await self.send(wire.Ack(message=wire.RESULT_RECEIVED, id=about[0], attempt=about[1]))
        self.delivered.discard((message.id, done.attempt.n))
        hub.changes.tell(self.node.wallet)
        if done.verdict is Verdict.COUNTS:
            kind, turn = done.job.kind, done.attempt
            hub.metrics.count("job_attempts", kind, str(turn.outcome))
            hub.metrics.count("earned_micro", kind, by=turn.micro)
            if turn.sent_ms is not None and turn.ended_ms is not None:
                hub.metrics.job_seconds.labels(kind).observe((turn.ended_ms - turn.sent_ms) / 1000)
            if done.job.state is JobState.QUEUED:
                hub.metrics.count("jobs_requeued", str(turn.outcome))
            hub.messenger.look()

    async def _self_test(self, message: wire.SelfTest) -> None:
        self._must_be_node()
        bad = {
            row.gpu: f"{row.name}: {row.measured or row.state}"
            for row in message.rows
            if row.state == "fail" and row.gpu is not None
        }
        for row in message.rows:
            if row.state == "fail":
                self._hub.metrics.count("self_test_failures", _ROWS.get(row.name, "other"))
        rows = [row.model_dump(by_alias=True, exclude_none=True) for row in message.rows]
        await self._hub.db(self._hub.store.nodes.set_self_test, self.node.id, rows, bad)
        self._hub.changes.tell(self.node.wallet)
        self._hub.messenger.look()

    async def _draining(self, message: wire.Draining) -> None:
        self._must_be_node()
        # For as long as this connection lasts: when it comes back, it takes jobs again.
        facts = replace(self._facts, kinds=())
        nodes = self._hub.store.nodes
        await self._hub.db(nodes.update, self.node.id, facts, address=self._address)

    async def _bye(self, message: wire.Bye) -> None:
        self._must_be_node()
        await self.close(CloseCode.NORMAL)

    def _must_be_node(self) -> None:
        """Refuse what only a node may say.

        Raises:
            _Refused: the socket is nobody's.
        """
        if not self._is_node:
            raise _Refused(ErrorText.INVALID_NODE, CloseCode.REFUSED)

    # Helpers

    @property
    def _live(self) -> LiveSocket:
        live: LiveSocket = self._websocket.scope["state"][SOCKET]
        return live

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something for as long as the socket lasts, at most."""
        task = self._hub.spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end_if_nobody(self) -> None:
        if not self._is_node:
            self._spawn(self.close(CloseCode.TRY_LATER))


def _exit_code(code: int | None) -> int | None:
    """Return an exit code as a signed number of 32 bits, as the store has them."""
    if code is None or code < 1 << 31:
        return code
    return code - (1 << 32)


#: Rows of self-tests that are a label of their own: what strangers make up is not.
_ROWS = {
    name: name
    for name in (
        *("driver", "cuda", "gpu", "memory", "disk", "ram", "clock", "network", "sandbox"),
        *("matrix", "xid"),
    )
}
