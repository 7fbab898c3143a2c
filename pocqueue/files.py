"""Files that several processes share: a lock between them, and content that is never half written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from pocqueue.closing import Closing


class FileLock(Closing):
    """An exclusive lock between processes; gone when every process that has the open file has ended.

    Args:
        path: of the lock file, made with its folder if it is missing; it stays.
        wait: until the lock is free; False raises instead.

    Raises:
        BlockingIOError: another holds it, and `wait` is False.
        OSError: the file cannot be made or opened; `strerror` says why.
    """

    #: The open file that holds the lock; -1 once closed.
    fd: int

    def __init__(self, path: Path, *, wait: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            self.close()
            raise

    def note_holder(self, pid: int) -> None:
        """Write into the file which process holds the lock, for `lock_holder`."""
        with contextlib.suppress(OSError):  # on a full disk the holder stays unknown
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, str(pid).encode(), 0)

    @override
    def close(self) -> None:
        """Give the lock back; may be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def lock_holder(path: Path) -> int | None:
    """Return the process that holds the lock of a file, 0 if it is unknown, None if nobody does."""
    with contextlib.suppress(OSError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0)
    return None


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a new file beside `path`, then put it in its place: a reader sees the old one or the new one.

    When it returns, the new one is there also after a loss of power.

    Raises:
        OSError: it cannot be written; `path` is as it was, or whole and new, and nothing is left beside it.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Have a folder's names on disk: without that a new name may be gone after a loss of power, content and all."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        # Of file systems that sync no folders: those of some virtual machines.
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


class NotPrivate(Exception):
    """A file with a secret in it is none, or is not its owner's alone.

    Args:
        permissions: of the file; None: it is no file.
    """

    def __init__(self, permissions: int | None) -> None:
        super().__init__(permissions)
        self.permissions = permissions


def read_private(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file that only its owner can use.

    Raises:
        NotPrivate: it is none, or others can use it.
        OSError: it cannot be opened; `strerror` says why.
    """
    # Opened first and judged then, so that what is judged is what is read. O_NONBLOCK: a named pipe is refused
    # and not waited for.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise NotPrivate(None)
        if mode & 0o077:
            raise NotPrivate(stat.S_IMODE(mode))
        return os.read(fd, max_bytes)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class SharedFile(ABC):
    """A small file that several processes read, and change one at a time.

    Every method raises what `unusable` returns if the file cannot be used.
    """

    path: Path

    @abstractmethod
    def unusable(self, done: str, exc: OSError) -> Exception:
        """Return the error to raise.

        Args:
            done: what cannot be done with the file: "read", "locked" or "written".
            exc: why.
        """

    def content(self) -> bytes | None:
        """Return what is in it; None: there is no file."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self.unusable("read", exc) from None

    def locked(self) -> FileLock:
        """Keep other processes from changing it until the block ends."""
        try:
            return FileLock(self.path.with_name(f"{self.path.name}.lock"))
        except OSError as exc:
            raise self.unusable("locked", exc) from None

    def replace(self, data: bytes) -> None:
        """Write it anew, as a whole."""
        try:
            replace_file(self.path, data)
        except OSError as exc:
            raise self.unusable("written", exc) from None
