"""`pocqueue redis`: the bundled Redis server of this machine's state folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocqueue.cli.output import EXIT_FAILED

if TYPE_CHECKING:
    from pocqueue.rounds.redis_server import RedisServer

app = typer.Typer(
    help="The bundled Redis server, used if POCQUEUE_REDIS_URL is not set.",
    no_args_is_help=True,
)


@app.command()
def start() -> None:
    """Start the server in the background, unless it runs."""
    server = _server()
    verb = "started" if server.ensure() else "runs already"
    typer.echo(f"Redis {verb}: {server.url}")


@app.command()
def stop() -> None:
    """Stop the server after it has written everything."""
    from pocqueue.errors import ProcessError
    from pocqueue.processes.stack_lock import stack_pid

    server = _server()
    if (pid := stack_pid(server.state_dir)) is not None:
        raise ProcessError(
            f"`pocqueue up` (process {pid}) needs this Redis and would start it again: "
            "end that with Ctrl-C, which stops Redis as well."
        )
    typer.echo("Redis stopped." if server.stop() else "Redis did not run.")


@app.command(short_help="Say whether it runs, and its URL.")
def status() -> None:
    """Say whether the server runs and its URL; exit code 1 if it does not."""
    server = _server()
    running = server.is_running()
    typer.echo(f"Redis {'runs' if running else 'does not run'}: {server.url}")
    if not running:
        raise typer.Exit(EXIT_FAILED)


@app.command(short_help="Keep it running in the foreground.")
def run(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server running at the end.")
    ] = False,
) -> None:
    """Keep the server running in the foreground until Ctrl-C; start it again if it ends."""
    from pocqueue.rounds.redis_server import keep_redis

    keep_redis(_server(), lambda text: typer.echo(f"Redis {text}"), keep=keep)


def _server() -> RedisServer:
    from pocqueue.errors import SettingsError
    from pocqueue.rounds.redis_server import RedisServer
    from pocqueue.rounds.refusals import shown_url
    from pocqueue.settings import Settings

    settings = Settings.load()
    if settings.redis_url is not None:
        raise SettingsError(
            "POCQUEUE_REDIS_URL is set, so the server at "
            f"{shown_url(settings.redis_url.get_secret_value())} is used and there is none of ours "
            "to manage: unset it to use the bundled one."
        )
    return RedisServer(settings.state_dir)
