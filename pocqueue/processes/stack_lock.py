"""One `pocqueue up` or `demo` for each state folder: they would fight over its Redis and queues."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pocqueue.errors import ProcessError
from pocqueue.files import FileLock, lock_holder

_LOCK_NAME = "up.lock"


@contextlib.contextmanager
def stack_lock(state_dir: Path) -> Iterator[int]:
    """Hold the lock of a state folder within the block; yields the open file that holds it.

    The lock is gone when the last process that has inherited the file has ended, however it ended.

    Raises:
        ProcessError: another process holds it, or the folder cannot be written.
    """
    try:
        lock = FileLock(state_dir / _LOCK_NAME, wait=False)
    except BlockingIOError:
        raise ProcessError(
            f"`pocqueue up` or `pocqueue hosts serve` runs on the state folder {state_dir} already (process "
            f"{stack_pid(state_dir) or 'unknown'}), or its last processes are just ending: use that one, or "
            "set POCQUEUE_STATE_DIR to another folder."
        ) from None
    except OSError as exc:
        raise ProcessError(
            f"The state folder {state_dir} cannot be used ({exc.strerror}): mend it or set "
            "POCQUEUE_STATE_DIR to another."
        ) from None
    with lock:
        lock.note_holder(os.getpid())
        yield lock.fd


def stack_pid(state_dir: Path) -> int | None:
    """Return the process that holds the lock of a state folder, or None if nobody does."""
    return lock_holder(state_dir / _LOCK_NAME)
