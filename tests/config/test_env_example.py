"""config/env.example is complete, and its defaults are the real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import pytest

from pocqueue.settings import (
    DELEGATION_PREFIX,
    ENV_PREFIX,
    NODE_PREFIX,
    DelegationSettings,
    NodeSettings,
    Settings,
)
from tests.support.env_example import read_env_example

Kind: TypeAlias = type[Settings] | type[DelegationSettings] | type[NodeSettings]
KINDS: dict[str, Kind] = {
    ENV_PREFIX: Settings,
    DELEGATION_PREFIX: DelegationSettings,
    NODE_PREFIX: NodeSettings,
}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without any of our variables."""
    for name in [name for name in os.environ if name.startswith(tuple(KINDS))]:
        monkeypatch.delenv(name)


def test_lists_exactly_the_settings() -> None:
    """Every setting has a line, and no line names a setting that is gone."""
    listed = {name for name in read_env_example() if name.startswith(tuple(KINDS))}
    assert listed == {
        f"{prefix}{field.upper()}" for prefix, kind in KINDS.items() for field in kind.model_fields
    }


def test_every_variable_is_explained() -> None:
    """Each variable has its one line directly above it."""
    assert [v.name for v in read_env_example().values() if not v.explanation] == []


@pytest.mark.parametrize("prefix", KINDS)
def test_defaults_are_the_real_ones(prefix: str) -> None:
    """What stands behind `#NAME=` is what happens when the variable is not set."""
    listed = read_env_example()
    for field, info in KINDS[prefix].model_fields.items():
        shown = listed[f"{prefix}{field.upper()}"]
        assert not shown.active, f"{shown.name}: a default belongs behind #"
        if info.default_factory is None:
            default = "" if info.default is None else str(info.default)
            assert shown.value.lower() == default.lower(), shown.name


def test_defaults_can_be_uncommented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking the `#` off every default that has a value gives the settings one had before."""
    before, delegation, node = Settings(), DelegationSettings(), NodeSettings()
    for variable in read_env_example().values():
        if variable.name.startswith(tuple(KINDS)) and variable.value:
            monkeypatch.setenv(variable.name, variable.value)
    assert DelegationSettings() == delegation
    assert NodeSettings() == node
    after = Settings()
    assert after.model_dump(exclude={"state_dir"}) == before.model_dump(exclude={"state_dir"})
    assert after.state_dir == Path("~/.local/state/pocqueue").expanduser()


def test_an_empty_value_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes the `#` off a default that is empty has changed nothing."""
    before = [kind().model_dump() for kind in KINDS.values()]
    for variable in read_env_example().values():
        # A machine without a name is refused.
        is_empty = not variable.value and variable.name != "POCQUEUE_HOST_NAME"
        if variable.name.startswith(tuple(KINDS)) and is_empty:
            monkeypatch.setenv(variable.name, "")
    assert [kind().model_dump() for kind in KINDS.values()] == before
