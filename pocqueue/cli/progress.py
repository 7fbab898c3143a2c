"""How far a command is and how much time is left: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pocqueue.cli.output import console, seconds

#: Between two lines if the output is no terminal.
LINE_S = 10.0


@contextmanager
def progress(
    title: str, total: int, *, line_s: float = LINE_S
) -> Iterator[Callable[[int, int], None]]:
    """Show on standard error how far something is; yields what is to be told how much of how much is done.

    Args:
        title: what is done.
        total: how much of it there is; >= 1.
        line_s: seconds between two lines if the output is no terminal.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    view, began = console(stderr=True), time.monotonic()
    if view.is_terminal:
        columns = (
            *(TextColumn(title), BarColumn(), TaskProgressColumn()),
            *(TimeRemainingColumn(compact=True), TextColumn("left")),
        )
        # The rate is that of all of it: on a slow machine batches are far apart.
        with Progress(*columns, console=view, transient=True, speed_estimate_period=3600) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    told = began

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if 0 < done < total and now - told >= line_s:
            told = now
            left_s = (now - began) * (total - done) / done
            view.print(f"{title}: {done:,} of {total:,}, about {seconds(left_s)} left")

    yield tell
