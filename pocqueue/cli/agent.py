"""`pocqueue agent …`: the agent of a GPU host, and its self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import EXIT_FAILED, columns, console, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from pocqueue.hosts.agent.options import Options
    from pocqueue.hosts.agent.self_test.run import Report
    from pocqueue.settings import AgentSettings

app = typer.Typer(
    help="The agent of a GPU host: this machine gets jobs of a server, and is paid.",
    rich_markup_mode=None,
)

Endpoint = Annotated[
    str | None, typer.Option(help="Server, such as ws://HOST:3002. [default: HN_ENDPOINT]")
]

_MARKS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


@app.callback(invoke_without_command=True)
def agent(
    context: typer.Context,
    endpoint: Endpoint = None,
    token: Annotated[
        str | None, typer.Option(help="From the server's page. [default: HN_NODE_TOKEN]")
    ] = None,
    new_key: Annotated[
        bool,
        typer.Option("--new-key", help="Make a new key for this machine; the old one ends."),
    ] = False,
    env_file: EnvFile = None,
) -> None:
    """Work for a server until Ctrl-C or SIGTERM.

    The first time it takes a token; then the machine is known by its key, which stays in the state folder.
    Exit code: 0 after a signal, 2 if the server or this machine needs somebody to mend something.
    """
    if context.invoked_subcommand is not None:
        return
    from pocqueue.hosts.agent.__main__ import become
    from pocqueue.settings import Settings

    become(_options(_settings(endpoint, token), new_key=new_key), Settings.load().log_level)


@app.command("check", short_help="Test this machine; say what is wrong and what to do.")
def check(
    endpoint: Endpoint = None,
    matrix_seconds: Annotated[
        float,
        typer.Option(min=0, max=600, help="How long each GPU multiplies matrices; 0: not at all."),
    ] = 10.0,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Test drivers, GPUs, sandbox, disk, memory and the way to the server, as an agent does at its start.

    Exit code: 0 if nothing failed, 1 if something did.
    """
    import asyncio

    from pocqueue.hosts.agent.agent import open_sandbox
    from pocqueue.hosts.agent.gpu_facts import NvmlFacts
    from pocqueue.hosts.agent.messages import to_wire
    from pocqueue.hosts.agent.self_test.run import run_self_test
    from pocqueue.settings import Settings

    settings, folder = _settings(endpoint, None), Settings.load().state_dir
    _make(folder)
    sandbox = open_sandbox(settings.sandbox, folder / "check")
    report = asyncio.run(
        run_self_test(NvmlFacts(), sandbox, folder, settings.endpoint, matrix_s=matrix_seconds)
    )
    if as_json:
        print_json(to_wire(report.rows))
    else:
        _print(report)
    if not report.is_good:
        raise typer.Exit(EXIT_FAILED)


def _print(report: Report) -> None:
    from rich.text import Text

    table = columns("row", "state", "measured", "wanted", words=("measured", "wanted"))
    for row in report.rows:
        name = row.name if row.gpu is None else f"{row.name} {row.gpu}"
        state = Text(row.state, _MARKS[row.state])
        table.add_row(name, state, Text(row.measured), Text(row.wanted))
    view = console()
    view.print(table)
    for row in report.rows:
        if row.remedy:
            view.print(Text.assemble((f"{row.name}: ", _MARKS[row.state]), row.remedy))


def _settings(endpoint: str | None, token: str | None) -> AgentSettings:
    from pocqueue.settings import AgentSettings

    return AgentSettings.override(endpoint=endpoint, node_token=token)


def _options(settings: AgentSettings, *, new_key: bool) -> Options:
    from pocqueue.errors import SettingsError
    from pocqueue.hosts.agent.options import Options
    from pocqueue.settings import Settings

    if settings.endpoint is None:
        raise SettingsError(
            "The agent needs a server: --endpoint ws://HOST:3002, or HN_ENDPOINT; its page shows the command."
        )
    common, token = Settings.load(), settings.node_token
    return Options(
        endpoint=settings.endpoint,
        state_dir=common.state_dir,
        token=None if token is None else token.get_secret_value() or None,
        hostname=common.host_name,
        sandbox=settings.sandbox,
        programs=tuple(name.strip() for name in settings.commands.split(",") if name.strip()),
        memory_mib=settings.memory_mib,
        containers=settings.containers,
        stop_s=settings.stop_seconds,
        new_key=new_key,
    )


def _make(folder: Path) -> None:
    from pocqueue.errors import SettingsError

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise SettingsError(
            f"The state folder {folder} cannot be made ({exc.strerror}): set POCQUEUE_STATE_DIR to another."
        ) from None
