"""First thing that a child of `pocqueue.processes.child` runs: ties its life to its parent's, then execs.

Run by path as `python -I -S child_exec.py PARENT_PID COMMAND ARGUMENT...`, so that it costs about
15 ms: it imports nothing of ours and next to nothing of anyone's. It stands here, and not in a
`preexec_fn`, because the parent has threads, and after a fork only exec is safe then.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SIGTERM = 15  # `import signal` would take a third of this program's time
_EXIT_BAD_INPUT = 2


def main() -> None:
    """Ask for SIGTERM when the parent dies and become the command.

    Linux sends the signal when the *thread* that started this process ends, however it ends, and
    keeps the wish across exec. Elsewhere nothing is asked for.
    """
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        # It died before we asked: no signal would come any more.
        sys.exit(128 + _SIGTERM)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as exc:
        sys.stderr.write(f"pocqueue: {command[0]} cannot be run: {exc.strerror}.\n")
        sys.exit(_EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
