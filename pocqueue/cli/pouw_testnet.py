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
from pocqueue.cli.output import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    columns,
    console,
    percent,
    print_error,
    print_json,
)

if TYPE_CHECKING:
    from pocqueue.processes.tree import ProcessTree

_LOOK_S = 1.0
_LINE_S = 5.0
_SHOWN_BLOCKS = 5


@dataclass(frozen=True)
class _Node:
    """One of the network's processes."""

    name: str
    role: str
    port: int
    http_port: int


def run(
    miners: Annotated[int, typer.Option(min=1, max=32, help="Nodes that train and mine.")] = 3,
    verifiers: Annotated[int, typer.Option(min=0, max=8, help="Nodes that check others.")] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="End by itself after that long [default: at Ctrl-C]."),
    ] = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Run one supervisor and some miners on loopback, and show how they get on.

    Nothing of it outlives the command. With --json one object is printed at the end. Exit code: 0 if all nodes
    agree at the end, 1 if they do not or one did not stay up.
    """
    from pocqueue.processes.tree import stop_signals

    roles = ["supervisor", *["miner"] * miners, *["verifier"] * verifiers]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocqueue-testnet-")))
        nodes = _places(roles)
        tree = stack.enter_context(_running(nodes, folder))
        with suppress(KeyboardInterrupt), stop_signals():
            failure = _watch(nodes, tree, seconds, shown=not as_json)
            if failure:
                print_error(failure)
                raise typer.Exit(EXIT_BAD_INPUT)
        found = _look(nodes)
    verdict = _verdict(found)
    if as_json:
        print_json({"nodes": found, "agreement": verdict})
    else:
        console().print(verdict["sentence"])
    if not verdict["agree"]:
        raise typer.Exit(EXIT_FAILED)


def _places(roles: list[str]) -> list[_Node]:
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
            nodes.append(_Node(f"{role}_{counts[role]:03d}", role, *ports))
    return nodes


@contextmanager
def _running(nodes: list[_Node], folder: Path) -> Iterator[ProcessTree]:
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
    nodes: list[_Node], tree: ProcessTree, limit_s: float | None, *, shown: bool
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
            found = _look(nodes)
            if live is not None:
                live.update(_table(found), refresh=True)
            elif time.monotonic() - said >= _LINE_S:
                said = time.monotonic()
                view.print(_line(found))
    return None


def _look(nodes: list[_Node]) -> list[dict[str, Any]]:
    """Return what each node says of itself; those that do not answer say nothing."""
    from pocqueue.cli.pouw_client import ask
    from pocqueue.pouw.errors import PouwError

    found = []
    for node in nodes:
        said: dict[str, Any] = {"node_id": node.name, "role": node.role, "is_running": False}
        with suppress(PouwError):
            said = ask(node.http_port, "status", timeout_s=5)
            said["blocks"] = ask(node.http_port, f"blocks?last={_SHOWN_BLOCKS}", timeout_s=5)
        found.append(said)
    return found


def _table(found: list[dict[str, Any]]) -> Any:
    from rich.console import Group

    table = columns(
        "node", "role", right=("height", "final", "slot", "links", "right", "mined", "earned")
    )
    for one in found:
        if not one["is_running"]:
            table.add_row(one["node_id"], one["role"], *[""] * 7)
            continue
        right = "" if one["accuracy"] is None else percent(one["accuracy"])
        table.add_row(
            *(
                one["node_id"],
                one["role"],
                f"{one['blockchain_height']}",
                f"{one['anchor_height']}",
            ),
            *(f"{one['slot']:,}", f"{one['peer_count']}", right, f"{one['stats']['blocks_mined']}"),
            f"{one['economics']['rewards_earned']:,.2f}",
        )
    names = {one["public_key"]: one["node_id"] for one in found if one["is_running"]}
    blocks: list[dict[str, Any]] = next((one["blocks"] for one in found if one.get("blocks")), [])
    won = [f"{one['height']} {names.get(one['miner'], one['miner'][:12])}" for one in blocks]
    last = f"last blocks: {', '.join(won) or 'none yet'}; coins of dev are worth nothing"
    return Group(table, last, "Ctrl-C ends it.")


def _line(found: list[dict[str, Any]]) -> str:
    up = [one for one in found if one["is_running"]]
    if not up:
        return "no node answers yet"
    accuracy = max((one["accuracy"] for one in up if one["accuracy"] is not None), default=None)
    right = "" if accuracy is None else f", {percent(accuracy)} right"
    heights = sorted({one["blockchain_height"] for one in up})
    shown = "/".join(map(str, heights))
    return f"{len(up)} nodes, height {shown}, slot {max(one['slot'] for one in up):,}{right}"


def _verdict(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Say whether the nodes have one history."""
    up = [one for one in found if one["is_running"]]
    silent = [one["node_id"] for one in found if not one["is_running"]]
    blocks: dict[int, set[str]] = {}
    for one in up:
        final = one["anchor_height"]
        for block in one["blocks"]:
            if block["height"] <= final:
                blocks.setdefault(block["height"], set()).add(block["id"])
    differ = sorted(height for height, ids in blocks.items() if len(ids) > 1)
    agree = bool(up) and not silent and not differ
    height = max((one["blockchain_height"] for one in up), default=0)
    sentence = f"{len(up)} nodes agree on one chain of {height} blocks."
    if silent:
        sentence = f"{', '.join(silent)} did not answer at the end."
    elif differ:
        sentence = f"Nodes have different final blocks at height {differ[0]}."
    return {"agree": agree, "height": height, "sentence": sentence}
