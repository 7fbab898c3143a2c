"""`pocqueue node outbox …`: batches and verdicts that their receiver has not taken."""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import (
    EXIT_BAD_INPUT,
    columns,
    console,
    print_error,
    print_json,
    seconds,
)
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.node.outbox import Outbox

app = typer.Typer(
    help="The small node's outbox: what its receivers have not taken. The node may be running.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Ids = Annotated[list[int] | None, typer.Argument(metavar="ID", help="As `list` shows them.")]


@app.command("list", short_help="List what was refused, is held, or waits in vain.")
def list_messages(
    everything: Annotated[
        bool, typer.Option("--all", help="Also what waits and was not tried yet.")
    ] = False,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """List the messages that their receiver has refused, that are held after fraud, or that wait in vain."""
    with _outbox() as outbox:
        found = [] if outbox is None else outbox.listed()
    shown = [one for one in found if everything or one["state"] != "waiting" or one["attempts"]]
    if as_json:
        print_json(shown)
        return
    names = ("id", "state", "kind", "receiver", "why")
    table = columns(*names, right=("nonces", "tries", "age"), words=("why",))
    for one in shown:
        table.add_row(*_row(one))
    if shown:
        console().print(table)
    typer.echo(f"{len(shown):,} of {counted(len(found), 'message')} in the outbox.")


@app.command(short_help="Send refused messages again.")
def resend(ids: Ids = None, env_file: EnvFile = None) -> None:
    """Send refused messages again, of these ids or all of them: once their receiver was mended.

    A running node does so within some seconds, else the next one that is started. What is held after fraud
    is never sent. Exit code: 2 if one of the ids is not that of a refused message; nothing is changed then.
    """
    with _outbox() as outbox:
        count = 0 if outbox is None else outbox.resend(ids or [])
    typer.echo(f"To be sent again: {counted(count, 'message')}.")


@app.command(short_help="Remove messages that are not to be sent any more.")
def drop(
    ids: Ids = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All that were refused or are held.")
    ] = False,
    env_file: EnvFile = None,
) -> None:
    """Remove messages for ever, of these ids (which may wait still) or all that were refused or are held.

    Exit code: 2 if there is no message with one of the ids; nothing is changed then.
    """
    if bool(ids) == everything:
        print_error("drop removes for ever: name the ids of messages, or say --all.")
        raise typer.Exit(EXIT_BAD_INPUT)
    with _outbox() as outbox:
        count = 0 if outbox is None else outbox.drop(ids or [])
    typer.echo(f"Removed: {counted(count, 'message')}.")


def _outbox() -> closing[Outbox] | nullcontext[None]:
    """Open the outbox beside a node that may be running; None: there is none."""
    from pocqueue.node.outbox import OUTBOX_NAME, Outbox
    from pocqueue.settings import Settings

    path = Settings.load().state_dir / OUTBOX_NAME
    return closing(Outbox(path, beside_owner=True)) if path.exists() else nullcontext()


def _row(one: dict[str, Any]) -> list[str]:
    from rich.markup import escape

    age = seconds(max(0.0, time.time() - one["created_s"]))
    words = (str(one["id"]), one["state"], one["kind"], one["receiver"], one["error"])
    numbers = (f"{one['nonces']:,}", f"{one['attempts']:,}", age)
    return [escape(text) for text in (*words, *numbers)]
