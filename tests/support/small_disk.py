"""A disk that can be filled up. Mounting one takes root; a test is skipped where that is not allowed."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int = 8) -> Iterator[Path]:
    """Mount a disk of that size on a folder within the block."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: what a failed test has left running may still be in there.
        umount = ["umount", "--lazy", str(folder)]
        subprocess.run(umount, check=True)


def fill(folder: Path) -> Path:
    """Fill the disk of a folder to its last byte; return the file to delete for there to be room again."""
    path = folder / "fill"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return path
