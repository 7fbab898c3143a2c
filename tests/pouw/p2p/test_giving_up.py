"""Connections that are given up: whatever step they are in, they are closed, and none is left to the garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import warnings
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from typing import Any

import pytest
import uvloop

from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p.sockets import Streams, accept, dial, listen, over_tls
from pocqueue.pouw.p2p.tls import Certificate, dialling_context
from tests.pouw.p2p.listener import listening
from tests.pouw.p2p.nodes import Node
from tests.support.waiting import until

_LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
_NewLoop = Callable[[], asyncio.AbstractEventLoop]


@contextlib.contextmanager
def _nothing_is_left() -> Iterator[None]:
    """Find out what stays open, and what the garbage collector has to close."""
    gc.collect()
    gc.disable()
    try:
        before = _open_sockets()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ResourceWarning)
            yield
            assert _open_sockets() == before
            gc.collect()
        assert [str(each.message) for each in said] == []
    finally:
        gc.enable()


def _run(new_loop: _NewLoop, work: Coroutine[Any, Any, None]) -> None:
    """Run some work; nothing of it may stay open, nor fail where nobody waits for it."""
    failed: list[dict[str, Any]] = []
    with _nothing_is_left(), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: failed.append(context))
        runner.run(work)
    assert failed == []


def _open_sockets() -> set[str]:
    found = set()
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{each}"))
    return {each for each in found if each.startswith("socket:")}


async def _given_up(
    work: Coroutine[Any, Any, Any], num_turns: int, *, is_repeated: bool = False
) -> bool:
    """Cancel some work after so many turns of the loop, and once more if it has not ended by then; say whether it was
    still at it."""
    task = asyncio.create_task(work)
    for _ in range(num_turns):
        await asyncio.sleep(0)
    was_at_it = task.cancel()
    if is_repeated:
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return was_at_it


def _end(streams: Streams) -> None:
    streams[1].transport.abort()


async def _read_to_the_end(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


@_LOOPS
@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_dial_is_given_up_at_any_step(new_loop: _NewLoop, is_repeated: bool) -> None:
    async def dials() -> None:
        context = dialling_context()
        streams: list[Streams] = []

        async def dialled() -> None:
            found, _ = await dial(host, port, context)
            streams.append(found)

        async with listening(_read_to_the_end, Certificate.generate().context) as (host, port):
            for num_turns in count():
                if not await _given_up(dialled(), num_turns, is_repeated=is_repeated):
                    break
            assert num_turns > 5  # it has steps
            (only,) = streams
            _end(only)

    _run(new_loop, dials())


@_LOOPS
@pytest.mark.parametrize("is_repeated", [False, True])
def test_the_handshake_of_an_accepted_connection_is_given_up_at_any_step(
    new_loop: _NewLoop, is_repeated: bool
) -> None:
    async def handshakes() -> None:
        own, calling = Certificate.generate().context, dialling_context()
        loop = asyncio.get_running_loop()

        async def one(num_turns: int) -> bool:
            here, there = socket.socketpair()
            here.setblocking(False)
            there.setblocking(False)
            caller = loop.create_task(over_tls(there, calling, server_side=False))
            was_at_it = await _given_up(_taken(here), num_turns, is_repeated=is_repeated)
            with contextlib.suppress(OSError):
                _end(await caller)
            return was_at_it

        async def _taken(connection: socket.socket) -> None:
            _end(await over_tls(connection, own, server_side=True))

        for num_turns in count(1):
            if not await one(num_turns):
                break
        assert num_turns > 5

    _run(new_loop, handshakes())


@_LOOPS
def test_accepting_is_given_up_at_any_step(new_loop: _NewLoop) -> None:
    """A connection is handed over, or it stays with the listener for the next one who accepts."""

    async def accepts() -> None:
        (listener,) = await listen("127.0.0.1", 0)
        taken: list[socket.socket] = []

        def take(connection: socket.socket, _host: str) -> None:
            taken.append(connection)

        callers = []
        for num_turns in range(12):
            caller = socket.socket()
            caller.setblocking(False)
            callers.append(caller)
            await asyncio.get_running_loop().sock_connect(caller, listener.getsockname())
            await _given_up(accept(listener, take), num_turns)
        assert taken
        last = asyncio.create_task(accept(listener, take))
        await until(lambda: len(taken) == len(callers))
        last.cancel()
        await asyncio.gather(last, return_exceptions=True)
        for each in (*taken, *callers, listener):
            each.close()

    _run(new_loop, accepts())


@_LOOPS
@pytest.mark.parametrize("who_stops", ["dialler", "listener"])
def test_a_node_stops_at_any_step_of_a_link(new_loop: _NewLoop, who_stops: str) -> None:
    async def links() -> None:
        for num_turns in count(0, 2):
            dialler, listener = Node("a"), Node("b")
            stopping, other = (dialler, listener) if who_stops == "dialler" else (listener, dialler)
            await dialler.network.start()
            await listener.network.start()
            link = asyncio.create_task(dialler.network.connect(*listener.where))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            is_linked = link.done()
            await stopping.network.stop()
            await other.network.stop()
            if is_linked:
                assert link.result().node_id == "b"
                break
            link.cancel()
            with contextlib.suppress(LinkError, asyncio.CancelledError):
                await link
        assert num_turns > 10

    _run(new_loop, links())
