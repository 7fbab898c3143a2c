"""Reads a `config.env`: lines of NAME=value, with or without `export` before them.

What is in the environment already wins, so that a file can hold the defaults of a machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from pocqueue.errors import SettingsError


def load_env_file(path: Path) -> list[str]:
    """Put the variables of a file into this process's environment; return the names that were new.

    Raises:
        SettingsError: the file cannot be read, or a line is no assignment; no value is in the message.
    """
    import io

    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise SettingsError(
            f"--env-file is {str(path)!r}, which cannot be read ({reason}); allowed: a text file "
            "with lines such as `export DELEGATION_PORT=9090`."
        ) from None
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise SettingsError(
                f"--env-file is {str(path)!r}, whose line {binding.original.line} is no assignment; "
                "allowed: lines such as `export DELEGATION_PORT=9090`."
            )
    new = []
    for name, value in dotenv_values(stream=io.StringIO(text)).items():
        # A name without a value (`export NAME`) sets nothing.
        if value is not None and name not in os.environ:
            os.environ[name] = value
            new.append(name)
    return new
