"""`pocqueue pouw …`: a node of the network of useful work, and questions to one that runs here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli import pouw_security, pouw_testnet
from pocqueue.cli.options import EnvFile, Json, Watch
from pocqueue.cli.output import (
    EXIT_FAILED,
    columns,
    console,
    facts,
    percent,
    plain,
    print_json,
    seconds,
    show_status,
)
from pocqueue.cli.pouw_client import HttpPort, ask, short, task_app
from pocqueue.cli.pouw_spend import send, ticket_app
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.pouw.node import PoUWNode

app = typer.Typer(
    help="The network of useful work: nodes train models together and get blocks out of it. "
    "`pocqueue pouw testnet` shows one on this machine; docs/pouw.md explains it.",
    no_args_is_help=True,
)


@app.callback()
def _root() -> None:
    from pocqueue.pouw.packages import check_packages

    check_packages()


app.add_typer(task_app, name="task", short_help="Order a model to be trained.")
app.add_typer(ticket_app, name="ticket", short_help="Give the node's ticket back.")
app.command("testnet", short_help="A whole network on this machine; Ctrl-C ends it.")(
    pouw_testnet.run
)


@app.command(short_help="Run a node; Ctrl-C ends it.")
def node(
    role: Annotated[
        str,
        typer.Option(
            help="miner (trains), supervisor (certifies, and trains), verifier (trains others' messages over), evaluator "
            "(judges clients' models), peer (passes on)."
        ),
    ] = "miner",
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST:PORT of a node to begin with; may be given again [default on dev: 127.0.0.1:8000]."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on for other nodes.")] = "localhost",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    node_id: Annotated[
        str | None, typer.Option(help="A name of its own [default: ROLE_PORT].")
    ] = None,
    stake: Annotated[
        float, typer.Option(min=0, help="PAI of its ticket; taken if it has none yet.")
    ] = 100.0,
    no_mine: Annotated[
        bool, typer.Option("--no-mine", help="Take a ticket, but train nothing.")
    ] = False,
    http_port: HttpPort = None,
    env_file: EnvFile = None,
) -> None:
    """Run a node until Ctrl-C; started again, it goes on from its folder (POCQUEUE_POUW_DIR).

    It takes a ticket of its role if it has none, and mines if its role may; on `dev` a faucet gives it the coins. Several on
    one machine take a folder, a --port and an --http-port each. Exit code: 0 after Ctrl-C or SIGTERM, 2 for bad input.
    """

    from pocqueue.logs import log_to_stderr
    from pocqueue.pouw.service import make_node_app
    from pocqueue.settings import PouwSettings
    from pocqueue.web.listener import listen
    from pocqueue.web.serve import serve

    settings = PouwSettings.override(http_port=http_port)
    log_to_stderr("INFO")
    made = _make_node(settings, role, bootstrap or [], host, port, node_id, stake)
    prefix, otherwise = PouwSettings.variable("http_"), "choose another with --http-port"
    listener = listen("127.0.0.1", settings.http_port, prefix, otherwise=otherwise)
    service = make_node_app(made, stake=stake, mine=not no_mine)
    serve(service, listener)
    if service.state.failure is not None:
        raise service.state.failure


@app.command(short_help="How a node stands.")
def status(
    http_port: HttpPort = None,
    watch: Watch = False,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Show how the node on this machine stands."""
    show_status(lambda: ask(http_port, "status"), _render_status, watch=watch, as_json=as_json)


@app.command(short_help="Its links.")
def peers(http_port: HttpPort = None, as_json: Json = False, env_file: EnvFile = None) -> None:
    """Show the nodes that the node on this machine is linked to."""
    found = ask(http_port, "peers")
    if as_json:
        print_json(found)
        return
    if not found:
        console().print("No links. Name a node with --bootstrap HOST:PORT when this one starts.")
        return
    table = columns("node", "role", "address", "account", right=("ping", "since"))
    for peer in found:
        host = f"[{peer['host']}]" if ":" in peer["host"] else peer["host"]
        table.add_row(
            peer["node_id"],
            peer["role"],
            f"{host}:{peer['port']}",
            peer["account"],
            "" if peer["rtt_s"] is None else f"{peer['rtt_s'] * 1000:.1f} ms",
            seconds(peer["age_s"]),
        )
    console().print(table)


@app.command(short_help="What clients have ordered.")
def tasks(http_port: HttpPort = None, as_json: Json = False, env_file: EnvFile = None) -> None:
    """Show the clients' tasks: what was ordered, how far it is, who was paid."""
    found = ask(http_port, "tasks")
    if as_json:
        print_json(found)
        return
    if not found:
        console().print("No tasks. `pocqueue pouw task submit digits --reward 50` orders one.")
        return
    table = columns("task", "name", "data", right=("reward", "slots", "accuracy"), words=("name",))
    table.add_column("state")
    for task in found:
        right = "" if task["accuracy"] is None else percent(task["accuracy"])
        table.add_row(
            *plain(short(task["id"]), task["name"], short(task["data"]), f"{task['reward']:g}"),
            *(f"{task['slots']:,}", right, task["state"]),
        )
    console().print(table)


