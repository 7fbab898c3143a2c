"""The live view of a round: a progress bar on a terminal, a line every few seconds elsewhere.

Ctrl-C is counted meanwhile, so that the first one can explain what a second one does.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from typing_extensions import override

from pocqueue.cli.output import console, seconds
from pocqueue.closing import Closing
from pocqueue.errors import StoreUnavailable
from pocqueue.words import counted

if TYPE_CHECKING:
    from rich.console import Console

    from pocqueue.rounds.backend import Backend
    from pocqueue.rounds.records import RoundStatus

#: Between two looks at the round.
REFRESH_S = 0.2
#: Between two lines if the output is no terminal.
LINE_S = 5.0
#: The rate shown is the mean over this long.
RATE_WINDOW_S = 5.0
#: After the first Ctrl-C, how long a second one still stops the round.
GRACE_S = 5.0


class Interrupts(Closing):
    """Signals, Ctrl-C unless others are named, are counted instead of raised, from now until it is closed.

    No `threading.Event`: its lock may be held by the very code that a signal's handler interrupts.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self.count = 0
        self._first = 0.0
        self._before = {n: signal.signal(n, self._note) for n in signals or (signal.SIGINT,)}

    @override
    def close(self) -> None:
        """Let them do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_set(self) -> bool:
        """Say whether one came."""
        return self.count > 0

    def wait(self, timeout: float) -> bool:
        """Wait so many seconds at most for one; say whether one came."""
        deadline = time.monotonic() + timeout
        while not self.count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.is_set()

    @property
    def leave(self) -> bool:
        """Say whether the time for a second Ctrl-C is over."""
        return self.count == 1 and time.monotonic() - self._first > GRACE_S

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._first = time.monotonic()


def watch_round(
    backend: Backend, round_id: str, interrupts: Interrupts, *, quiet: bool = False
) -> RoundStatus | None:
    """Show a round until it is over.

    The first Ctrl-C says that the round goes on and how to stop it; a second one within a few
    seconds stops it. Without a second one the view ends and the round goes on.

    Args:
        interrupts: counts Ctrl-C since before the round was made, so that none falls in between.
        quiet: show nothing (for `--json`), Ctrl-C works the same.

    Returns:
        The round as it ended, or None if the user left it running.
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    view = console(stderr=True)
    in_lines, next_line, told = not (quiet or view.is_terminal), 0.0, 0
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[line]}"),
        console=view,
        refresh_per_second=8,
        speed_estimate_period=RATE_WINDOW_S,
        disable=quiet or in_lines,
    ) as progress:
        name = f"round {round_id[:8]}"
        bar = progress.add_task(name, total=1.0, line="")
        # Never shown: it is there for its speed.
        nonces = progress.add_task("nonces", total=None, visible=False)
        while True:
            over, done, line = False, None, "waiting for Redis; nothing is lost"
            with suppress(StoreUnavailable):
                status = backend.store.status(round_id)
                gpus = sum(status.spec.is_served_by(gpu.info) for gpu in backend.pool.live())
                progress.update(nonces, completed=status.checked)
                over = not status.state.is_active
                done = 1.0 if over else _share_done(status)
                line = _line(status, gpus, progress.tasks[nonces].speed or 0.0)
            progress.update(bar, completed=done, line=line)
            if in_lines and (over or time.monotonic() >= next_line):
                view.print(f"{name}  {line}")
                next_line = time.monotonic() + LINE_S
            if over:
                return status
            told = _react(backend, round_id, interrupts, told, view)
            if interrupts.leave:
                return None
            time.sleep(REFRESH_S)


def _line(status: RoundStatus, num_gpus: int, per_second: float) -> str:
    left = f"{seconds(status.remaining_s)} left" if status.state.is_active else status.state.value
    proof = status.spec.proof
    kept = counted(status.valid, proof.noun) if proof.keeps_all else f"{status.valid:,} valid"
    found = f"{counted(status.checked, 'nonce')}  {kept}  {per_second:,.0f}/s"
    return f"{found}  {counted(num_gpus, 'GPU')}  {left}"


def _share_done(status: RoundStatus) -> float:
    by_time = 1 - status.remaining_s / status.spec.window_s
    if status.spec.max_nonces is None:
        return by_time
    return max(by_time, status.checked / status.spec.max_nonces)


def _react(
    backend: Backend, round_id: str, interrupts: Interrupts, told: int, view: Console
) -> int:
    """Do what the Ctrl-C since the last look ask for; return how many are dealt with."""
    from pocqueue.rounds.spec import RoundState

    if interrupts.count > told == 0:
        view.print(
            f"The round goes on without this view. Ctrl-C again within {GRACE_S:.0f} s stops it; "
            f"later `pocqueue round stop {round_id}` does, and `pocqueue round watch {round_id}` "
            "shows it again."
        )
        told = 1
    if interrupts.count >= 2 and told < 2:
        try:
            backend.store.close(round_id, RoundState.STOPPED, "stopped with Ctrl-C")
        except StoreUnavailable:
            return told
        view.print("Stopping the round.")
        told = 2
    return told
