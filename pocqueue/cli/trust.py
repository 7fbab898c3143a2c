"""`pocqueue node trust …`: big nodes that were caught cheating."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import columns, console, print_json

if TYPE_CHECKING:
    from pocqueue.node.trust import TrustFile

app = typer.Typer(
    help="Big nodes that were caught cheating, and are not used any more.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", short_help="List them.")
def list_cheats(as_json: Json = False, env_file: EnvFile = None) -> None:
    """List the big nodes that were caught cheating: when, in which session, and how."""
    from rich.markup import escape

    cheats = _file().read()
    if as_json:
        print_json([cheat.model_dump() for cheat in cheats])
        return
    if not cheats:
        console().print("No big node was caught cheating.")
        return
    table = columns("big node", "caught", "session", "how", words=("how",))
    for cheat in cheats:
        table.add_row(
            *map(escape, (cheat.url, cheat.caught, cheat.session_id[:64], cheat.reason[:200]))
        )
    console().print(table)


@app.command(short_help="Trust a big node again.")
def clear(
    url: Annotated[str | None, typer.Argument(help="Of the big node, as `list` shows it.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    env_file: EnvFile = None,
) -> None:
    """Trust a big node again, from the next session on; a running small node knows it at once."""
    from pocqueue.errors import SettingsError

    if (url is None) is not everyone:
        raise SettingsError("Name the URL of one big node, or give --all: one of them.")
    file = _file()
    cleared = file.clear(url)
    if not cleared and url is not None:
        names = ", ".join(cheat.url for cheat in file.read()) or "none"
        raise SettingsError(f"url is {url!r}, which was not caught; those that were: {names}.")
    console().print(
        f"Trusted again: {', '.join(cleared) or 'none, as none was caught'}.", markup=False
    )


def _file() -> TrustFile:
    from pocqueue.node.trust import TRUST_NAME, TrustFile
    from pocqueue.settings import Settings

    return TrustFile(Settings.load().state_dir / TRUST_NAME)