app.command(short_help="Who certifies, and who of them is away.")(pouw_security.committee)
app.command(short_help="What the node has noticed about others.")(pouw_security.alerts)
app.command(short_help="What somebody was punished for.")(pouw_security.evidence)


@app.command(short_help="What an account owns.")
def balance(
    account: Annotated[
        str | None, typer.Argument(help="66 hex digits [default: the node's own].")
    ] = None,
    http_port: HttpPort = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Show an account's coins, stakes and tickets."""
    from pocqueue.pouw.errors import ConfigError

    if account is None:
        account = ask(http_port, "status")["public_key"]
    elif not re.fullmatch("0[23][0-9a-fA-F]{64}", account):
        raise ConfigError(
            "account", account, "66 hex digits, a public key as `pocqueue pouw status` shows it"
        )
    found = ask(http_port, f"accounts/{str(account).lower()}")
    if as_json:
        print_json(found)
        return
    rows = [
        ("account", found["account"]),
        ("balance", f"{found['balance']:,.6f} PAI"),
        ("staked", f"{found['staked']:,.6f} PAI"),
    ]
    rows += [
        (one["role"], f"ticket {one['id']}, {one['stake']:g} PAI, {one['state']}")
        for one in found["tickets"]
    ]
    console().print(facts(rows))


app.command(short_help="Send coins of the node's account.")(send)


@app.command(short_help="A block and its proof, line by line.")
def block(
    height: Annotated[int, typer.Argument(min=1, help="Of the chain that the node follows.")],
    http_port: HttpPort = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Show a block and its proof line by line: what the node has checked, with what result."""
    found = ask(http_port, f"blocks/{height}")
    if as_json:
        print_json(found)
        return
    _print_block(found)


@app.command(short_help="Check a block again, its training too.")
def verify(
    height: Annotated[int, typer.Argument(min=1, help="Of the chain that the node follows.")],
    http_port: HttpPort = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Let the node check a block again: every rule, and the winner's training by doing it over.

    Exit code: 0 if it holds, 1 if it does not or nobody can tell any more, 2 for bad input.
    """
    found = ask(http_port, f"blocks/{height}/verify", post=True)
    if as_json:
        print_json(found)
    else:
        _print_block(found)
    if not found["is_valid"]:
        raise typer.Exit(EXIT_FAILED)


def _print_block(found: dict[str, Any]) -> None:
    view = console()
    rows = [
        ("block", f"{found['height']}  {found['id']}"),
        ("parent", found["parent"]),
        ("time", found["time"]),
        ("miner", f"{found['miner']} lane {found['lane']}"),
        ("proof", found["proof"]),
        ("transactions", counted(len(found["transactions"]), "transaction")),
        ("final", "yes" if found["is_final"] else "not yet"),
    ]
    view.print(facts(rows))
    table = columns("checked", "result", "of what", words=("of what",))
    for check in found["checks"]:
        table.add_row(
            check["rule"],
            {True: "holds", False: "FAILS", None: "not checked"}[check["holds"]],
            *plain(check["what"]),
        )
    view.print(table)


def _render_status(found: dict[str, Any]) -> Any:
    economics = found["economics"]
    accuracy = "" if found["accuracy"] is None else f", accuracy {percent(found['accuracy'])}"
    task = f"{found['task_name']} slot {found['slot']:,}{accuracy}"
    rows = [
        ("node", f"{found['node_id']}  {found['role']}  on {found['network']}"),
        ("account", found["public_key"]),
        ("chain", f"height {found['blockchain_height']}, final up to {found['anchor_height']}"),
        ("task", task if found["current_task"] else "none"),
        ("mining", "yes" if found["is_mining"] else "no"),
        ("links", f"{found['peer_count']}"),
        ("mempool", counted(found["mempool_size"], "transaction")),
        ("coins", f"{economics['balance']:g} PAI, {economics['stake_amount']:g} staked"),
        ("mined", f"{counted(found['stats']['blocks_mined'], 'block')} since its start"),
        ("earned", f"{economics['rewards_earned']:g} PAI since its start"),
        ("alerts", f"{found['security_alerts']}"),
        ("up", seconds(found["uptime"])),
    ]
    return facts(rows)


def _make_node(
    settings: Any,
    role: str,
    bootstrap: list[str],
    host: str,
    port: int,
    node_id: str | None,
    stake: float,
) -> PoUWNode:
    from pocqueue.pouw.config import NodeConfig, parse_peer
    from pocqueue.pouw.economics import NodeRole
    from pocqueue.pouw.errors import ConfigError
    from pocqueue.pouw.files import NODE_KEY, account_key, data_dir
    from pocqueue.pouw.node import PoUWNode

    if role not in {one.value for one in NodeRole}:
        raise ConfigError("--role", role, ", ".join(one.value for one in NodeRole))
    folder = data_dir(settings)
    config = NodeConfig(
        node_id=node_id or f"{role}_{port}",
        role=NodeRole(role),
        host=host,
        port=port,
        initial_stake=stake,
        bootstrap_peers=[parse_peer(one) for one in bootstrap],
        network=settings.network,
        data_dir=folder,
        key=account_key(settings, folder, NODE_KEY),
        data_mib=settings.data_mib,
    )
    return PoUWNode(config.node_id, config.role, config=config)
