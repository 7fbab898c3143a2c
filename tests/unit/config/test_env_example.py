"""config/env.example is complete, and its defaults are the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocqueue.settings import ENV_PREFIX, Settings

from .env_example import read_env_example


def test_lists_exactly_the_settings() -> None:
    """Every setting has a line, and no line names a setting that is gone."""
    listed = {name for name in read_env_example() if name.startswith(ENV_PREFIX)}
    assert listed == {f"{ENV_PREFIX}{field.upper()}" for field in Settings.model_fields}


def test_every_variable_is_explained() -> None:
    """Each variable has its one line directly above it."""
    assert [v.name for v in read_env_example().values() if not v.explanation] == []


def test_defaults_are_the_real_ones() -> None:
    """What stands behind `#NAME=` is what happens when the variable is not set."""
    listed = read_env_example()
    for field, info in Settings.model_fields.items():
        shown = listed[f"{ENV_PREFIX}{field.upper()}"]
        assert not shown.active, f"{shown.name}: a default belongs behind #"
        if info.default_factory is None:
            default = "" if info.default is None else str(info.default)
            assert shown.value.lower() == default.lower(), shown.name


def test_defaults_can_be_uncommented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking the `#` off every default that has a value gives the settings one had before."""
    before = Settings()
    for variable in read_env_example().values():
        if variable.name.startswith(ENV_PREFIX) and variable.value:
            monkeypatch.setenv(variable.name, variable.value)
    after = Settings()
    assert after.model_dump(exclude={"state_dir"}) == before.model_dump(exclude={"state_dir"})
    assert after.state_dir == Path("~/.local/state/pocqueue").expanduser()
