"""What stands in config/env.example can be taken as it is. That it is complete: tests/test_docs.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocqueue.settings import ALL, Settings
from tests.support.commands import PREFIXES
from tests.support.env_example import read_env_example


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without any of our variables."""
    for name in [name for name in os.environ if name.startswith(PREFIXES)]:
        monkeypatch.delenv(name)


def test_defaults_can_be_uncommented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking the `#` off every default that has a value gives the settings one had before."""
    before = [kind.load().model_dump(exclude={"state_dir"}) for kind in ALL]
    for variable in read_env_example().values():
        if variable.name.startswith(PREFIXES) and variable.value:
            assert not variable.active, f"{variable.name}: a default belongs behind #"
            monkeypatch.setenv(variable.name, variable.value)
    assert [kind.load().model_dump(exclude={"state_dir"}) for kind in ALL] == before
    assert Settings.load().state_dir == Path("~/.local/state/pocqueue").expanduser()


def test_an_empty_value_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes the `#` off a default that is empty has changed nothing."""
    before = [kind.load().model_dump() for kind in ALL]
    for variable in read_env_example().values():
        # A machine without a name is refused.
        is_empty = not variable.value and variable.name != "POCQUEUE_HOST_NAME"
        if variable.name.startswith(PREFIXES) and is_empty:
            monkeypatch.setenv(variable.name, "")
    assert [kind.load().model_dump() for kind in ALL] == before
