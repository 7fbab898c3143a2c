"""Settings read from environment variables, with errors that name the variable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pocqueue.errors import SettingsError
from pocqueue.words import shown


def full_path(path: Path) -> Path:
    """Return the whole path of one that may begin with ``~``, a user's home folder.

    Raises:
        SettingsError: that user has none, as in a container that runs under any number.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise SettingsError(
            f"{path} cannot be found: user {os.getuid()} has no home folder that ~ could stand for. Set "
            "HOME, or write the whole path (POCQUEUE_STATE_DIR, where none was written)."
        ) from None


class EnvSettings(BaseSettings):
    """Settings of one prefix: the variable of a field is the prefix and the field's name, in capitals.

    Read once, then passed on as an argument.
    """

    # A field is explained by the docstring behind it.
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    @classmethod
    def load(cls) -> Self:
        """Read them from the environment.

        Raises:
            SettingsError: a variable has a value that is not allowed; names variable, value and rule.
        """
        try:
            return cls()
        except ValidationError as exc:
            problem = exc.errors()[0]
            name = str(problem["loc"][0]) if problem["loc"] else "?"
            is_secret = name in cls.model_fields and cls.is_secret(name)
            given = "the given value" if is_secret else shown(name, problem["input"])
            reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
            if problem["type"] == "allowed":
                reason = f"allowed is {reason}"
            raise SettingsError(
                f"{cls.variable(name)} cannot be {given}: {reason}. "
                "config/env.example lists every variable and its default."
            ) from None

    @classmethod
    def override(cls, **given: Any) -> Self:
        """Let options go before the environment, here and in child processes, and read the settings.

        Args:
            given: values by field; None: not given.

        Raises:
            SettingsError: as `load` does.
        """
        texts = {
            cls.variable(name): str(value) for name, value in given.items() if value is not None
        }
        os.environ.update(texts)
        return cls.load()

    @classmethod
    def variable(cls, field: str) -> str:
        """Return the environment variable of a field."""
        return f"{cls.model_config['env_prefix']}{field.upper()}"

    @classmethod
    def is_secret(cls, field: str) -> bool:
        """Say whether a field's value must not be shown."""
        annotation = cls.model_fields[field].annotation
        return SecretStr in (annotation, *get_args(annotation))

    def variables(self) -> dict[str, str | None]:
        """Return the environment that gives these very settings, secrets included; None: not set."""
        found: dict[str, str | None] = {}
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            found[self.variable(field)] = None if value is None else str(value)
        return found
