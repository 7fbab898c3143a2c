"""The live view of `pocqueue deploy run`: the log above, and below it a line for each server, with what it does and how far that is."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typing_extensions import override

from pocqueue.cli.output import console
from pocqueue.deploy import terminal
from pocqueue.deploy.standing import Standing, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

#: Columns of a bar; a narrower one shows nothing.
_BAR = (8, 40)
_GAP = 2


class View:
    """Lines below the log of a run on a terminal.

    Args:
        screen: the terminal.
    """

    def __init__(self, screen: Console) -> None:
        self._standings: list[Standing] = []
        self._screen = screen
        self._live: Live | None = None
        #: For the log.
        self.above = _Above(screen)

    def watch(self, standing: Standing) -> None:
        """Show a server, too."""
        self._standings.append(standing)

    async def ask(self, question: str, *, is_hidden: bool = False) -> str:
        """Ask a person; nothing is drawn over what is typed."""
        self.stop()
        try:
            return await terminal.ask(question, is_hidden=is_hidden)
        finally:
            self.start()

    def start(self) -> None:
        """Begin."""
        from rich.live import Live

        # A new one each time: one that was stopped would erase what stands there since.
        self._live = Live(
            console=self._screen,
            get_renderable=lambda: lines(self._standings, self._screen.width),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def stop(self) -> None:
        """End; the log stays."""
        if self._live is not None:
            self._live.stop()


class _Above(io.StringIO):
    """Where a log writes its lines, above the view."""

    def __init__(self, screen: Console) -> None:
        super().__init__()
        self._screen = screen

    @override
    def isatty(self) -> bool:
        return True

    @override
    def write(self, text: str) -> int:
        from rich.text import Text

        # A line is as long as it is: the terminal breaks it, so that it can be copied.
        self._screen.print(Text.from_ansi(text.removesuffix("\n")), soft_wrap=True)
        return len(text)


@contextmanager
def live_view() -> Iterator[View | None]:
    """Show a view within the block; None where there is no terminal that can."""
    screen = console()
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield None
        return
    view = View(screen)
    view.start()
    try:
        yield view
    finally:
        view.stop()


def lines(standings: Sequence[Standing], width: int) -> RenderableType:
    """Return what is shown of runs that are not over.

    Args:
        standings: of the servers.
        width: columns of the terminal.
    """
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    shown = [standing for standing in standings if not standing.is_over]
    has_names = len(standings) > 1
    rows = [_cells(standing, has_names, width) for standing in shown]
    used = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - sum(used) - _GAP * len(used) - 1
    bar = min(room, _BAR[1]) if room >= _BAR[0] else 0
    table = Table.grid(padding=(0, _GAP, 0, 0))
    for _ in used:
        table.add_column(no_wrap=True, overflow="ellipsis")
    for standing, (*before, size, rate, left) in zip(shown, rows, strict=True):
        load = standing.load
        drawn = ProgressBar(load.total_bytes, load.done_bytes, width=bar) if load and bar else ""
        table.add_row(*before, drawn, size, rate, left)
    return table


def _cells(standing: Standing, has_name: bool, width: int) -> tuple[str, ...]:
    from pocqueue.deploy.engine import PHASES

    title = f" {PHASES[standing.phase]}" if width >= 120 else ""
    phase = f"phase {standing.phase} of {max(PHASES)}{title}"
    load = standing.load.parts() if standing.load else ("", "", "")
    names = (standing.name,) if has_name else ()
    return (*names, phase, standing.step, duration(standing.elapsed_s), *load)
