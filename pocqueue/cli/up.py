"""`pocqueue up`: everything on this machine, in one foreground process tree."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from pocqueue.cli.options import EnvFile, Model, Port
from pocqueue.cli.output import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, print_error
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.local_stack import LocalStack
    from pocqueue.settings import Settings

_OURSELVES = "pocqueue"
_NAME_WIDTH = len("delegation")
# Cyan, yellow, green, magenta, blue, then their bright forms; red is for what children colour so.
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


def up(
    model: Model = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Engine, instead of POCQUEUE_ENGINE: torch, vllm or vllm-server."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device, instead of POCQUEUE_DEVICE: auto, cpu, cuda or cuda:N."),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Workers [default: one a CUDA device, or one]."),
    ] = None,
    host_queues: Annotated[
        bool,
        typer.Option(
            "--host-queues", help="Name the queues HOST.gpu0, for several machines on one Redis."
        ),
    ] = False,
    delegation: Annotated[
        bool,
        typer.Option(
            "--delegation", help="Serve small nodes too; needs DELEGATION_AUTH_TOKEN (port 9090)."
        ),
    ] = False,
    hosts: Annotated[
        bool,
        typer.Option("--hosts", help="Serve GPU hosts too (ports 3001 and 3002)."),
    ] = False,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Start no Flower.")] = False,
    flower_port: Port = None,
    env_file: EnvFile = None,
) -> None:
    """Start Redis (if no URL is set), a scheduler, a worker for each GPU and Flower; Ctrl-C ends it.

    Exit code: 0 after Ctrl-C or SIGTERM, 1 if a process did not stay up, 2 for bad input, 130 if a
    second Ctrl-C cut the stopping short.
    """
    from pocqueue.settings import Settings

    settings = Settings.override(model=model, engine=engine, device=device, flower_port=flower_port)
    run_stack(
        settings,
        _describe,
        gpus=gpus,
        flower=not no_flower,
        delegation=delegation,
        hosts=hosts,
        host_queues=host_queues,
    )


def run_stack(
    settings: Settings, describe: Callable[[LocalStack, PrefixedLines], None], **options: Any
) -> None:
    """Run a stack in the foreground until a signal ends it, or a process does not stay up.

    Args:
        settings: of its processes.
        describe: writes what runs, once it does.
        options: of `local_stack`.

    Raises:
        typer.Exit: a process did not stay up, or a second signal cut the stopping short.
    """
    from pocqueue.local_stack import local_stack
    from pocqueue.processes.tree import stop_signals

    lines = PrefixedLines(sys.stdout)
    failure = None
    try:
        with (
            stop_signals(),
            local_stack(settings, sink=lines, **options) as stack,
        ):
            try:
                describe(stack, lines)
                failure = stack.tree.wait()
                lines(_OURSELVES, "Stopping: a process did not stay up.")
            except KeyboardInterrupt:
                lines(_OURSELVES, "Stopping; another Ctrl-C kills what still runs.")
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if failure is not None:
        print_error(failure.message)
        raise typer.Exit(EXIT_BAD_INPUT if failure.is_bad_input else EXIT_FAILED)


def _describe(stack: LocalStack, lines: PrefixedLines) -> None:
    num, names = len(stack.queues), ", ".join(stack.queues)
    lines(_OURSELVES, f"{counted(num, 'GPU worker')}: {names}")
    if stack.flower_url is not None:
        lines(_OURSELVES, f"Flower: {stack.flower_url}")
    lines(
        _OURSELVES,
        "Once a worker is in the pool, in another terminal: pocqueue round start --block-hash HASH",
    )
    lines(_OURSELVES, "Ctrl-C ends everything.")


class PrefixedLines:
    """Writes lines of several processes as ``gpu0      | text``, one colour a name on a terminal.

    Safe to call from several threads.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._coloured = (
            stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        self._palette = itertools.cycle(_COLOURS)
        self._prefixes: dict[str, str] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, line: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        with self._lock:
            text = f"{self._prefix(name)}{line}\n".encode(encoding, "replace").decode(encoding)
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                # The terminal or the reader of our output is gone; that ends no round.
                return

    def _prefix(self, name: str) -> str:
        if name not in self._prefixes:
            prefix = f"{name:<{_NAME_WIDTH}} | "
            if self._coloured:
                style = "1" if name == _OURSELVES else str(next(self._palette))
                prefix = f"\x1b[{style}m{prefix}\x1b[0m"
            self._prefixes[name] = prefix
        return self._prefixes[name]
