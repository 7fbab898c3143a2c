"""Fingerprints already computed, kept on disk so that a 100 GB model is hashed once.

One JSON file a model folder, ``<state_dir>/fingerprints/<SHA-256 of the folder's path>.json``:
``{"version": 1, "folder": str, "files": [[name, size in bytes, mtime in ns], ...], "fingerprint": str}``.
It counts only if everything else in it is what is on disk now. If anything is wrong with the file or the
folder, the model is hashed again: a cache must never stop a worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocqueue.files import FileLock, replace_file

_VERSION = 1
_HEX_DIGITS = re.compile(r"[0-9a-f]{64}")


class FingerprintCache:
    """The cached fingerprint of one model folder."""

    def __init__(self, state_dir: Path, model_dir: Path, files: list[Path]) -> None:
        """Look at the files as they are now.

        Args:
            state_dir: pocqueue's state folder; made when something is written.
            model_dir: the model's folder.
            files: all that the fingerprint depends on.

        Raises:
            OSError: one of the files cannot be looked at.
        """
        folder = str(model_dir.resolve())
        stats = [(file.name, file.stat()) for file in files]
        self._key: dict[str, Any] = {
            "version": _VERSION,
            "folder": folder,
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        }
        name = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()
        self._path = state_dir / "fingerprints" / f"{name}.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this model's lock between processes, so that eight workers hash it once, not eight times.

        If the lock file cannot be made (a read-only state folder), nothing is held.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(FileLock(self._path.with_suffix(".lock")))
            yield

    def read(self) -> str | None:
        """Return the fingerprint, or None if there is none for the files as they are."""
        try:
            cached = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(cached, dict):
            return None
        value = cached.pop("fingerprint", None)
        if cached != self._key or not isinstance(value, str) or not _HEX_DIGITS.fullmatch(value):
            return None
        return value

    def write(self, fingerprint: str) -> None:
        """Keep the fingerprint; a reader sees the old file or the new one, never half of it."""
        text = json.dumps({**self._key, "fingerprint": fingerprint}, indent=1)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, text.encode())
