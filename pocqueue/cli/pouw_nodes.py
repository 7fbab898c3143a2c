"""The nodes of `pocqueue pouw testnet`: processes of this machine, with a folder and a key each."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocqueue.cli.pouw_client import ask
from pocqueue.cli.pouw_view import SHOWN_BLOCKS

if TYPE_CHECKING:
    from pocqueue.processes.tree import ProcessTree

#: Numbers of a network with several supervisors, and of one under chaos, unlike `dev`'s: its committee is in office after
#: twenty blocks, not after minutes, and what is shown of a cheat is soon final.
QUICK = {
    "block_ms": 2_000,
    "halflife_ms": 40_000,
    "first_target_bits": 249,
    "reveal_blocks": 10,
    "result_blocks": 10,
}
#: A node that is on purpose stopped answers nothing.
_PATIENCE_S = 3.0


@dataclass(frozen=True)
class Node:
    """One of the network's processes."""

    name: str
    role: str
    port: int
    http_port: int


def places(roles: Sequence[str]) -> list[Node]:
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


def found_network(
    nodes: Sequence[Node], folder: Path, numbers: Mapping[str, int] | None = None
) -> str:
    """Return the network of these nodes: `dev` for one supervisor, for more the path of a file that names them all.

    Their keys are made in their folders.

    Args:
        nodes: of `places`.
        folder: for the file and the nodes' folders.
        numbers: of its genesis, where it is not like `dev`; then it is a network of its own with one supervisor too.
    """
    from importlib.resources import files

    from pocqueue.node.keys import SigningKey
    from pocqueue.pouw.files import NODE_KEY

    supervisors = [node for node in nodes if node.role == "supervisor"]
    if len(supervisors) == 1 and numbers is None:
        return "dev"
    accounts = []
    for node in supervisors if len(supervisors) > 1 else []:
        key = SigningKey.generate()
        (folder / node.name).mkdir(mode=0o700)
        key.save_pem(folder / node.name / NODE_KEY)
        accounts.append(f'"{key.public_hex}"')
    text = files("pocqueue.pouw.chain").joinpath("dev.toml").read_text("utf-8")
    own = QUICK if numbers is None else numbers
    values = {"name": '"testnet"', "supervisors": f"[{', '.join(accounts)}]", **own}
    for name, value in values.items():
        text, num = re.subn(rf"(?m)^({name} = )[^#\n]*", rf"\g<1>{value}", text)
        assert num == 1, name
    genesis = folder / "testnet.toml"
    genesis.write_text(text, "utf-8")
    return str(genesis)


@contextmanager
def running(
    nodes: Sequence[Node], folder: Path, network: str, *, has_chaos: bool = False
) -> Iterator[ProcessTree]:
    """Run the nodes' processes within the block; each begins with the supervisors.

    Args:
        nodes: of `places`.
        folder: for their folders and logs.
        network: of `found_network`.
        has_chaos: they can be told to fail and to cheat, and those that are killed come again, however often.
    """
    import os

    from pocqueue.pouw.chaos.plan import RESTART_S
    from pocqueue.processes.child import RestartPolicy
    from pocqueue.processes.tree import ProcessTree, log_files

    program = [sys.executable, "-m", "pocqueue", "pouw", "node"]
    restarts = RestartPolicy()
    if has_chaos:
        program = [sys.executable, "-m", "pocqueue.pouw.chaos.node"]
        restarts = RestartPolicy(RESTART_S, RESTART_S, max_restarts=1_000)
    tree = ProcessTree(sink=log_files(folder / "logs"), stop_timeout_s=10, restarts=restarts)
    with tree:
        for node in nodes:
            argv = [*program, "--host", "127.0.0.1", "--node-id", node.name, "--role", node.role]
            argv += ["--port", str(node.port), "--http-port", str(node.http_port)]
            for one in nodes:
                if one.role == "supervisor" and one is not node:
                    argv += ["--bootstrap", f"127.0.0.1:{one.port}"]
            own = {"DIR": str(folder / node.name), "KEY": "", "NETWORK": network}
            settings = {f"POCQUEUE_POUW_{name}": value for name, value in own.items()}
            tree.add(node.name, argv, {**os.environ, **settings})
        tree.start()
        yield tree


def look(
    nodes: Sequence[Node], num_blocks: int = SHOWN_BLOCKS, num_slots: int = 1
) -> list[dict[str, Any]]:
    """Return what each node says of itself and of its newest blocks and slots; those that do not answer say nothing."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(lambda node: _said(node, num_blocks, num_slots), nodes))


def _said(node: Node, num_blocks: int, num_slots: int) -> dict[str, Any]:
    from pocqueue.pouw.errors import PouwError

    said: dict[str, Any] = {"node_id": node.name, "role": node.role, "is_running": False}
    with suppress(PouwError):
        status = ask(node.http_port, "status", timeout_s=_PATIENCE_S)
        blocks = ask(node.http_port, f"blocks?last={num_blocks}", timeout_s=_PATIENCE_S)
        slots = ask(node.http_port, f"slots?last={num_slots}", timeout_s=_PATIENCE_S)
        said = {**status, "blocks": blocks, "slots": slots}
    return {**said, "port": node.port}
