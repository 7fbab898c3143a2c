"""A control group for each job, where this process may make one: the kernel's own bounds and counters.

Version 2 (one tree) and version 1 (a tree for each controller) are both about. Groups are made in a folder of ours at
the root of each tree, as container engines do; that takes root, and trees that can be written to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocqueue.hosts.agent.sandbox.base import Limits

ROOT = Path("/sys/fs/cgroup")
#: Folder of ours in each tree.
OURS = "pocqueue-agent"

_MIB = 1 << 20
_REMOVE_S = 2.0


@dataclass(frozen=True, slots=True)
class JobGroup:
    """The control group of one job: its folder in each tree. Made by `Cgroups.new`."""

    folders: dict[
        str, Path
    ]  #: by controller: `memory`, `pids`, `cpuacct`; the same one for all in version 2
    version: int

    def add(self, pid: int) -> None:
        """Put a process in; what it starts from now on is in it too."""
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def cpu_s(self) -> float:
        """Return the seconds of CPU that were used in it."""
        if self.version == 1:
            return int((self.folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        return _numbers(self.folders["cpuacct"] / "cpu.stat")["usage_usec"] / 1e6

    def lacks_memory(self) -> bool:
        """Say whether a process of it was killed for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _numbers(self.folders["memory"] / name).get("oom_kill", 0) > 0

    def kill(self) -> None:
        """Kill all processes in it, and what they start meanwhile; gives up after a while."""
        deadline = time.monotonic() + _REMOVE_S
        while (pids := self._pids()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _pids(self) -> set[int]:
        found = set[int]()
        for folder in set(self.folders.values()):
            with contextlib.suppress(OSError):
                found.update(map(int, (folder / "cgroup.procs").read_text().split()))
        return found

    def remove(self) -> None:
        """Remove it; its processes have ended, and the kernel notices that within moments."""
        deadline = time.monotonic() + _REMOVE_S
        for folder in set(self.folders.values()):
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        return  # `Cgroups.clean` tries again
                    time.sleep(0.001)


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where groups can be made. Found by `find`."""

    version: int
    trees: dict[str, Path]  #: folder of ours, by controller
    owner: str  #: how the names of our groups begin; another agent's have another owner

    @classmethod
    def find(cls, owner: str, root: Path = ROOT) -> Cgroups | None:
        """Return where this process can make groups; None: nowhere."""
        names = ("memory", "pids", "cpuacct")
        if (root / "cgroup.controllers").exists():
            found = cls(2, dict.fromkeys(names, root / OURS), owner)
        else:
            found = cls(1, {name: root / name / OURS for name in names}, owner)
        try:
            for folder in set(found.trees.values()):
                folder.mkdir(exist_ok=True)
                if found.version == 2:
                    for parent in (root, folder):
                        (parent / "cgroup.subtree_control").write_text("+memory +pids")
            with found.new(Limits()):
                pass
        except OSError:
            return None
        return found

    @contextlib.contextmanager
    def new(self, limits: Limits) -> Iterator[JobGroup]:
        """Make a group with these bounds, and remove it at the end of the block.

        Raises:
            OSError: it cannot be made.
        """
        name = f"{self.owner}-{uuid.uuid4().hex}"
        group = JobGroup({key: tree / name for key, tree in self.trees.items()}, self.version)
        memory, pids = group.folders["memory"], group.folders["pids"]
        most = str(limits.memory_mib * _MIB)
        try:
            for folder in set(group.folders.values()):
                folder.mkdir()
            if self.version == 1:
                (memory / "memory.limit_in_bytes").write_text(most)
                _write_if_there(memory / "memory.memsw.limit_in_bytes", most)
            else:
                (memory / "memory.max").write_text(most)
                _write_if_there(memory / "memory.swap.max", "0")
                _write_if_there(memory / "memory.oom.group", "1")
            # The sandbox's own two processes are in it.
            (pids / "pids.max").write_text(str(limits.processes + 2))
            yield group
        finally:
            group.remove()

    def clean(self) -> None:
        """End and remove what a killed agent of this owner has left."""
        left = {
            folder.name
            for tree in self.trees.values()
            for folder in tree.glob(f"{self.owner}-*")
            if folder.is_dir()
        }
        for name in left:
            folders = {key: tree / name for key, tree in self.trees.items()}
            group = JobGroup(folders, self.version)
            group.kill()
            group.remove()


def _write_if_there(path: Path, text: str) -> None:
    """Write into a control file that some kernels do not have."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(path, os.O_WRONLY)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def _numbers(path: Path) -> dict[str, int]:
    """Read a file with lines of a name and a number."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
