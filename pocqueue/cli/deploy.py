"""`pocqueue deploy`: a bare server becomes a node, over SSH."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from pocqueue.cli.output import EXIT_INTERRUPTED, print_error

app = typer.Typer(
    no_args_is_help=True,
    help="Make a bare server a verified node, over SSH: phases 0 to 7.",
)

ConfFile = Annotated[Path, typer.Argument(metavar="CONF", help="Conf file, nodes/NAME.conf.")]
AskSudo = Annotated[
    bool, typer.Option("--ask-sudo", help="Ask for the password of sudo on the server.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="NAME", help="Go on though this check fails."),
]
FixModes = Annotated[
    bool,
    typer.Option("--fix-modes", help="Make a conf file that others can read its owner's alone."),
]
FormatDevice = Annotated[
    str,
    typer.Option(
        metavar="SERIAL",
        help="The disk of this serial may be formatted though it has old data without a signature; its serial has to be typed again.",
    ),
]


@contextmanager
def _ends() -> Iterator[None]:
    """End the command with the code of what went wrong, and one message."""
    from pocqueue.deploy.errors import DeployError

    try:
        yield
    except DeployError as exc:
        print_error(str(exc))
        raise typer.Exit(exc.exit_code) from None
    except (KeyboardInterrupt, click.exceptions.Abort):
        print_error("Stopped. A job that runs on a server goes on there; run again to go on.")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the node; its file is nodes/NAME.conf.")],
    server_ip: Annotated[str, typer.Option(help="Address or name of the server.")] = "",
    ssh_user: Annotated[str, typer.Option(help="Who logs in there.")] = "",
    account_pubkey: Annotated[str, typer.Option(help="Public key of the cold account.")] = "",
    model_name: Annotated[str, typer.Option(help="Model on the hub.")] = "",
    seed_api_url: Annotated[str, typer.Option(help="A node of the network.")] = "",
    profile: Annotated[str, typer.Option(help="x1, x8 or a JSON file.")] = "",
    password_file: Annotated[str, typer.Option(help="File of mode 0600 with the password.")] = "",
    folder: Annotated[Path, typer.Option(help="Folder of conf files.")] = Path("nodes"),
) -> None:
    """Write a commented conf file from answers, or from options."""
    with _ends():
        from pocqueue.deploy.new_conf import write_conf

        asked = {
            "SERVER_IP": (server_ip, "Address or name of the server", None),
            "SSH_USER": (ssh_user, "Who logs in there", "root"),
            "ACCOUNT_PUBKEY": (account_pubkey, "Public key of the cold account (base64)", None),
            "MODEL_NAME": (model_name, "Model", "Qwen/Qwen3-32B-FP8"),
            "SEED_API_URL": (seed_api_url, "A node of the network", "http://node2.gonka.ai:8000"),
            "NODE_CONFIG_PROFILE": (profile, "Profile: x1, x8 or a JSON file", "x1"),
        }
        values = {"KEY_NAME": name, "KEYRING_PASSWORD_FILE": password_file}
        for field, (given, question, default) in asked.items():
            values[field] = given or (
                typer.prompt(question, default=default) if sys.stdin.isatty() else default or ""
            )
        if not password_file and sys.stdin.isatty():
            question = (
                "Password of the keyring, 8 to 128 characters (empty: asked for when it is needed)"
            )
            values["KEYRING_PASSWORD"] = typer.prompt(
                question, default="", hide_input=True, show_default=False, confirmation_prompt=True
            )
        path = folder / f"{name}.conf"
        write_conf(path, values)
        typer.echo(f"{path} is written. Next: pocqueue deploy check {path}")


@app.command("check", short_help="Look at the server, and change nothing.")
def check(
    conf: ConfFile, ask_sudo: AskSudo = False, ignore: Ignore = None, fix_modes: FixModes = False
) -> None:
    """Validate a conf file, connect, and look at the server: exit code 1 if a check fails; changes nothing there."""
    ignored = tuple(ignore or ())
    _work("check", [conf], ask_sudo=ask_sudo, fix_modes=fix_modes, ignored=ignored)


@app.command("status", short_help="How every step stands on the server.")
def status(conf: ConfFile, ask_sudo: AskSudo = False) -> None:
    """Say of every step how it stands on the server; changes nothing there."""
    _work("status", [conf], ask_sudo=ask_sudo)


@app.command("run", short_help="Make servers nodes, as far as they are none.")
def run(
    confs: Annotated[
        list[Path], typer.Argument(metavar="CONF...", help="Conf files, side by side.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Begin without asking; the host key has to be known.")
    ] = False,
    phase: Annotated[int | None, typer.Option(min=0, max=7, help="This phase alone.")] = None,
    first: Annotated[
        int | None, typer.Option("--from", min=0, max=7, help="This phase and those after it.")
    ] = None,
    format_device: FormatDevice = "",
    no_mnemonic: Annotated[
        bool,
        typer.Option(
            "--no-mnemonic",
            help="The words of the warm key stay on the server, in a file of root's.",
        ),
    ] = False,
    ignore: Ignore = None,
    ask_sudo: AskSudo = False,
    fix_modes: FixModes = False,
) -> None:
    """Make servers nodes: what is done already is skipped; exit code 0 verified, 1 stopped, 2 bad input, 3 in use by another run."""
    limits: dict[str, int] = {}
    if phase is not None:
        limits = {"first": phase, "last": phase}
    elif first is not None:
        limits = {"first": first}
    is_confirmed = yes or os.environ.get("AUTO_CONFIRM") == "yes"
    _work(
        "dry_run" if dry_run else "deploy",
        confs,
        ask_sudo=ask_sudo,
        fix_modes=fix_modes,
        is_confirmed=is_confirmed,
        format_serial=format_device,
        words_stay=no_mnemonic,
        ignored=tuple(ignore or ()),
        **limits,
    )


@app.command("verify", short_help="Look at a node that runs.")
def verify(conf: ConfFile, ask_sudo: AskSudo = False) -> None:
    """Look at a node that runs: exit code 1 if a required check fails; changes nothing there."""
    _work("verified", [conf], ask_sudo=ask_sudo)


@app.command("grant", short_help="Print what the cold key has to run.")
def grant(
    conf: ConfFile,
    is_run: Annotated[
        bool, typer.Option("--run", help="Run it, if inferenced is on this machine.")
    ] = False,
) -> None:
    """Print the command with which the cold key lets the node work; that key never leaves its machine."""
    with _ends():
        from pocqueue.deploy.conf import read_conf
        from pocqueue.deploy.errors import StepFailed
        from pocqueue.deploy.grant import grant_lines, grant_words, run_grant, warm_address

        node = read_conf(conf)
        address = warm_address(node)
        typer.echo("\n".join(grant_lines(node, address)))
        if not is_run:
            return
        if code := run_grant(grant_words(node, address)):
            raise StepFailed("grant", f"inferenced ended with exit code {code}; it says why.")
        typer.echo(
            "inferenced has sent it. Whether the chain took it is said by `pocqueue deploy verify`, at grant."
        )


@app.command("repair", short_help="Mend what no run mends by itself.")
def repair(
    conf: ConfFile,
    reset_chain_data: Annotated[
        bool,
        typer.Option(
            "--reset-chain-data",
            help="Move the chain's data aside and load it anew; KEY_NAME has to be typed.",
        ),
    ] = False,
    ask_sudo: AskSudo = False,
) -> None:
    """Mend what no run mends by itself, after its name was typed; nothing is removed."""
    if not reset_chain_data:
        with _ends():
            from pocqueue.deploy.errors import BadUsage

            raise BadUsage("Say what is to be mended: --reset-chain-data is all there is.")
    _work("repair", [conf], ask_sudo=ask_sudo)


@app.command("rollback", short_help="Take back what runs have added.")
def rollback(
    conf: ConfFile,
    yes: Annotated[bool, typer.Option("--yes", help="Begin without asking.")] = False,
    ask_sudo: AskSudo = False,
) -> None:
    """Take back what runs have added, the last first; a filesystem and what is in it stay."""
    _work("rollback", [conf], ask_sudo=ask_sudo, is_confirmed=yes)


@app.command("stack", short_help="Put pocqueue itself on a server, or update it.")
def stack(
    conf: ConfFile,
    wheel: Annotated[
        Path | None,
        typer.Option(
            help="Its version; `pip wheel --no-deps .` makes it. [default: what is there]"
        ),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Back to the version before this one.")
    ] = False,
    with_redis: Annotated[
        bool, typer.Option("--with-redis", help="Start its Redis anew, too, as the last one.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Begin without asking.")] = False,
    ignore: Ignore = None,
    ask_sudo: AskSudo = False,
) -> None:
    """Put pocqueue itself on a server, or update it there: one worker at a time, each live again before the next."""

    def work() -> Any:
        from pocqueue.deploy.stack.run import StackRun

        return StackRun(wheel, goes_back=rollback, with_redis=with_redis, is_dry=dry_run)

    ignored = tuple(ignore or ())
    _work(work, [conf], ask_sudo=ask_sudo, is_confirmed=yes, ignored=ignored)


def _work(
    what: str | Callable[[], Any],
    paths: Sequence[Path],
    *,
    ask_sudo: bool,
    fix_modes: bool = False,
    **options: Any,
) -> None:
    """Do one of the runner's works, or one that is made here, with conf files."""
    with _ends():
        from pocqueue.deploy.conf import make_private, read_conf
        from pocqueue.deploy.errors import BadUsage
        from pocqueue.deploy.words import Secret

        if find_spec("asyncssh") is None:
            raise BadUsage("This needs asyncssh: pip install 'pocqueue[deploy]'.")
        for path in paths if fix_modes else ():
            make_private(path)
        confs = [read_conf(path) for path in paths]
        if len({conf.folder for conf in confs}) < len(confs):
            raise BadUsage("Two of the conf files have the same KEY_NAME: each node has its own.")
        import asyncio

        from pocqueue.cli.deploy_view import live_view
        from pocqueue.deploy import begin, repairs, runner, terminal

        password = None
        if ask_sudo:
            asked = typer.prompt("Password of sudo on the server", hide_input=True)
            password = Secret("SUDO_PASSWORD", asked)
        is_terminal = sys.stdin.isatty()
        options |= {"sudo_password": password, "ask": terminal.ask if is_terminal else None}
        if isinstance(what, str):
            work = getattr(repairs if what == "repair" else runner, what)
        else:
            work = what()
        with live_view() if what == "deploy" else nullcontext() as view:
            if view is not None:
                options |= {"console": view.above, "watch": view.watch}
                options["ask"] = view.ask if is_terminal else None
            code = asyncio.run(runner.run_all(confs, begin.Options(**options), work))
        if code:
            raise typer.Exit(code)
