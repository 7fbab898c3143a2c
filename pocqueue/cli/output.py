"""What the commands print with: exit codes, errors, numbers and durations in one way everywhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXIT_OK = 0
#: `round validate`: the proofs are fraud. `up`: a process it needs did not stay up.
EXIT_FAILED = 1
#: Bad input, or something is missing that the user can mend.
EXIT_BAD_INPUT = 2
#: The shell's code for Ctrl-C.
EXIT_INTERRUPTED = 130

#: Columns of tables that do not go to a terminal.
PIPE_WIDTH = 200


def console(*, stderr: bool = False) -> Console:
    """Return a console; colours only if the output is a terminal.

    Sentences are never broken by us: a terminal wraps them, and elsewhere people search in them.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=width)


def is_plain(view: Console) -> bool:
    """Say whether a terminal shows ASCII only."""
    return not view.encoding.lower().startswith("utf")


def columns(*left: str, right: Iterable[str] = ()) -> Table:
    """Make a table without lines: of columns of words, then columns of numbers."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Make a table of names and what there is to say of each, as plain text."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def print_error(message: str) -> None:
    """Print one sentence to standard error."""
    sys.stderr.write(f"pocqueue: {message}\n")


def print_json(value: Any) -> None:
    """Print JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def show(report: Any, *, as_json: bool) -> None:
    """Print a report: what its `to_dict` gives as JSON, or by its own `print` for people."""
    if as_json:
        print_json(report.to_dict())
    else:
        report.print()


@contextmanager
def interruptible() -> Iterator[None]:
    """End the command at Ctrl-C within the block, which ends what it has started."""
    import typer

    try:
        yield
    except KeyboardInterrupt:
        console(stderr=True).print("Stopped; nothing is left running.")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def seconds(value: float) -> str:
    """Write a duration: ``0.4 s``, ``12 s``, ``5 min 30 s``."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def percent(value: float) -> str:
    """Write a share: ``9.73 %``."""
    return f"{100 * value:.2f} %"
