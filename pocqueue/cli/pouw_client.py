"""What commands of `pocqueue pouw` ask a node on this machine, and orders that they send as nodes of their own."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import EXIT_FAILED, console, facts, interruptible, percent, print_json
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.pouw.blockchain import MLTask
    from pocqueue.pouw.node import PoUWNode

task_app = typer.Typer(help="Models that the network trains for you.", no_args_is_help=True)

HttpPort = Annotated[
    int | None,
    typer.Option(
        min=0, max=65535, help="Port of the node's HTTP on 127.0.0.1, instead of the setting."
    ),
]

_TYPES = {"digits": "image_classification", "words": "text_classification"}
_LOOK_S = 1.0
#: A line is said at least this often while an order is watched.
_LINE_S = 10.0


def ask(http_port: int | None, path: str, *, post: bool = False, timeout_s: float = 60.0) -> Any:
    """Return what the node on this machine answers.

    Raises:
        PouwError: none answers there, or it refuses.
    """
    import httpx

    from pocqueue.pouw.errors import PouwError
    from pocqueue.settings import PouwSettings

    port = PouwSettings.load().http_port if http_port is None else http_port
    url = f"http://127.0.0.1:{port}/api/{path}"
    try:
        reply = httpx.request("POST" if post else "GET", url, timeout=timeout_s, trust_env=False)
        answer = reply.json()
    except (httpx.HTTPError, ValueError):
        raise PouwError(
            f"No node answers at 127.0.0.1:{port}: start one with `pocqueue pouw node`, or name its port with "
            "--http-port."
        ) from None
    if reply.status_code != 200:
        raise PouwError(str(answer.get("detail", answer) if isinstance(answer, dict) else answer))
    return answer


def short(hex_id: str) -> str:
    """Return the beginning of an id, enough to tell it from others on a screen."""
    return hex_id[:12]


@task_app.command("submit", short_help="Order a model and pay for it.")
def submit(
    data: Annotated[str, typer.Argument(help="digits or words.")],
    reward: Annotated[
        float, typer.Option(min=0, help="PAI for a model as good as asked for.")
    ] = 50.0,
    fee: Annotated[float, typer.Option(min=0, help="PAI on top, for the training itself.")] = 5.0,
    name: Annotated[
        str | None, typer.Option(help="Your name for it [default: DATA and the time].")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="MLP, CNN or BAG [default: by the data].")
    ] = None,
    min_accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="Share of right answers asked for.")
    ] = 0.9,
    max_epochs: Annotated[int, typer.Option(min=1, help="Laps of training at most.")] = 100,
    minutes: Annotated[float, typer.Option(min=1, help="It has to be done by then.")] = 60.0,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT of a node [default on dev: 127.0.0.1:8000]."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it is settled.")] = False,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Order a model, as a node of its own that leaves again: its reward and fee go into escrow.

    The account is that of POCQUEUE_POUW_KEY, or of `client-key.pem` in the node's folder. On `dev` it takes what it needs
    from the faucet. Exit code: 0, 1 if the task was not taken or came to nothing, 2 for bad input, 130 after Ctrl-C.
    """
    from pocqueue.pouw.blockchain import MLTask
    from pocqueue.pouw.errors import ConfigError

    if data not in _TYPES:
        raise ConfigError("data", data, "digits or words")
    requirements: dict[str, Any] = {"min_accuracy": min_accuracy, "max_epochs": max_epochs}
    if architecture is not None:
        requirements["architecture"] = architecture
    task = MLTask(
        task_id=name or f"{data}_{int(time.time())}",
        task_type=_TYPES[data],
        dataset_hash=data,
        model_requirements=requirements,
        reward_amount=reward,
        deadline=int(time.time() + minutes * 60),
    )
    with interruptible():
        found = asyncio.run(_order(_client(bootstrap or [], reward + fee), task, fee, watch=watch))
    if as_json:
        print_json(found)
    if found["state"] in {"refused", "refunded"}:
        raise typer.Exit(EXIT_FAILED)


def _client(bootstrap: list[str], stake: float) -> PoUWNode:
    from pocqueue.pouw.config import NodeConfig, parse_peer
    from pocqueue.pouw.economics import NodeRole
    from pocqueue.pouw.files import CLIENT_KEY, account_key, data_dir
    from pocqueue.pouw.node import PoUWNode
    from pocqueue.settings import PouwSettings

    settings = PouwSettings.load()
    config = NodeConfig(
        node_id="client",
        role=NodeRole.PEER,
        port=0,
        # What the faucet is asked for, where there is one.
        initial_stake=stake,
        bootstrap_peers=[parse_peer(one) for one in bootstrap],
        network=settings.network,
        key=account_key(settings, data_dir(settings), CLIENT_KEY),
    )
    return PoUWNode("client", NodeRole.PEER, config=config)


async def _order(client: PoUWNode, task: MLTask, fee: float, *, watch: bool) -> dict[str, Any]:
    """Send an order; return what the chain says of it, at the end if it is to be watched."""
    view, said, said_at = console(stderr=True), "", 0.0
    await client.start()
    try:
        if not await client.submit_task(task, fee):
            return {"name": task.task_id, "state": "refused"}
        view.print(f"{task.task_id}: sent; {task.reward_amount + fee:g} PAI go into escrow.")
        while True:
            found = await client.views.task(task.task_id)
            if found["state"] != said or time.monotonic() - said_at >= _LINE_S:
                view.print(_line(found), markup=False)
                said, said_at = found["state"], time.monotonic()
            if not watch or found["state"] in {"settled", "refunded"}:
                break
            await asyncio.sleep(_LOOK_S)
        if found["state"] == "settled":
            _print_payout(found)
        return found
    finally:
        await client.stop()


def _line(found: dict[str, Any]) -> str:
    accuracy = "" if found["accuracy"] is None else f", accuracy {percent(found['accuracy'])}"
    return f"{found['name']}: {found['state']}, {counted(found['slots'], 'slot')}{accuracy}"


def _print_payout(found: dict[str, Any]) -> None:
    rows = [(one["account"], f"{one['amount']:,.6f} PAI  {one['for']}") for one in found["payouts"]]
    console(stderr=True).print(facts([("who", "got what, for what"), *rows]))
