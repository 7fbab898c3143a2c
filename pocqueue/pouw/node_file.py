"""A SQLite file of a node: of one network, and of nobody where the node has no folder."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from typing_extensions import override

from pocqueue.pouw.errors import BadEncoding, NodeDataError
from pocqueue.pouw.wire.codec import decode
from pocqueue.web.sqlite_file import FileRole, SqliteFile

_T = TypeVar("_T")


class NodeFile(SqliteFile):
    """What a node keeps of a network in a file, made if it is not there; a context manager.

    A table ``meta`` of names and values says which network it is of. Every method raises NodeDataError if the file
    is in trouble. May be used from any thread.

    Args:
        folder: for the file; None: a folder of its own that goes when it is closed.
        name: of the file.
        role: what it is, for messages.
        scripts: SQL of its upgrades; the first one makes ``meta``.
        network: the network's id.

    Raises:
        NodeDataError: another process has the file open, it is another network's, of a newer version,
            damaged, or cannot be written.
    """

    #: What to do with a file whose content cannot be right: a sentence.
    _mend: ClassVar[str]

    def __init__(
        self,
        folder: Path | None,
        name: str,
        role: FileRole,
        scripts: Sequence[Path],
        network: bytes,
    ) -> None:
        self._scratch = None
        if folder is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="pocqueue-pouw-")
            folder = Path(self._scratch.name)
        super().__init__(folder / name, role, [one.read_text("utf-8") for one in scripts])
        try:
            self._begin(network)
        except BaseException:
            self.close()
            raise

    @override
    def close(self) -> None:
        """Close the file; may be called again."""
        super().close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def damaged(self, what: str) -> NodeDataError:
        """Return the error for content that cannot be right; SQLite has no checksums that notice a flipped bit."""
        return NodeDataError(f"The {self._role.name} {self.path} is damaged: {what} {self._mend}")

    def _first_rows(self, db: sqlite3.Connection) -> None:
        """Put in what a new file has from the start."""

    def _begin(self, network: bytes) -> None:
        """Write down which network this is, or see that it is this one."""
        with self.transaction() as db:
            row = db.execute("SELECT value FROM meta WHERE name = 'network'").fetchone()
            if row is None:
                db.execute("INSERT INTO meta VALUES ('network', ?)", (network,))
                self._first_rows(db)
            elif row[0] != network:
                raise NodeDataError(
                    f"The {self._role.name} {self.path} is of network {row[0].hex()[:16]}…, and this node of "
                    f"{network.hex()[:16]}…: give each network a folder of its own, by {self._role.setting}."
                )

    def decoded(self, data: bytes, kind: type[_T]) -> _T:
        """Return what was written."""
        try:
            return decode(data, kind)
        except BadEncoding as exc:
            raise self.damaged(str(exc)) from exc
