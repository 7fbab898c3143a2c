"""Files that several processes share: locks, and content that is never half written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from pocqueue.files import FileLock, replace_file


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path) -> None:
    """A second one fails at once, or waits; the file stays and is for its owner only."""
    path = tmp_path / "folder" / "a.lock"
    with FileLock(path), pytest.raises(BlockingIOError):
        FileLock(path, wait=False)
    with FileLock(path, wait=False) as again:
        assert again.fd >= 0
    again.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_lock_lasts_as_long_as_a_child_that_inherits_it(tmp_path: Path) -> None:
    """However the one that took it has ended."""
    path = tmp_path / "a.lock"
    lock = FileLock(path)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], pass_fds=(lock.fd,), stdin=subprocess.PIPE
    )
    lock.close()
    with pytest.raises(BlockingIOError):
        FileLock(path, wait=False)
    child.communicate(b"\n", timeout=120)
    FileLock(path, wait=False).close()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """It has the new content and the mode that was asked for, and nothing is left beside it."""
    path = tmp_path / "a.json"
    replace_file(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    replace_file(path, b"two", mode=0o644)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_replaced_file_outlives_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content is synced before it has its name, and the folder with the name after."""
    path = tmp_path / "a.json"
    synced = []

    def fsync(fd: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        synced.append((is_folder, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"one")
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that knows no such thing will do; a disk that fails will not."""

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    is_told = pytest.raises(OSError, match="error") if number == errno.EIO else nullcontext()
    with is_told:
        replace_file(tmp_path / "a.json", b"one")
    assert (tmp_path / "a.json").read_bytes() == b"one"


def test_what_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    """A folder in its place: the error comes out, and the temporary file is gone."""
    path = tmp_path / "a.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(path, b"one")
    assert os.listdir(tmp_path) == ["a.json"]
