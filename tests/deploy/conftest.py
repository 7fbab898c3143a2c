"""What tests of real disks share: a view of this machine, and a disk in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.loop_devices import LoopDevice, loop_device
from tests.deploy.namespace import Namespace, namespace


@pytest.fixture
def view(tmp_path: Path) -> Iterator[Namespace]:
    """A view of this machine of the test's own."""
    with namespace(tmp_path) as view:
        yield view


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDevice]:
    """An empty disk."""
    (tmp_path / "disks").mkdir()
    with loop_device(tmp_path / "disks", mib=32) as disk:
        yield disk
