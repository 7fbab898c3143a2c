"""A view of this machine whose `/etc`, `/mnt` and `/var/lib` may be written to without it noticing: a mount namespace with overlays.

Commands run in it by `nsenter`; what they mount is mounted there alone, and all is gone with the process that holds it. Root only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Holds the namespace until its standard input ends.
_HOLD = """\
set -eu
mount -t tmpfs none "$1"
for folder in etc mnt var/lib; do
  mkdir -p "$1/$folder/upper" "$1/$folder/work"
  mount -t overlay -o "lowerdir=/$folder,upperdir=$1/$folder/upper,workdir=$1/$folder/work" none "/$folder"
done
echo ready
exec cat
"""


@dataclass(frozen=True)
class Namespace:
    """A view that lasts.

    Attributes:
        pid: of the process that holds it.
        base: folder that has what was changed, in `FOLDER/upper`, seen from within.
    """

    pid: int
    base: Path

    @property
    def words(self) -> tuple[str, ...]:
        """Words before a command that runs in it."""
        return ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--")

    def run(self, *argv: str) -> str:
        """Return what a command in it prints, which has to end well."""
        done = subprocess.run(
            [*self.words, *argv], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, (argv, done.stderr)
        return done.stdout


def missing() -> str:
    """Return why there can be none here; empty: there can."""
    if os.geteuid() != 0:
        return "a mount namespace needs root"
    for tool in ("unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    return ""


@contextmanager
def namespace(folder: Path) -> Iterator[Namespace]:
    """Have one within the block."""
    base = folder / "namespace"
    base.mkdir()
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HOLD, "sh", str(base)],  # noqa: S607
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n", holder.communicate(timeout=30)
        yield Namespace(holder.pid, base)
    finally:
        holder.communicate(timeout=60)
