"""Reads a `config.env`: lines of NAME=value, with or without `export` before them.

What is in the environment already wins, so that a file can hold the defaults of a machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pocqueue.errors import SettingsError

if TYPE_CHECKING:
    from dotenv.parser import Binding


def load_env_file(path: Path) -> None:
    """Put the variables of a file into this process's environment.

    Raises:
        SettingsError: the file cannot be read, or a line is no assignment; no value is in the message.
    """
    import io

    from dotenv import load_dotenv
    from dotenv.parser import parse_stream

    try:
        # Editors of Windows begin a file with a mark, which would become part of the first name.
        text = path.read_text("utf-8-sig")
        bad = [line_of(found) for found in parse_stream(io.StringIO(text)) if _is_wrong(found)]
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


def _is_wrong(found: Binding) -> bool:
    """Say whether this is neither an assignment nor a comment, or one that no environment takes.

    `export NAME` alone is taken, as shells do: it sets nothing. A name alone is a slip, such as `NAME:value`.
    """
    if found.error or (found.key is not None and "=" in found.key):
        return True
    alone = found.key is not None and found.value is None
    exported = found.original.string.split()[:1] == ["export"]
    return (alone and not exported) or "\0" in (found.key or "") + (found.value or "")


def line_of(found: Binding) -> int:
    """Return the line that this stands on: what the parser names is the first of the blank lines before it."""
    text = found.original.string
    blank = text[: len(text) - len(text.lstrip())]
    return found.original.line + len(f"{blank}.".splitlines()) - 1
