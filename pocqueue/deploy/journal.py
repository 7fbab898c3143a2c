"""What a run has to remember of a server that its facts cannot tell: `state.json` in the node's folder.

Nothing in it says that a step is done: that is always asked of the server. It has no secrets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pocqueue import strict_json
from pocqueue.deploy.errors import DeployError
from pocqueue.deploy.words import Command
from pocqueue.files import replace_file

_VERSION = 1
#: Exit code of an undo's script: it ran, but what it should take away still stands, for the reason that it printed.
STILL_THERE = 66
#: Containers that ignore the signal take minutes to end; a time-out would leave it unknown whether they have.
_UNDO_S = 300.0


@dataclass(frozen=True, slots=True)
class Undo:
    """How something is taken back that a step did.

    Attributes:
        step: its name.
        what: for people, such as ``remove our line from /etc/fstab``.
        script: of ours.
        words: for the script.
        sudo: run as root; not for what is the login's own.
    """

    step: str
    what: str
    script: str
    words: tuple[str, ...]
    sudo: bool = True

    def command(self) -> Command:
        """Return the command."""
        return Command(self.words, script=self.script, sudo=self.sudo, timeout_s=_UNDO_S)


class Journal:
    """The memory of one node's runs; each change is on disk before it returns.

    Args:
        path: of the file.
        server: whom it is about; one of another server is refused.
    """

    def __init__(self, path: Path, server: str) -> None:
        self.path = path
        self._data: dict[str, Any] = {
            "version": _VERSION,
            "server": server,
            "undo": [],
            "steps": {},
        }

    @classmethod
    def read(cls, path: Path, server: str) -> Self:
        """Return what a file has, or an empty one if there is none.

        Raises:
            DeployError: it cannot be read, or is another server's or version's.
        """
        journal = cls(path, server)
        try:
            found = strict_json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return journal
        except (OSError, ValueError) as exc:
            raise DeployError(
                f"{path} cannot be read ({exc}): mend it, or move it away; the server keeps what it has."
            ) from None
        if not isinstance(found, dict) or found.get("version") != _VERSION:
            raise DeployError(
                f"{path} is of another version of pocqueue: use that one, or move it away."
            )
        if found.get("server") != server:
            raise DeployError(
                f"{path} is about {found.get('server')}, but the conf file names {server}. If the node moved, move the "
                f"folder {path.parent} away first: its keys belong to the old server."
            )
        journal._data |= found
        return journal

    def get(self, name: str) -> Any:
        """Return what was recorded; None: nothing."""
        return self._data.get(name)

    def record(self, **values: Any) -> None:
        """Remember something by its name."""
        self._write(self._data | values)

    def record_step(self, name: str, seconds: float, at: str) -> None:
        """Remember when a step was last done, and how long it took."""
        steps = self._data["steps"] | {name: {"at": at, "seconds": round(seconds, 1)}}
        self.record(steps=steps)

    @property
    def steps(self) -> Mapping[str, Any]:
        """Return when steps were last done."""
        return dict(self._data["steps"])

    @property
    def undos(self) -> tuple[Undo, ...]:
        """Return how what was done is taken back, in the order in which it was done."""
        return tuple(
            Undo(**entry | {"words": tuple(entry["words"])}) for entry in self._data["undo"]
        )

    def add_undo(self, undo: Undo) -> None:
        """Remember how something is taken back: before it is done."""
        if undo not in self.undos:
            self.record(undo=[*self._data["undo"], asdict(undo)])

    def drop_undo(self, undo: Undo) -> None:
        """Forget how something is taken back: after it was."""
        self.record(undo=[asdict(other) for other in self.undos if other != undo])

    def _write(self, data: dict[str, Any]) -> None:
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        try:
            replace_file(self.path, text.encode())
        except OSError as exc:
            raise DeployError(
                f"{self.path} cannot be written ({exc.strerror}): mend it; nothing is done without it."
            ) from None
        self._data = json.loads(text)
