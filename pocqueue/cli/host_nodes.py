"""`pocqueue hosts token …` and `pocqueue hosts node …`: who may join, and who is there."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.host_store import open_store, tell
from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import columns, console, print_json, seconds
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.hosts.records import Node, NodeState

token_app = typer.Typer(help="Tokens with which machines join.", no_args_is_help=True)
node_app = typer.Typer(help="The machines that joined.", no_args_is_help=True)

NodeId = Annotated[str, typer.Argument(metavar="NODE", help="Its id, as `list` shows it.")]


@token_app.command("issue", short_help="Make a token for one machine.")
def token_issue(
    wallet: Annotated[
        str,
        typer.Option(help="Address of the Solana wallet that is paid; you say that it wants this."),
    ],
    env_file: EnvFile = None,
) -> None:
    """Make a token, which lets one machine join, once. It goes to standard output and is kept nowhere."""
    with open_store() as store:
        issued = store.owners.issue_token(wallet, proven=True, from_address="command line")
        left = seconds((issued.expires_ms - store.now_ms()) / 1000)
    console(stderr=True).print(
        f"The token is below; it is good for one machine within {left}, and is not shown again: "
        "`pocqueue agent --endpoint ws://HOST:3002 --token TOKEN`."
    )
    typer.echo(issued.token)


@node_app.command("list", short_help="List nodes.")
def node_list(
    wallet: Annotated[str | None, typer.Option(help="Of this wallet alone.")] = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """List the nodes: whose they are, what they have, whether they are there."""
    with open_store() as store:
        if wallet is not None:
            _check_address(wallet)
        nodes = [] if wallet is None else store.nodes.of_wallet(wallet)
        while wallet is None:
            page = store.nodes.listed(after=nodes[-1].id if nodes else None, limit=500)
            nodes += page
            if len(page) < 500:
                break
        busy, now_ms = store.presence.busy(), store.now_ms()
        status = {
            node.id: node.status(now_ms, store.offline_ms, busy=node.id in busy) for node in nodes
        }
    if as_json:
        print_json([_view(node, status[node.id]) for node in nodes])
        return
    if not nodes:
        console().print("No nodes. `pocqueue hosts token issue --wallet ADDRESS` lets one join.")
        return
    from rich.markup import escape

    about = ("host", "GPUs", "status")
    table = columns("node", "wallet", *about, right=("heard",), words=about)
    for node in nodes:
        stands = status[node.id] + ("" if node.proven else ", pay is held")
        words = (node.id, node.wallet, node.hostname, _gpus(node), stands)
        table.add_row(*map(escape, words), seconds(max(0, now_ms - node.last_ms) / 1000))
    console().print(table)
    console().print(f"{counted(len(nodes), 'node')}.")


@node_app.command("drain", short_help="Give a node nothing new.")
def node_drain(
    node: NodeId,
    undo: Annotated[bool, typer.Option("--undo", help="Give it jobs again.")] = False,
    env_file: EnvFile = None,
) -> None:
    """Let a node finish what it has, and give it nothing new until --undo: its owner cannot undo it."""
    _decide(node, "active" if undo else "draining", "drain")
    console().print(f"Node {node} {'gets jobs again' if undo else 'gets nothing new'}.")


@node_app.command("adopt", short_help="Say that a node is its wallet's own.")
def node_adopt(node: NodeId, env_file: EnvFile = None) -> None:
    """Say that a node is its wallet's own: it gets paid jobs, and what it has earned is held no more.

    For a node whose token was asked for without the wallet's signature: the first sign-in makes those of that wallet
    its own, later ones are held until their owner, on the page, or you say so. Nothing is paid by it: `hosts payout`
    does that.
    """
    from pocqueue.hosts.pay import hyper

    with open_store() as store:
        found = store.nodes.adopt(node, actor="admin")
        micro = store.ledger.earned_by_node(found.wallet).get(node, 0)
    console().print(
        f"Node {node} is wallet {found.wallet}'s own; what it has earned is not held: {hyper(micro)} HYPER."
    )


@node_app.command("ban", short_help="Ban a node or a wallet, for good.")
def node_ban(
    node: Annotated[str | None, typer.Argument(metavar="NODE", help="Its id.")] = None,
    wallet: Annotated[
        str | None, typer.Option(help="Instead of one node: a wallet with all of its nodes.")
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Ban a node for good: it loses its jobs, and what it was not paid yet. There is no way back."""
    from pocqueue.errors import SettingsError

    if (node is None) == (wallet is None):
        raise SettingsError("ban is for good: name one node, or a wallet with --wallet.")
    if node is not None:
        _decide(node, "banned", "end")
        console().print(f"Node {node} is banned.")
        return
    assert wallet is not None
    with open_store() as store:
        ids = store.owners.ban(wallet, actor="admin")
        nodes = [store.nodes.get(node_id) for node_id in ids]
    for one in nodes:
        _tell(one, "end")
    console().print(f"Wallet {wallet} is banned, with {counted(len(ids), 'node')}.")


def _check_address(wallet: str) -> None:
    """Refuse what is no wallet's address: it would be one that has no nodes."""
    from pocqueue.hosts import wallets

    wallets.public_key(wallet)


def _decide(node_id: str, state: NodeState, what: str) -> None:
    with open_store() as store:
        node = store.nodes.set_state(node_id, state, actor="admin")
    if state != "active":
        _tell(node, what)


def _tell(node: Node, what: str) -> None:
    from pocqueue.rounds.task_names import DELIVER_JOB, RELAY_PREFIX

    if node.relay is not None:
        tell(DELIVER_JOB, f"{RELAY_PREFIX}{node.relay}", what=what, node_id=node.id)


def _gpus(node: Node) -> str:
    alike = Counter(gpu.name if gpu.healthy else f"{gpu.name} (out)" for gpu in node.gpus)
    return ", ".join(f"{num} {name}" if num > 1 else name for name, num in alike.items()) or "none"


def _view(node: Node, status: str) -> dict[str, Any]:
    return {
        "id": node.id,
        "wallet": node.wallet,
        "proven": node.proven,
        "drained_by": node.drained_by,
        "hostname": node.hostname,
        "status": status,
        "gpus": [
            {"uuid": gpu.uuid, "name": gpu.name, "vram_mib": gpu.vram_mib, "healthy": gpu.healthy}
            for gpu in node.gpus
        ],
        "agent_version": node.agent_version,
        "address": node.address,
        "last_heard": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(node.last_ms / 1000)),
    }
