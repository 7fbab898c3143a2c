"""The wheel that goes to a server, so that both ends are of the same version."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from pocqueue.deploy.errors import BadUsage

MAX_BYTES = 64 * 1024 * 1024
#: Of the wheel: versions of all that it needs, as this commit was tested with.
CONSTRAINTS = "pocqueue/_constraints.txt"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of pocqueue.

    Attributes:
        path: here.
        version: of pocqueue.
        data: of the file.
    """

    path: Path
    version: str
    data: bytes = field(repr=False)

    @property
    def hash_hex(self) -> str:
        """Return its SHA-256."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def folder(self) -> str:
        """Return the name of its venv: two wheels of one version are two."""
        return f"{self.version}-{self.hash_hex[:12]}"

    @property
    def text(self) -> str:
        """Return it as text, for standard input."""
        return base64.encodebytes(self.data).decode()


def read_wheel(path: Path) -> Wheel:
    """Return a wheel.

    Raises:
        BadUsage: it is none of pocqueue, or was made without the versions of what it needs.
    """
    name = re.fullmatch(r"pocqueue-([0-9A-Za-z.!+]+)-py3-none-any\.whl", path.name)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadUsage(
                f"{path} is larger than {MAX_BYTES >> 20} MiB: it is no wheel of pocqueue."
            )
        data = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile) as exc:
        raise BadUsage(f"{path} cannot be read ({exc}): pip wheel --no-deps . makes one.") from None
    if name is None or CONSTRAINTS not in names:
        raise BadUsage(
            f"{path} is no wheel of pocqueue for a server; allowed: pocqueue-VERSION-py3-none-any.whl, as pip wheel --no-deps . "
            "makes it."
        )
    return Wheel(path, name[1], data)
