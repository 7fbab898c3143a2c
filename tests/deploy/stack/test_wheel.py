"""The wheel that goes to a server."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pocqueue.deploy.errors import BadUsage
from pocqueue.deploy.stack.wheel import read_wheel
from tests.deploy.stack.on_server import wheel


def test_two_wheels_of_one_version_are_two(tmp_path: Path) -> None:
    """Each has a folder of its own."""
    one, two = read_wheel(wheel(tmp_path, "one")), read_wheel(wheel(tmp_path, "two"))
    assert one.version == two.version == "0.1.0"
    assert one.folder != two.folder


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    """Another package's, one without the versions of what it needs, no archive, nothing."""
    empty = tmp_path / "pocqueue-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("pocqueue/__init__.py", "")
    other = wheel(tmp_path).rename(tmp_path / "other-0.1.0-py3-none-any.whl")
    text = tmp_path / "text.whl"
    text.write_text("text")
    for path in (empty, other, text, tmp_path / "missing.whl"):
        with pytest.raises(BadUsage, match="pip wheel --no-deps"):
            read_wheel(path)
