"""`pocqueue hosts …`: GPU hosts, their gateway, nodes, jobs and pay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocqueue.cli import host_jobs, host_money, host_nodes
from pocqueue.cli.options import EnvFile, Host, PemFile, Port
from pocqueue.cli.output import console

if TYPE_CHECKING:
    from pocqueue.cli.up import PrefixedLines
    from pocqueue.local_stack import LocalStack

app = typer.Typer(
    help="GPU hosts: machines join with a token, work and are paid.", no_args_is_help=True
)
app.add_typer(host_nodes.token_app, name="token", short_help="Tokens with which machines join.")
app.add_typer(host_nodes.node_app, name="node", short_help="The machines that joined.")
app.add_typer(host_jobs.app, name="job", short_help="Submit, list, show, cancel jobs.")
app.command("audit", short_help="Compare the ledger with what it is about.")(host_money.audit)
app.command("payout", short_help="Show or make payouts.")(host_money.payout)


@app.command(short_help="Serve owners and their machines.")
def serve(
    host: Host = None,
    port: Port = None,
    ws_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Second port, which agents know, instead of the setting."
        ),
    ] = None,
    tls_cert: PemFile = None,
    tls_key: PemFile = None,
    env_file: EnvFile = None,
) -> None:
    """Serve GPU hosts, with all that it takes on this machine: Redis (if no URL is set), a scheduler, a gateway.

    The gateway alone is `celery -A pocqueue worker -Q relay.NAME,hosts`; `pocqueue up --hosts` has it beside GPU
    workers. Exit code: 0 after Ctrl-C or SIGTERM, 1 if a process did not stay up, 2 for bad input, 130 if a second
    Ctrl-C cut the stopping short.
    """
    from pocqueue.cli.up import run_stack
    from pocqueue.settings import HostsSettings, Settings

    hosts = HostsSettings.override(
        host=host, port=port, ws_port=ws_port, tls_cert=tls_cert, tls_key=tls_key
    )
    scheme = "http" if hosts.tls_cert is None else "https"

    def describe(_stack: LocalStack, lines: PrefixedLines) -> None:
        from pocqueue.web.listener import url_of

        url = url_of(hosts.host, hosts.port).replace("http", scheme, 1)
        agents = url_of(hosts.host, hosts.ws_port).replace("http", scheme.replace("http", "ws"), 1)
        lines("pocqueue", f"GPU hosts: {url}, and agents at {agents}")
        lines("pocqueue", "Ctrl-C ends everything.")

    run_stack(Settings.load(), describe, gpus=0, flower=False, hosts=True)


@app.command(short_help="Bring the database's tables to this version.")
def migrate(env_file: EnvFile = None) -> None:
    """Bring the tables of the database to this version, in one transaction.

    PostgreSQL needs it once for each new version, with the services stopped; a SQLite file gets them by itself.
    Exit code: 2 if the database cannot be used.
    """
    from pocqueue.errors import SettingsError
    from pocqueue.settings import HostsSettings, Settings

    try:
        from pocqueue.hosts.migrations import HEAD
        from pocqueue.hosts.store import database_url
        from pocqueue.hosts.store.database import Database
    except ImportError as exc:
        raise SettingsError(
            f"GPU hosts take more packages ({exc}): pip install 'pocqueue[hosts]'."
        ) from None
    with Database(database_url(Settings.load(), HostsSettings.load())) as database:
        before = database.migrate()
        name = database.name
    if before == HEAD:
        console().print(f"{name} has version {HEAD} already.")
    else:
        console().print(f"{name} has version {HEAD} now (before: {before or 'none'}).")
