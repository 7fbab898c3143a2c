"""A network of nodes as processes of their own, and what can be seen of them from outside: answers, logs, disks."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pocqueue.cli import pouw_nodes
from pocqueue.cli.pouw_client import ask
from pocqueue.pouw.errors import PouwError
from pocqueue.processes.tree import ProcessTree, log_files

_PATIENCE_S = 300.0
#: An answer takes a node and whoever asks some 4 ms: of many nodes, seldom.
_LOOK_S = 1.0
_TAKEN = re.compile(r"^\[(\S+ \S+): INFO\] \[\S+\] Block \d+ ([0-9a-f]{16}) by ")


@dataclass(frozen=True)
class Node(pouw_nodes.Node):
    """One process, by its name; a supervisor is the first one of a network."""

    def ask(self, path: str) -> Any:
        """Return what it answers."""
        return ask(self.http_port, path, timeout_s=30)

    def process(self) -> psutil.Process:
        """Return its own process; its trainer is a child of that."""
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if self.name in child.cmdline():
                    return child
        raise RuntimeError(f"{self.name} does not run")


@dataclass(frozen=True)
class Testnet:
    """A network that runs."""

    folder: Path
    genesis: Path
    nodes: Sequence[Node]

    @property
    def supervisor(self) -> Node:
        """Return a node that certifies slots."""
        return self.nodes[0]

    def wait(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return what each status says, by name, once the condition holds for all of them."""
        deadline = time.monotonic() + _PATIENCE_S
        found: dict[str, dict[str, Any]] = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(PouwError):
                found = {node.name: node.ask("status") for node in self.nodes}
                if all(map(condition, found.values())):
                    return found
            time.sleep(_LOOK_S)
        raise RuntimeError(f"The network did not come so far within {_PATIENCE_S:g} s: {found}")

    def data(self, node: Node) -> Path:
        """Return the folder with a node's chain and slots."""
        return self.folder / node.name

    def taken(self, node: Node) -> dict[str, float]:
        """Return when a node took each block into its chain, in s since 1970, by the beginning of the block's id."""
        lines = (self.folder / "logs" / f"{node.name}.log").read_text().splitlines()
        found = filter(None, map(_TAKEN.match, lines))
        return {
            one[2]: datetime.datetime.strptime(one[1], "%Y-%m-%d %H:%M:%S,%f")
            .astimezone()
            .timestamp()
            for one in found
        }


@contextlib.contextmanager
def testnet(folder: Path, roles: Sequence[str], **numbers: int) -> Iterator[Testnet]:
    """Run a network until the end of the block; by then everybody is linked to everybody, and miners mine.

    Args:
        folder: for its files.
        roles: of its nodes: one supervisor, or four and more, then the others.
        numbers: of its genesis, where it is not like `dev`.
    """
    nodes = [Node(**vars(place)) for place in pouw_nodes.places(roles)]
    genesis = Path(pouw_nodes.found_network(nodes, folder, numbers))
    first = [node for node in nodes if node.role == "supervisor"]
    program = [sys.executable, "-m", "pocqueue", "pouw", "node", "--host", "127.0.0.1"]
    with ProcessTree(sink=log_files(folder / "logs"), stop_timeout_s=10) as tree:
        for node in nodes:
            argv = [*program, "--node-id", node.name, "--role", node.role]
            argv += ["--port", str(node.port), "--http-port", str(node.http_port)]
            for one in first:
                argv += ["--bootstrap", f"127.0.0.1:{one.port}"] if one is not node else []
            argv += [] if node.role == "miner" else ["--no-mine"]
            env = {"DIR": str(folder / node.name), "NETWORK": str(genesis), "KEY": ""}
            own = {f"POCQUEUE_POUW_{name}": value for name, value in env.items()}
            tree.add(node.name, argv, os.environ | own)
        tree.start()
        network = Testnet(folder, genesis, nodes)
        network.wait(lambda one: one["peer_count"] == len(nodes) - 1 and one["slot"] > 0)
        yield network
