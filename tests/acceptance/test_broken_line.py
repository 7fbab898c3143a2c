"""An io worker whose connections to Redis, its broker and its store, break while it delivers artifacts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha1
from typing import Any

import pytest
from aiohttp import web

from pocqueue.rounds.connection import read_scripts
from pocqueue.rounds.spec import RoundState
from tests.support.artifacts import artifacts_in
from tests.support.breaking_proxy import Line, breaking
from tests.support.callback_receiver import answering
from tests.support.stack import Stack


@pytest.fixture
def line(stack: Stack) -> Iterator[Line]:
    """What the io worker reaches its Redis by."""
    stack.terminate("io")
    with breaking(str(stack.server.socket_path)) as line:
        command = ("celery", "-A", "pocqueue", "worker", "-Q", "io", "-l", "info")
        url = f"redis://127.0.0.1:{line.port}/0"
        # By a name of its own: what the other has logged is of other tests.
        stack.spawn("io-on-line", *command, env={"POCQUEUE_REDIS_URL": url})
        yield line
        stack.terminate("io-on-line")
    stack.worker("io")


async def test_artifacts_come_once_over_a_line_that_breaks(stack: Stack, line: Line) -> None:
    """In a post, where the task is delivered once more; in a note about one; and for longer.

    The post at hand when it breaks for longer may come again, once, and no other.
    """
    bodies: list[dict[str, Any]] = []
    in_outage: list[dict[str, Any]] = []
    at_next_post: list[Callable[[dict[str, Any]], object]] = []

    async def generated(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        if at_next_post:
            at_next_post.pop()(bodies[-1])
        return web.Response()

    def break_for_longer(body: dict[str, Any]) -> None:
        in_outage.append(body)
        line.is_up = False
        line.cut()

    async def wait(condition: Callable[[], object], what: str) -> None:
        await asyncio.to_thread(stack.wait, condition, what)

    store, callbacks = stack.backend.store, stack.backend.callbacks
    async with answering(generated) as url:
        start = partial(stack.start, scheme="artifact", r_target=None, callback_url=url)
        round_id = await asyncio.to_thread(start)
        log = stack.log("io-on-line")
        await wait(lambda: bodies, "a post")
        at_next_post.append(lambda _: line.cut())
        await wait(lambda: "'another task delivers'" in log.read_text(), "the task once more")
        noted = sha1(read_scripts()["advance_callback"].encode(), usedforsecurity=False)
        line.loses_reply_to = noted.hexdigest().encode()
        await wait(lambda: line.loses_reply_to is None, "a note without a reply")
        at_next_post.append(break_for_longer)
        await wait(lambda: f"{round_id}: its proofs wait." in log.read_text(), "the task to see it")
        num, line.is_up = len(bodies), True
        await wait(lambda: len(bodies) > num, "it to go on")
        store.close(round_id, RoundState.STOPPED, "end of test")
        valid = stack.status(round_id).valid
        await wait(lambda: callbacks.progress(round_id).delivered == valid, "all to be taken")
    stack.check_alive()
    entries = store.iter_proofs(stack.status(round_id))
    times = Counter(artifacts_in(bodies))
    assert dict(times.keys()) == dict(pair for entry in entries for pair in entry.proofs)
    repeated = {pair for pair, count in times.items() if count > 1}
    assert repeated <= set(artifacts_in(in_outage))
    assert max(times.values()) <= 2
    assert len(times) == valid
