"""`pocqueue pouw testnet`: real nodes of a network of their own, as processes on this machine, and a live table."""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import EXIT_FAILED, console, print_error, print_json
from pocqueue.cli.pouw_view import COMPARED_BLOCKS, SHOWN_BLOCKS, line, table, verdict

if TYPE_CHECKING:
    from pocqueue.processes.tree import ProcessTree

_LOOK_S = 1.0
_LINE_S = 5.0


@dataclass(frozen=True)
class Node:
    """One of the network's processes."""

    name: str
    role: str
    port: int
    http_port: int


def run(
    miners: Annotated[
        int, typer.Option(min=1, max=32, help="Nodes that train and mine, beside one supervisor.")
    ] = 3,
    verifiers: Annotated[int, typer.Option(min=0, max=8, help="Nodes that only check blocks.")] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="End by itself after that long [default: at Ctrl-C]."),
    ] = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Run a network of real nodes on this machine, one supervisor and some miners, and show how they get on.

    Each node is a process with a folder and a key of its own; they talk over loopback. Nothing outlives the command.
    On a terminal a table is renewed every second, elsewhere a line is printed every 5 s; with --json one object
    at the end. Exit code: 0 if all nodes have one history at the end, 1 if they do not, or one did not stay up.
    """
    from pocqueue.processes.tree import stop_signals

    roles = ["supervisor", *["miner"] * miners, *["verifier"] * verifiers]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocqueue-testnet-")))
        nodes = places(roles)
        tree = stack.enter_context(running(nodes, folder))
        with suppress(KeyboardInterrupt), stop_signals():
            failure = _watch(nodes, tree, seconds, shown=not as_json)
            if failure:
                print_error(failure)
                raise typer.Exit(EXIT_FAILED)
        found = look(nodes, COMPARED_BLOCKS)
    agreement = verdict(found)
    if as_json:
        print_json({"nodes": found, "agreement": agreement})
    else:
        console().print(agreement["sentence"])
    if not agreement["agree"]:
        raise typer.Exit(EXIT_FAILED)


def places(roles: list[str]) -> list[Node]:
    """Return nodes with free ports, each named by its role."""
    counts: dict[str, int] = {}
    nodes = []
    with ExitStack() as held:
        for role in roles:
            ports = []
            for _ in range(2):
                # All of them are held until the last one is found, so that none is found twice.
                sock = held.enter_context(socket.socket())
                sock.bind(("127.0.0.1", 0))
                ports.append(sock.getsockname()[1])
            counts[role] = counts.get(role, 0) + 1
            nodes.append(Node(f"{role}_{counts[role]:03d}", role, *ports))
    return nodes


@contextmanager
def running(nodes: list[Node], folder: Path) -> Iterator[ProcessTree]:
    """Run the nodes' processes within the block; each begins with the first one, the supervisor."""
    import os

    from pocqueue.processes.tree import ProcessTree, log_files

    program = [sys.executable, "-m", "pocqueue", "pouw", "node", "--host", "127.0.0.1"]
    with ProcessTree(sink=log_files(folder / "logs"), stop_timeout_s=10) as tree:
        for node in nodes:
            argv = [*program, "--node-id", node.name, "--role", node.role]
            argv += ["--port", str(node.port), "--http-port", str(node.http_port)]
            argv += ["--bootstrap", f"127.0.0.1:{nodes[0].port}"]
            env = {**os.environ, "POCQUEUE_POUW_DIR": str(folder / node.name)}
            tree.add(
                node.name, argv, {**env, "POCQUEUE_POUW_KEY": "", "POCQUEUE_POUW_NETWORK": "dev"}
            )
        tree.start()
        yield tree


def _watch(
    nodes: list[Node], tree: ProcessTree, limit_s: float | None, *, shown: bool
) -> str | None:
    """Show the nodes until time is up; return why one did not stay up."""
    from rich.live import Live

    view = console()
    began = said = time.monotonic()
    with ExitStack() as stack:
        live = None
        if shown and view.is_terminal:
            live = stack.enter_context(Live(console=view, auto_refresh=False))
        while limit_s is None or time.monotonic() - began < limit_s:
            failure = tree.wait(_LOOK_S)
            if failure is not None:
                return failure.message
            if not shown:
                continue
            found = look(nodes)
            if live is not None:
                live.update(
                    table(found, width=view.width, up_s=time.monotonic() - began), refresh=True
                )
            elif time.monotonic() - said >= _LINE_S:
                said = time.monotonic()
                view.print(line(found))
    return None


def look(nodes: list[Node], num_blocks: int = SHOWN_BLOCKS) -> list[dict[str, Any]]:
    """Return what each node says of itself and of its newest blocks; those that do not answer say nothing."""
    from pocqueue.cli.pouw_client import ask
    from pocqueue.pouw.errors import PouwError

    found = []
    for node in nodes:
        said: dict[str, Any] = {"node_id": node.name, "role": node.role, "is_running": False}
        with suppress(PouwError):
            blocks = ask(node.http_port, f"blocks?last={num_blocks}", timeout_s=5)
            said = {**ask(node.http_port, "status", timeout_s=5), "blocks": blocks}
        found.append({**said, "port": node.port})
    return found
