"""The `pocqueue` command: parsing and printing, one module a noun.

Nothing heavy is imported here or at the top of the command modules, so that `pocqueue --help`
answers at once; each command imports what it needs when it runs.
"""

from __future__ import annotations

import sys

import typer

from pocqueue.cli import (
    agent,
    bench,
    calibrate,
    delegation,
    demo,
    deploy,
    engine,
    gpus,
    hosts,
    node,
    pouw,
    redis,
    round as round_commands,
    scheduler,
    up,
    vllm,
)
from pocqueue.cli.output import EXIT_BAD_INPUT, print_error
from pocqueue.errors import PocqueueError

__all__ = ["app", "main"]

app = typer.Typer(
    name="pocqueue",
    help="Proof-of-compute rounds over any number of GPUs.",
    no_args_is_help=True,
    # Plain help: Rich's takes longer to import than everything else that `--help` does.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(round_commands.app, name="round", short_help="Start, watch, stop, validate rounds.")
app.add_typer(
    delegation.app, name="delegation", short_help="The big node: service, customers, sessions."
)
app.add_typer(engine.app, name="engine", short_help="Compare engines on the same nonces.")
app.add_typer(vllm.app, name="vllm", short_help="A vLLM server with the proof routes.")
app.add_typer(node.app, name="node", short_help="The small node: sign, send, delegate.")
app.add_typer(hosts.app, name="hosts", short_help="GPU hosts: machines of others that work here.")
app.add_typer(deploy.app, name="deploy", short_help="Provision a server over SSH.")
app.add_typer(pouw.app, name="pouw", short_help="The network of useful work.")
app.add_typer(redis.app, name="redis", short_help="The bundled Redis server.")
app.add_typer(agent.app, name="agent", short_help="This machine as a GPU host: agent, self-test.")
app.command("up", short_help="Start everything on this machine; Ctrl-C ends it.")(up.up)
app.command("demo", short_help="Run one short round, from nothing.")(demo.demo)
app.command("scheduler", short_help="Give nonce ranges to GPUs.")(scheduler.scheduler)
app.command("gpus", short_help="List the pool of GPUs.")(gpus.gpus)
app.command("bench", short_help="Measure one GPU: speed, time, best batch size.")(bench.bench)
app.command("calibrate", short_help="Find the r_target for a valid rate.")(calibrate.calibrate)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from pocqueue import __version__

        typer.echo(f"pocqueue {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors that a user can mend end it with one sentence and code 2."""
    try:
        app()
    except PocqueueError as exc:
        print_error(str(exc))
        sys.exit(EXIT_BAD_INPUT)
