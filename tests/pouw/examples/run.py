"""Runs every example of the node's documentation, its own text but for the package's name and shorter sleeps.

A program: it wants ports 8000 to 8010 for itself, so the test runs it in a network of its own. It prints a
line of JSON for what it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import NodeConfig, PoUWNode
from pocqueue.pouw.training.trainer import Trainer
from tests.support.waiting import PATIENCE_S

#: Longest sleep of an example, and what stands for an hour.
_LONGEST_S = 0.35


def examples(document: Path) -> list[str]:
    """Return the programs of the documentation with our package's name."""
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
    return [
        re.sub(r"\bfrom pouw\.", "from pocqueue.pouw.", block)
        .replace("asyncio.sleep(", "_sleep(")
        .replace("asyncio.run(", "_run(")
        for block in blocks
    ]


class Program:
    """One example: its names, and what it was told to run."""

    def __init__(self, text: str) -> None:
        self.coroutines: list[Awaitable[Any]] = []
        self.done = asyncio.Event()
        self.names: dict[str, Any] = {
            **{"asyncio": asyncio, "time": time, "NodeRole": NodeRole},
            **{"NodeConfig": NodeConfig, "PoUWNode": PoUWNode},
            **{"_sleep": self._sleep, "_run": self.coroutines.append},
        }
        exec(text, self.names)  # noqa: S102 - the documentation's own text

    async def _sleep(self, seconds: float) -> None:
        """Sleep as an example does; an hour ends when what is waited for is done."""
        if seconds >= 3600:
            await asyncio.wait_for(self.done.wait(), PATIENCE_S)
        await asyncio.sleep(min(seconds, _LONGEST_S))


@contextlib.asynccontextmanager
async def running(work: Awaitable[Any]) -> AsyncIterator[asyncio.Future[Any]]:
    """Let an example go on within the block, and end it."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something; fail if it does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.1)


def find(texts: list[str], name: str) -> Program:
    """Return the example that defines or uses this name."""
    return Program(next(text for text in texts if name in text))


async def main(document: Path) -> dict[str, Any]:
    """Run all of them; return what was seen."""
    texts, seen = examples(document), dict[str, Any]()
    said = io.StringIO()
    # The child of the first example's nodes is there for those of the others too: it takes seconds to start.
    with contextlib.redirect_stdout(said), Trainer.shared():
        seen["network"] = await _network(texts)
        supervisor = PoUWNode("bootstrap_001", NodeRole.SUPERVISOR, host="0.0.0.0", port=8000)  # noqa: S104
        await supervisor.start()
        supervisor.stake_and_register(1000.0)
        await supervisor.start_mining()
        try:
            seen["supervisor"] = await _supervisor(texts, said)
            seen["miner"] = await _miner(texts, said, supervisor)
            seen["client"] = await _client(texts, said, supervisor)
            seen["production"] = await _production(texts, said)
        finally:
            await supervisor.stop()
    seen["said"] = said.getvalue()
    return seen


async def _network(texts: list[str]) -> dict[str, Any]:
    """The multi-node network: it starts, its height grows, it ends."""
    program = find(texts, "setup_test_network")
    lines: list[str] = []
    made: list[PoUWNode] = []

    def heights() -> list[int]:
        return [int(line.removeprefix("Network height: ")) for line in lines[1:]]

    def make(*args: Any, **kwargs: Any) -> PoUWNode:
        made.append(PoUWNode(*args, **kwargs))
        return made[-1]

    async def sleep(_seconds: float) -> None:
        """The first of its sixty seconds lasts until there is a block more, and the others no time."""
        first = heights()[0]
        await until(lambda: made[0].get_status()["blockchain_height"] > first, "a block")

    program.names |= {"print": lines.append, "PoUWNode": make, "_sleep": sleep}
    [work] = program.coroutines
    await asyncio.wait_for(work, PATIENCE_S)
    assert lines[0] == "Test network started successfully"
    return {"first": heights()[0], "last": heights()[-1]}


async def _supervisor(texts: list[str], said: io.StringIO) -> bool:
    [work] = find(texts, "run_supervisor").coroutines
    async with running(work) as task:
        await until(lambda: "Supervisor status" in said.getvalue() or task.done(), "a status")
        return not task.done()


async def _miner(texts: list[str], said: io.StringIO, supervisor: PoUWNode) -> dict[str, Any]:
    """The basic miner; beside it the examples that take a node: security, health, tuning."""
    program = find(texts, "run_miner")
    made: list[PoUWNode] = []

    def make(*args: Any, **kwargs: Any) -> PoUWNode:
        made.append(PoUWNode(*args, **kwargs))
        return made[-1]

    program.names["PoUWNode"] = make
    # The text imports the class itself, within its function's globals, before main runs.
    [work] = program.coroutines
    async with running(work) as task:
        await until(lambda: "Staking ticket" in said.getvalue() or task.done(), "a ticket")
        [node] = made
        height = supervisor.get_status()["blockchain_height"]
        await until(
            lambda: supervisor.get_status()["blockchain_height"] > height + 1 or task.done(),
            "two blocks",
        )
        find(texts, "setup_custom_security").names["setup_custom_security"](node)
        omega = node.config.omega_b
        find(texts, "optimize_mining_parameters").names["optimize_mining_parameters"](node)
        monitor = find(texts, "monitor_node_health").names["monitor_node_health"]
        async with running(monitor(node)):
            await until(lambda: "Node health: CPU" in said.getvalue(), "a look at its health")
        mining = node.get_status()["is_mining"]
        assert node.security_system is not None
        program.done.set()
        await asyncio.wait_for(task, PATIENCE_S)
        return {
            "mining": mining,
            "tuned": node.config.omega_b != omega,
            "threshold": node.security_system["byzantine_tolerance"].threshold,
        }


async def _client(texts: list[str], said: io.StringIO, supervisor: PoUWNode) -> list[str]:
    """The client: its task is in a block of the chain in the end."""
    [work] = find(texts, "submit_training_task").coroutines
    await asyncio.wait_for(work, PATIENCE_S)
    assert "submitted successfully" in said.getvalue()
    deadline = time.monotonic() + PATIENCE_S
    while not (tasks := await supervisor.views.tasks()):
        assert time.monotonic() < deadline, "no block has the task"
        await asyncio.sleep(0.1)
    return [task["name"] for task in tasks]


async def _production(texts: list[str], said: io.StringIO) -> bool:
    [work] = find(texts, "production_deployment").coroutines
    async with running(work):
        await until(lambda: "Production metrics" in said.getvalue(), "metrics")
    return "Production error" not in said.getvalue()


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.DEBUG, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s"
    )
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1])))) + "\n")
