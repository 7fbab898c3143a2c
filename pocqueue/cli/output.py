"""What the commands print with: exit codes, errors, numbers and durations in one way everywhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from pocqueue.errors import PocqueueError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pocqueue.engine.base import EngineInfo
    from pocqueue.settings import Settings

EXIT_OK = 0
#: `round validate`: the proofs are fraud. `up`: a process it needs did not stay up.
EXIT_FAILED = 1
#: Bad input, or something is missing that the user can mend.
EXIT_BAD_INPUT = 2
#: The shell's code for Ctrl-C.
EXIT_INTERRUPTED = 130

#: Columns of tables that do not go to a terminal, at least.
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


def columns(*left: str, right: Iterable[str] = (), words: Collection[str] = ()) -> Table:
    """Make a table without lines, whose cells stay whole in a window of any width.

    Args:
        left: names of columns.
        right: of those of numbers, which come after them.
        words: of ``left``, those whose cells are words, which may go on in the next line.
    """
    from pocqueue.cli.listing import Listing

    table = Listing(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in left:
        table.add_column(name, no_wrap=name not in words, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def plain(*cells: str) -> list[Text]:
    """Make a table's cells of words that are not ours: brackets in them are no markup."""
    from rich.text import Text

    return [Text(cell) for cell in cells]


def facts(rows: Sequence[tuple[str, str]]) -> Text:
    """Make lines of names and what there is to say of each.

    No table: its cells would break ids and paths, which people copy, at the window's edge.
    """
    from rich.text import Text

    width = max(len(name) for name, _ in rows)
    lines = (Text.assemble((f"{name:<{width}}  ", "bold"), value) for name, value in rows)
    return Text("\n").join(lines)


def note_unlike(settings: Settings, info: EngineInfo) -> None:
    """Say on standard error which settings the GPUs that run already do not have, as others started them."""
    for name, found in {"model": info.model, "engine": info.engine, "dtype": info.dtype}.items():
        asked = getattr(settings, name)
        if name in settings.model_fields_set and asked not in {"auto", found}:
            console(stderr=True).print(
                f"{settings.variable(name)} is {asked}, but the GPUs that run already have {found}, which is "
                "used. End what started them to have it otherwise.",
                style="yellow",
                markup=False,
            )


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


def show_status(
    look: Callable[[], dict[str, Any]],
    render: Callable[[dict[str, Any]], Any],
    *,
    watch: bool,
    as_json: bool,
    every_s: float = 1.0,
) -> None:
    """Show how something stands: once, or again and again until Ctrl-C, in place on a terminal.

    Args:
        look: finds out; what it raises ends the first look, and is shown by later ones.
        render: makes of that what is printed if it is not to be JSON.
        every_s: seconds between two looks.
    """
    from rich.live import Live
    from rich.text import Text

    found, view = look(), console()
    can_stay = watch and view.is_terminal and not as_json
    in_place = Live(console=view, auto_refresh=False) if can_stay else None
    with suppress(KeyboardInterrupt), in_place or nullcontext():
        while True:
            shown = Text(found["error"], "yellow") if found.keys() == {"error"} else render(found)
            if as_json:
                print_json(found)
            elif in_place is None:
                view.print(shown)
            else:
                in_place.update(shown, refresh=True)
            if not watch:
                return
            time.sleep(every_s)
            try:
                found = look()
            except PocqueueError as exc:
                # Whoever watches wants to see it come back.
                found = {"error": str(exc)}


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
    """Write a duration: ``0.4 s``, ``12 s``, ``5 min 30 s``, ``5 h 03 min``, ``12 days``."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours < 48 else f"{hours // 24} days"


def percent(value: float) -> str:
    """Write a share: ``9.73 %``."""
    return f"{100 * value:.2f} %"
