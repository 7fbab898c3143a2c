"""Whole rounds on a Redis that answers but refuses for a while: every process waits, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from pocqueue.rounds.spec import RoundState
from tests.support.callback_receiver import Receiver
from tests.support.delegation_parts import BigNode, Chain, SmallNode
from tests.support.refusing_redis import REFUSALS, Refusal, RefusingRedis, refusing_redis
from tests.support.stack import Stack

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
    stack = Stack(tmp_path_factory.mktemp("sick"), redis_url=server.url)
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
            stack.wait(lambda name=name, said=said: said in stack.log(name).read_text(), said)
        server.wait_refused(SOME, stack.check_alive)
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
