"""One simulated GPU worker: what Redis and the scheduler see of a real one.

It holds as many connections as a Celery worker of ours does and sends the same commands over them, in the
same order and sizes: BRPOP for a second at a time while fewer than two messages are unacknowledged, kombu's
book of unacknowledged messages, Celery's events, the heartbeat. `runner.py` has what it does with a range,
`honesty.py` holds it against a real worker.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
import uuid
from typing import Any

from benchmarks.fleet.runner import Shared, VirtualRunner, evalsha
from benchmarks.fleet.wire import Wire
from pocqueue.engine.base import EngineInfo
from pocqueue.rounds.pool import HEARTBEAT_S, Gpu, beat_call
from workers.runner_stats import Member

#: Unacknowledged messages of one worker: one running, one waiting.
PREFETCH = 2
EVENT_HEARTBEAT_S = 2.0
#: Connections of a real worker. Five of them are used here, the pools of redis-py keep the others.
NUM_WIRES = 7
#: Bytes of Celery's events on the wire, as MONITOR shows those of a real worker.
EVENT_BYTES = {"received": 860, "started": 552, "succeeded": 640, "heartbeat": 680}

INFO = EngineInfo(
    engine="torch",
    model="Qwen/Qwen3-0.6B",
    fingerprint="f1ee" * 16,
    device="cuda:0",
    device_name="a simulated GPU",
    dtype="bfloat16",
    hidden_size=1024,
    vocab_size=151_936,
    max_seq_len=40_960,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
)


class VirtualGpu:
    """One life of one GPU queue's worker.

    Args:
        path: Unix socket of Redis.
        queue: the GPU queue.
        batch_s: seconds that this GPU takes for a batch.
        shared: with the other GPUs.
        rng: for noise.
    """

    def __init__(
        self, path: str, queue: str, batch_s: float, shared: Shared, rng: random.Random
    ) -> None:
        self._path, self._queue, self._batch_s = path, queue, batch_s
        self._shared, self._rng = shared, rng
        self._slots = asyncio.Semaphore(PREFETCH)

    async def live(self, load_s: float) -> None:
        """Load, join the pool and serve the queue until cancelled; that is its death.

        Args:
            load_s: seconds before the first heartbeat.
        """
        await asyncio.sleep(load_s)
        wires = [await Wire.open(self._path) for _ in range(NUM_WIRES)]
        self._brpop, self._broker, self._events, committer, self._store, *idle = wires
        # Remote control of workers listens on one of the others.
        await idle[0].send(("PSUBSCRIBE", "/0.celery.pidbox"))
        worker, host = uuid.uuid4().hex[:12], f"host{int(self._queue.removeprefix('gpu')) // 8}"
        self._member = Member(Gpu(self._queue, worker, host, 4242, INFO))
        self._runner = VirtualRunner(
            worker, self._batch_s, self._store, committer, self._shared, self._rng
        )
        try:
            other = await self._beat()
            while other is not None:
                # A worker that was killed holds the queue until its time to live is over.
                await asyncio.sleep(0.2)
                other = await self._beat()
            self._runner.join()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._heartbeats())
                group.create_task(self._event_heartbeats())
                group.create_task(self._consume(group))
        finally:
            for wire in wires:
                wire.abort()
            self._runner.die()

    # The pool

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if await self._beat() is not None:
                raise RuntimeError(f"{self._queue} is somebody else's by now")

    async def _beat(self) -> str | None:
        gpu = self._member.record(self._runner.stats.snapshot(time.monotonic()))
        (reply,) = await self._store.send(evalsha(self._shared.scripts.beat, *beat_call(gpu)))
        return None if reply is None else str(reply)

    async def _event_heartbeats(self) -> None:
        while True:
            self._publish("heartbeat", "worker.heartbeat")
            await asyncio.sleep(EVENT_HEARTBEAT_S)

    def _publish(self, kind: str, topic: str = "task.multi") -> None:
        self._events.send(("PUBLISH", f"/0.celeryev/{topic}", "x" * EVENT_BYTES[kind]))

    # The queue, as kombu and Celery serve it

    async def _consume(self, group: asyncio.TaskGroup) -> None:
        keys = [self._queue, *(f"{self._queue}\x06\x16{priority}" for priority in (3, 6, 9))]
        while True:
            await self._slots.acquire()
            found = None
            while found is None:
                (found,) = await self._brpop.send(("BRPOP", *keys, 1))
            message = json.loads(found[1])
            tag = message["properties"]["delivery_tag"]
            await self._broker.send(
                ("MULTI",),
                ("ZADD", "unacked_index", time.time(), tag),
                ("HSET", "unacked", tag, json.dumps([message, "", self._queue])),
                ("EXEC",),
            )
            self._publish("received")
            group.create_task(self._task(message, tag))

    async def _task(self, message: dict[str, Any], tag: str) -> None:
        self._publish("started")
        _, given, _ = json.loads(base64.b64decode(message["body"]))
        result = await self._runner.run(given["round_id"], given["range_id"])
        self._shared.ledger.tasks[result] += 1
        # Acknowledged late, when the range is done.
        await self._broker.send(
            ("MULTI",), ("ZREM", "unacked_index", tag), ("HDEL", "unacked", tag), ("EXEC",)
        )
        self._shared.ledger.last_ack = self._shared.to_unix(time.monotonic())
        self._publish("succeeded")
        self._slots.release()
