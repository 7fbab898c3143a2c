"""Whole rounds on a Redis that answers but refuses for a while: every process waits, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pocqueue.rounds.spec import RoundState
from tests.support.callback_receiver import Receiver
from tests.support.delegation_parts import BigNode, Chain, SmallNode
from tests.support.refusing_redis import REFUSALS, Refusal, RefusingRedis, refusing_redis
from tests.support.stack import QUICK, ROOT, Stack

pytestmark = pytest.mark.long

NUM_NONCES = 2000
#: In a few seconds a scheduler, two workers and a delegation are refused so often, also if they do nothing.
SOME = 15


@pytest.fixture(scope="module")
def server() -> Iterator[RefusingRedis]:
    """A server of this module's own."""
    with refusing_redis() as server:
        yield server


@pytest.fixture(scope="module")
def sick_stack(server: RefusingRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack on it, with a delegation."""
    stack = Stack(tmp_path_factory.mktemp("sick"), server.url, QUICK)
    try:
        stack.scheduler()
        stack.spawn("io", "celery", "-A", "pocqueue", "worker", "-Q", "io")
        stack.worker("gpu0")
        BigNode(stack)
        yield stack
    finally:
        server.heal()
        stack.close()


@pytest.mark.parametrize("how", REFUSALS)
async def test_a_refusal_is_waited_out_idle_and_in_a_round(
    how: Refusal, server: RefusingRedis, sick_stack: Stack, receiver: Receiver
) -> None:
    """No process ends; each nonce is counted once, and the callback gets them all."""
    stack = sick_stack
    await asyncio.to_thread(stack.wait_live, "gpu0")
    with server.refusing(how):
        await asyncio.to_thread(server.wait_refused, SOME, stack.check_alive)
    await asyncio.to_thread(stack.wait_live, "gpu0")
    round_id = stack.start(max_nonces=NUM_NONCES, callback_url=receiver.url)
    await asyncio.to_thread(stack.wait_checked, round_id, 200)
    with server.refusing(how):
        await asyncio.to_thread(server.wait_refused, SOME, stack.check_alive)
    ended = await asyncio.to_thread(stack.wait_over, round_id)
    assert ended.state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, NUM_NONCES)

    def all_delivered() -> bool:
        stack.check_alive()
        return stack.backend.callbacks.progress(round_id).delivered == NUM_NONCES

    await asyncio.to_thread(stack.wait, all_delivered, "the last confirmation")
    # One that was taken while Redis could not note it comes again.
    assert {n for body in receiver.accepted for n in body["nonces"]} == set(range(NUM_NONCES))


@pytest.mark.parametrize("how", ["MISCONF", "READONLY"])
def test_processes_that_start_on_a_redis_that_refuses_wait(
    how: Refusal, server: RefusingRedis, sick_stack: Stack
) -> None:
    """As when a supervisor starts them again while the disk is full: they work once it has room."""
    stack = sick_stack
    for name in ("gpu0", "io", "scheduler"):
        assert stack.terminate(name) == 0
    with server.refusing(how):
        stack.scheduler()
        stack.spawn("io", "celery", "-A", "pocqueue", "worker", "-Q", "io")
        stack.worker("gpu0")
        for name, said in (("gpu0", "gpu0 waits: Redis"), ("scheduler", "Scheduling waits")):
            stack.wait(partial(_has_said, stack, name, said), said)
        server.wait_refused(SOME, stack.check_alive)
    stack.wait_live("gpu0")
    round_id = stack.start(max_nonces=NUM_NONCES)
    stack.wait_over(round_id)
    stack.check_exactly_once(round_id, NUM_NONCES)


def _has_said(stack: Stack, name: str, said: str) -> bool:
    return said in stack.log(name).read_text()


@pytest.mark.parametrize("how", ["MISCONF", "READONLY"])
def test_a_worker_whose_ranges_end_while_it_is_refused_takes_new_ones(
    how: Refusal, server: RefusingRedis, sick_stack: Stack
) -> None:
    """What cannot be acknowledged must not fill the places for messages for good."""
    stack = sick_stack
    stack.wait_live("gpu0")
    round_id = stack.start_that_expires(50, 5.0)
    deadline_s = stack.status(round_id).deadline_ms / 1000

    def is_over() -> bool:
        now: Any = server.client.time()
        return int(now[0]) > deadline_s + 1

    with server.refusing(how):
        stack.wait(is_over, "the deadline")
        server.wait_refused(SOME, stack.check_alive)
    assert stack.wait_over(round_id).state is RoundState.EXPIRED
    stack.wait_live("gpu0")
    round_id = stack.start(max_nonces=NUM_NONCES)
    stack.wait_over(round_id)
    stack.check_exactly_once(round_id, NUM_NONCES)


def test_a_small_node_that_searches_by_the_queue_waits(
    server: RefusingRedis, sick_stack: Stack
) -> None:
    """Its round goes on, and the chain gets every nonce that was counted, signed."""
    with contextlib.ExitStack() as at_end:
        chain = Chain()
        at_end.callback(chain.close)
        small = SmallNode(sick_stack, None, "small", POCQUEUE_NODE_WORK="queue")
        at_end.callback(small.close)
        sick_stack.wait_live("gpu0")
        small.generate(chain, block_hash="b10c").raise_for_status()
        sick_stack.wait(lambda: len(chain.nonces("b10c")) > 200, "the first nonces")
        with server.refusing("READONLY"):
            server.wait_refused(SOME, sick_stack.check_alive)
        num = len(chain.nonces("b10c"))
        sick_stack.wait(lambda: len(chain.nonces("b10c")) > num + 200, "more nonces")
        session_id = small.status()["session_id"]
        small.stop()
        sick_stack.wait(lambda: not sick_stack.status(session_id).state.is_active, "its end")
        counted = set(sick_stack.nonces(session_id))
        sick_stack.wait(lambda: set(chain.nonces("b10c")) == counted, "all nonces")
        assert len(chain.nonces("b10c")) == len(counted)


def _acl_lines() -> list[str]:
    """Return the users that the operator's page lists."""
    page = (ROOT / "docs/operating.md").read_text()
    return [line for line in page.splitlines() if line.startswith("ACL SETUSER ")]


def test_the_rights_that_the_docs_list_are_enough_and_none_is_missing(tmp_path: Path) -> None:
    """A round with callbacks, a session and remote control; Redis logs no refusal."""
    with refusing_redis() as server, contextlib.ExitStack() as at_end:
        admin: Any = server.client
        for line in _acl_lines():
            admin.execute_command(*line.split())
        admin.execute_command("ACL", "SETUSER", "default", "off")
        urls = [
            server.url.replace("unix://", f"unix://{line.split()[2]}:PASSWORD@")
            for line in _acl_lines()
        ]
        stack = Stack(tmp_path, urls[0], QUICK)
        at_end.callback(stack.close)
        stack.scheduler()
        stack.spawn("io", "celery", "-A", "pocqueue", "worker", "-Q", "io")
        stack.worker("gpu0")
        big = BigNode(stack, POCQUEUE_REDIS_URL=urls[1])
        stack.wait_live("gpu0")
        chain = Chain()
        at_end.callback(chain.close)
        small = SmallNode(stack, big.url, "small")
        at_end.callback(small.close)
        small.generate(chain, block_hash="b10c").raise_for_status()
        round_id = stack.start(max_nonces=NUM_NONCES, callback_url="http://127.0.0.1:9/none")
        stack.wait_over(round_id)
        stack.check_exactly_once(round_id, NUM_NONCES)
        stack.wait(lambda: len(chain.nonces("b10c")) > 100, "nonces of the session")
        small.stop()
        for command in (["pocqueue", "gpus"], ["celery", "-A", "pocqueue", "inspect", "ping"]):
            done = subprocess.run(
                [sys.executable, "-m", *command],
                env=stack.env,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        stack.wait(lambda: stack.backend.callbacks.progress(round_id).attempts, "a callback")
        stack.check_alive()
        refused = [entry["object"] for entry in admin.execute_command("ACL", "LOG")]
        assert refused == []
