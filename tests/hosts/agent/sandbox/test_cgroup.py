"""Control groups: version 1 and 2 by the files that are written; the real one of this machine by the sandbox's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocqueue.hosts.agent.sandbox.base import Limits
from pocqueue.hosts.agent.sandbox.cgroup import OURS, Cgroups, JobGroup

LIMITS = Limits(memory_mib=64, processes=10)


@pytest.fixture
def keeps_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a plain file system has files in it that a control group's has not when it goes."""
    monkeypatch.setattr(JobGroup, "remove", lambda _: None)


@pytest.mark.usefixtures("keeps_files")
def test_version_2_has_one_group_for_all(tmp_path: Path) -> None:
    """Its own folder below the root, with controllers switched on for both."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    found = Cgroups.find("me", tmp_path)
    assert found is not None
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (tmp_path / OURS / "cgroup.subtree_control").read_text() == "+memory +pids"
    with found.new(LIMITS) as group:
        [folder] = set(group.folders.values())
        assert folder.parent == tmp_path / OURS
        assert folder.name.startswith("me-")
        group.add(os.getpid())
        assert (folder / "memory.max").read_text() == str(64 << 20)
        assert (folder / "pids.max").read_text() == "12"
        assert (folder / "cgroup.procs").read_text() == str(os.getpid())
        (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
        (folder / "memory.events").write_text("oom 1\noom_kill 0\n")
        assert (group.cpu_s(), group.lacks_memory()) == (2.5, False)
        (folder / "memory.events").write_text("oom 1\noom_kill 1\n")
        assert group.lacks_memory()


def test_a_tree_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    """As in most containers, and for most users."""
    assert Cgroups.find("me", tmp_path / "nothing") is None
    (tmp_path / "cgroup.controllers").write_text("memory pids")
    (tmp_path / OURS).touch()
    assert Cgroups.find("me", tmp_path) is None
