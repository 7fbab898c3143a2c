"""Reads a `config.env`: lines of NAME=value, with or without `export` before them.

What is in the environment already wins, so that a file can hold the defaults of a machine.
"""

from __future__ import annotations

from pathlib import Path

from pocqueue.errors import SettingsError


def load_env_file(path: Path) -> None:
    """Put the variables of a file into this process's environment.

    Raises:
        SettingsError: the file cannot be read, or a line is no assignment; no value is in the message.
    """
    import io

    from dotenv import load_dotenv
    from dotenv.parser import parse_stream

    try:
        text = path.read_text("utf-8")
        bad = [found.original.line for found in parse_stream(io.StringIO(text)) if found.error]
        wrong = f"whose line {bad[0]} is no assignment" if bad else None
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        wrong = f"which cannot be read ({reason})"
    if wrong is not None:
        raise SettingsError(
            f"--env-file is {str(path)!r}, {wrong}; allowed: a text file with lines such as "
            "`export DELEGATION_PORT=9090`."
        )
    load_dotenv(stream=io.StringIO(text))
