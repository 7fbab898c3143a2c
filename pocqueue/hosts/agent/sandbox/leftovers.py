"""Processes that a killed agent has left: found by a mark of ours among their arguments, never by a name or a number."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

#: Milliseconds that a process which was killed may take to be gone.
_GONE_MS = 5000


def end_marked(program: str, mark: str) -> None:
    """Kill this user's processes of one program that have a mark among their arguments.

    Args:
        program: as it is called, the first of the arguments.
        mark: a whole argument that nobody else's process has.
    """
    # Once more for what one of them started before it died.
    while _end_some(program, mark):
        pass


def is_any_marked(program: str, mark: str) -> bool:
    """Say whether there is such a process."""
    for _ in _marked(program, mark):
        return True
    return False


def _end_some(program: str, mark: str) -> int:
    """Kill those that there are now; return how many have gone."""
    num_gone = 0
    for fd in _marked(program, mark):
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            gone = select.poll()
            gone.register(fd, select.POLLIN)
            num_gone += len(gone.poll(_GONE_MS))
    return num_gone


def _marked(program: str, mark: str) -> Iterator[int]:
    """Yield a descriptor of each, which is closed afterwards."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            # Before it is judged: what was judged is what is killed, even if its number is another's by then.
            fd = os.pidfd_open(int(entry.name))
            stack.callback(os.close, fd)
            if _is_marked(entry, program, mark):
                yield fd


def _is_marked(folder: Path, program: str, mark: str) -> bool:
    first, *others = (folder / "cmdline").read_bytes().split(b"\0")
    return (
        first == os.fsencode(program)
        and os.fsencode(mark) in others
        and folder.stat().st_uid == os.geteuid()
    )
