"""The table of filesystems, `/etc/fstab`: its lines, and the one that a deployment adds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pocqueue.deploy.facts.parts import unescaped

#: A disk that is missing must not keep the server from starting.
OPTIONS = "defaults,nofail"


@dataclass(frozen=True, slots=True)
class FstabLine:
    """A line that names a filesystem."""

    source: str  #: such as ``UUID=…`` or ``/dev/vdc``
    target: str
    kind: str
    options: str
    number: int  #: counted from 1
    rest: str = ""  #: dump and order of checks, such as ``0 2``


def read_fstab(text: str) -> tuple[FstabLine, ...]:
    """Return the lines that name filesystems.

    >>> read_fstab("# root\\nUUID=5f / ext4 defaults 0 1\\n")
    (FstabLine(source='UUID=5f', target='/', kind='ext4', options='defaults', number=2, rest='0 1'),)
    """
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            source, target, kind, options, *rest = [*map(unescaped, words), "", "", ""]
            found.append(
                FstabLine(
                    source.replace('"', ""),
                    target,
                    kind,
                    options,
                    number,
                    " ".join(filter(None, rest)),
                )
            )
    return tuple(found)


def own_line(uuid: str, mount: str) -> str:
    """Return the line for our filesystem, without its end.

    Raises:
        ValueError: a path with blanks, which the conf's rules do not let through.
    """
    if not re.fullmatch(r"/[^\s\\]+", mount):
        raise ValueError(f"{mount!r} is no path for /etc/fstab")
    return f"UUID={uuid} {mount} ext4 {OPTIONS} 0 2"


def has_own_line(lines: Sequence[FstabLine], uuid: str, mount: str) -> bool:
    """Return whether our line is there, once and as we would write it, and no other speaks of its folder."""
    wanted = read_fstab(own_line(uuid, mount))[0]
    about = [line for line in lines if line.target == mount or line.source == wanted.source]
    return len(about) == 1 and all(
        getattr(about[0], name) == getattr(wanted, name)
        for name in ("source", "target", "kind", "options", "rest")
    )


def conflicts(lines: Sequence[FstabLine], uuid: str, mount: str) -> tuple[str, ...]:
    """Return why our line cannot be added, a sentence each; none: it can, or is there."""
    if has_own_line(lines, uuid, mount):
        return ()
    return tuple(
        f"/etc/fstab has line {line.number}, {line.source} on {line.target}, for the same folder or filesystem: "
        "remove it or correct it, it may be in use."
        for line in lines
        if line.target == mount or line.source == f"UUID={uuid}"
    )
