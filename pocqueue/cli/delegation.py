"""`pocqueue delegation …`: the big node's service, its customers and its sessions."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import EnvFile, Host, Json, PemFile, Port, Watch
from pocqueue.cli.output import columns, console, print_json, seconds, show_status
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.delegation.customers import TokensFile
    from pocqueue.settings import DelegationSettings

app = typer.Typer(
    help="The big node: its service, its customers, its sessions.", no_args_is_help=True
)
token_app = typer.Typer(help="Customers with tokens of their own.", no_args_is_help=True)
app.add_typer(token_app, name="token", short_help="Add, list, revoke customers' tokens.")


@app.command(short_help="Serve sessions to small nodes.")
def serve(
    host: Host = None,
    port: Port = None,
    tls_cert: PemFile = None,
    tls_key: PemFile = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1,
    env_file: EnvFile = None,
) -> None:
    """Serve the delegation API: small nodes start sessions here and fetch their batches.

    Needs DELEGATION_AUTH_TOKEN, 16 characters or more. Exit code: 0 after Ctrl-C or SIGTERM, 2 for
    bad input.
    """
    from pocqueue.delegation.app import serve as run
    from pocqueue.settings import DelegationSettings, Settings

    delegation = DelegationSettings.override(
        host=host, port=port, tls_cert=tls_cert, tls_key=tls_key
    )
    run(Settings.load(), delegation, num_processes=workers)


@app.command(short_help="Show sessions.")
def status(
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask the service there, with DELEGATION_AUTH_TOKEN, for the sessions of that token. "
            "[default: read all sessions from the store]"
        ),
    ] = None,
    watch: Watch = False,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Show the sessions of the last hour: whose they are, how they stand, what they found."""
    from pocqueue.settings import DelegationSettings

    delegation = DelegationSettings.load()
    look = partial(_from_store, delegation) if url is None else partial(_over_http, url, delegation)
    show_status(look, _render, watch=watch, as_json=as_json)


@token_app.command("add", short_help="Add a customer and print its token, once.")
def token_add(
    name: Annotated[str, typer.Argument(help="The customer: letters, digits, `.`, `_`, `-`.")],
    sessions: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Most sessions at a time. [default: as many as all customers together may have]",
        ),
    ] = None,
    share: Annotated[
        float,
        typer.Option(min=0.01, max=100, help="Weight of its sessions when GPUs are shared out."),
    ] = 1.0,
    env_file: EnvFile = None,
) -> None:
    """Add a customer. Its token goes to standard output and is kept nowhere; a running service knows it at once."""
    tokens = _tokens_file()
    token = tokens.add(name, sessions=sessions, share=share)
    console(stderr=True).print(
        f"The token of {name} is below; it is not shown again. {tokens.path} has its SHA-256."
    )
    typer.echo(token)


@token_app.command("list", short_help="List customers.")
def token_list(as_json: Json = False, env_file: EnvFile = None) -> None:
    """List the customers with tokens of their own; nobody can list the tokens."""
    from rich.markup import escape

    customers = _tokens_file().read()
    if as_json:
        print_json([customer.model_dump(exclude={"sha256"}) for customer in customers])
        return
    if not customers:
        console().print("No customers. `pocqueue delegation token add NAME` adds one.")
        return
    table = columns("name", right=("sessions", "share"))
    table.add_column("created")
    for customer in customers:
        limit = "all" if customer.sessions is None else str(customer.sessions)
        table.add_row(escape(customer.name), limit, f"{customer.share:g}", customer.created)
    console().print(table)


