"""Writes a conf file with a comment for every field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pocqueue.deploy import rules
from pocqueue.deploy.conf import FIELDS, parse_conf, read_texts
from pocqueue.deploy.errors import BadUsage, ConfError, Problem
from pocqueue.files import replace_file

_PLAIN = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)


def conf_text(values: Mapping[str, str]) -> str:
    """Return the content of a conf file: fields with their values, and the others as comments.

    Args:
        values: texts by names of fields.
    """
    lines = [
        "# A node of pocqueue: `pocqueue deploy check` and `deploy run` read this file, and never run it."
    ]
    for field in FIELDS:
        text = values.get(field.name, "")
        lines.append(f"\n# {field.help}" + (" Needed." if field.needed else ""))
        shown = text if _PLAIN.fullmatch(text) else f"'{text}'"
        lines.append(f"{field.name}={shown}" if text else f"#{field.name}={field.default}")
    return "\n".join(lines) + "\n"


def write_conf(path: Path, values: Mapping[str, str]) -> None:
    """Write a conf file, mode 0600, that can be used as it is.

    Raises:
        ConfError: a value is not allowed; nothing is written.
        BadUsage: there is such a file, or it cannot be written.
    """
    text = conf_text(values)
    _check_kept(text, path, values)
    parse_conf(text.encode(), path.absolute())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # It is never written over: its password may be the only copy.
        path.touch(mode=0o600, exist_ok=False)
        replace_file(path, text.encode())
    except FileExistsError:
        raise BadUsage(f"{path} is there already: edit it, or take another name.") from None
    except OSError as exc:
        raise BadUsage(f"{path} cannot be written ({exc.strerror}).") from None


def _check_kept(text: str, path: Path, values: Mapping[str, str]) -> None:
    """Check that a file's text says what was given: a quote in a value may end it before its end.

    Raises:
        ConfError: it says something else.
    """
    problems = []
    try:
        if password := values.get("KEYRING_PASSWORD"):
            rules.password(password)
    except ValueError as exc:
        problems.append(Problem(0, "KEYRING_PASSWORD", f"KEYRING_PASSWORD is '…'; allowed: {exc}."))
    found, _ = read_texts(text.encode())
    for name, value in values.items():
        if (
            value
            and found.get(name, (0, ""))[1] != value
            and name not in {p.field for p in problems}
        ):
            problems.append(
                Problem(
                    0,
                    name,
                    f"{name} cannot be written as it is; allowed: a line without quotes and \\.",
                )
            )
    if problems:
        raise ConfError(path, problems)