@token_app.command("revoke", short_help="Take a customer's token away.")
def token_revoke(
    name: Annotated[str, typer.Argument(help="The customer.")],
    stop: Annotated[bool, typer.Option("--stop", help="End its running sessions as well.")] = False,
    env_file: EnvFile = None,
) -> None:
    """Take a customer's token away, at once.

    Without `--stop` its running sessions search on until they expire. A customer who gets this name later sees
    the sessions that began within the hour before.
    """
    from pocqueue.rounds.backend import Backend
    from pocqueue.rounds.sessions.control import stop_sessions
    from pocqueue.settings import Settings

    # Redis is known to answer before anything is changed.
    with Backend.open(Settings.load()) if stop else contextlib.nullcontext() as backend:
        _tokens_file().revoke(name)
        stopped = 0 if backend is None else stop_sessions(backend, name)
    found = f" {counted(stopped, 'session')} stopped." if stop else ""
    console().print(f"{name} has no token any more.{found}")


def _tokens_file() -> TokensFile:
    from pocqueue.delegation.customers import TokensFile, tokens_path
    from pocqueue.settings import DelegationSettings, Settings

    return TokensFile(tokens_path(Settings.load(), DelegationSettings.load()))


def _from_store(delegation: DelegationSettings) -> dict[str, Any]:
    """Read all sessions, with their customers."""
    from pocqueue.rounds.backend import Backend
    from pocqueue.rounds.sessions.control import session_views
    from pocqueue.settings import Settings

    with Backend.open(Settings.load()) as backend:
        views = session_views(backend)
    return {
        "total_sessions": len(views),
        "active_sessions": sum(view.status.state.is_active for view in views),
        "max_sessions": delegation.max_sessions,
        "sessions": {
            view.status.round_id: view.to_dict() | {"customer": view.status.spec.customer}
            for view in views
        },
    }


def _over_http(url: str, delegation: DelegationSettings) -> dict[str, Any]:
    """Ask a service for the sessions of this environment's token."""
    import httpx

    from pocqueue.errors import DelegationError, SettingsError
    from pocqueue.web.tls import tls_context

    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"--url is {url!r}; allowed: such as http://192.168.1.100:9090.")
    token = delegation.auth_token
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
    try:
        reply = httpx.get(
            f"{url.rstrip('/')}/api/v1/delegation/status",
            headers=headers,
            verify=tls_context(delegation.tls_ca, "DELEGATION_TLS_CA"),
            timeout=10,
            trust_env=False,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise DelegationError(
            f"The delegation service at {url} does not answer ({exc}): check that it runs there "
            "and that its port is open.",
            is_final=False,
        ) from None
    answer: Any = {}
    with contextlib.suppress(ValueError, RecursionError):
        answer = reply.json()
    if reply.status_code == 200 and isinstance(answer, dict) and "sessions" in answer:
        return answer
    detail = answer.get("detail") if isinstance(answer, dict) else None
    raise DelegationError(
        f"The delegation service at {url} answers {reply.status_code}: "
        f"{detail or 'this is no delegation service'}",
        is_final=True,
        status=reply.status_code,
    )


def _render(found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.markup import escape

    sessions: dict[str, dict[str, Any]] = found["sessions"]
    if not sessions:
        return (
            f"No sessions in the last hour; {found['max_sessions']} may run at a time. Small nodes "
            "start them at the service of `pocqueue delegation serve`."
        )
    summary = (
        f"{found['active_sessions']} active, {found['total_sessions']} in the last hour, "
        f"{found['max_sessions']} at a time at most"
    )
    with_customer = any("customer" in one for one in sessions.values())
    names = ("session", "customer") if with_customer else ("session",)
    table = columns(*names, right=("node", "GPUs", "batches", "valid", "checked", "age"))
    table.add_column("status")
    for session_id, one in sessions.items():
        table.add_row(
            escape(session_id),
            *([escape(str(one["customer"]))] if with_customer else []),
            f"{one['node_id']}",
            f"{one['gpu_count']}",
            f"{one['total_generated']:,}",
            f"{one.get('total_nonces', 0):,}",
            f"{one.get('total_checked', 0):,}",
            seconds(one["age_seconds"]),
            escape(str(one["status"])),
        )
    return Group(table, summary)
