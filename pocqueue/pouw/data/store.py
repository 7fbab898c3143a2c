"""Files of data in a node's folder: whole ones, and those of which some chunks are still missing.

    <hash>           a whole file
    <hash>.manifest  its `Manifest`
    <hash>.part      one in the making: chunks in their places, the others are zeros
    <hash>.hidden    (empty) nobody else gets this one yet

A chunk is looked at by its hash whenever it comes in, and when it is read from disk again: whatever a crash leaves
behind is asked for once more, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.files import replace_file
from pocqueue.pouw.data.manifest import chunks, file_bytes, manifest_of
from pocqueue.pouw.errors import BadEncoding, DataError, NodeDataError
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.data import CHUNK_BYTES, DATA_NAME, Manifest

#: Name of the folder in a node's folder.
FOLDER_NAME: Final = "data"
_MANIFEST, _PART, _HIDDEN = ".manifest", ".part", ".hidden"
#: Names of this store's files, and of those that `replace_file` had not finished: all others in the folder are
#: somebody else's.
_OURS = re.compile(
    r"[0-9a-f]{64}(\.(manifest|part|hidden))?|\.[0-9a-f]{64}(\.manifest)?-[a-z0-9_]{8}"
)


class DataStore(Closing):
    """Files of data on disk. From any thread; every method raises NodeDataError if the disk is in trouble.

    Args:
        folder: of the node; None: one of its own that goes when it is closed.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._scratch = None
        if folder is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="pocqueue-pouw-")
            folder = Path(self._scratch.name)
        self._folder = folder / FOLDER_NAME
        self._lock = threading.RLock()
        self._manifests: dict[str, Manifest] = {}
        #: Whole ones whose chunks were all looked at since the start.
        self._whole: set[str] = set()
        #: Chunks that are not here, of those in the making.
        self._missing: dict[str, set[int]] = {}
        self._hidden: set[str] = set()
        with self._disk():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._open()

    @override
    def close(self) -> None:
        """Remove the folder if it is this store's own; may be called again."""
        if self._scratch is not None:
            self._scratch.cleanup()

    def path(self, name: str) -> Path | None:
        """Return where a whole file is; None: it is not here. Never waits."""
        return self._at(name) if name in self._whole else None

    def manifest(self, name: str) -> Manifest | None:
        """Return the manifest of a file that is here, in whole or in part. Never waits."""
        return self._manifests.get(name)

    def is_hidden(self, name: str) -> bool:
        """Say whether nobody else gets a file. Never waits."""
        return name in self._hidden

    def show(self, name: str) -> None:
        """Hide a file no longer, also after a restart."""
        with self._lock, self._disk():
            self._at(name, _HIDDEN).unlink(missing_ok=True)
            self._hidden.discard(name)

    def chunk(self, name: str, index: int) -> bytes | None:
        """Return a chunk; None: it is not here."""
        with self._lock, self._disk():
            manifest = self._manifests.get(name)
            if manifest is None or index >= len(manifest.chunks):
                return None
            if index in self._missing.get(name, ()):
                return None
            found = self._read(name, index)
            if hashlib.sha256(found).digest() == manifest.chunks[index]:
                return found
            self.remove(name)
            raise NodeDataError(f"The file of data {self._at(name)} was damaged, and is gone now.")

    def add(self, path: Path, needed: Collection[str] = (), *, is_hidden: bool = False) -> str:
        """Take a copy of a file; return the name of its data.

        Args:
            path: of the file.
            needed: names of data that make room for nothing.
            is_hidden: nobody else gets it until `show`.

        Raises:
            DataError: it cannot be read, or is empty or too large; or there is no room.
        """
        data = file_bytes(path)
        manifest = manifest_of(data)
        with self._lock, self._disk():
            if is_hidden:
                self._at(manifest.name, _HIDDEN).touch(0o600)
                self._hidden.add(manifest.name)
            if manifest.name not in self._whole:
                self._make_room(manifest, needed)
                replace_file(self._at(manifest.name, _MANIFEST), encode(manifest))
                replace_file(self._at(manifest.name), data)
                self._at(manifest.name, _PART).unlink(missing_ok=True)
                self._missing.pop(manifest.name, None)
                self._manifests[manifest.name] = manifest
                self._whole.add(manifest.name)
        return manifest.name

    def begin(self, manifest: Manifest, needed: Collection[str] = ()) -> set[int]:
        """Make room for a file that others have; return which chunks are missing, none if it is here.

        Args:
            manifest: whole, and looked at by its name.
            needed: names of data that make room for nothing.

        Raises:
            DataError: there is no room beside what is needed.
        """
        name = manifest.name
        with self._lock, self._disk():
            if name in self._whole:
                return set()
            if name not in self._missing:
                self._make_room(manifest, needed)
                replace_file(self._at(name, _MANIFEST), encode(manifest))
                self._made(name, manifest)
            return set(self._missing[name])

    def write(self, name: str, index: int, data: bytes) -> bool:
        """Keep a chunk of a file that was begun; False: it is not the one that its hash says."""
        manifest = self._manifests.get(name)
        if manifest is None or hashlib.sha256(data).digest() != manifest.chunks[index]:
            return False
        with self._lock, self._disk():
            missing = self._missing.get(name, set())
            if index in missing:
                with self._at(name, _PART).open("r+b") as file:
                    file.seek(index * CHUNK_BYTES)
                    file.write(data)
                    if len(missing) == 1:
                        file.flush()
                        os.fsync(file.fileno())
                missing.discard(index)
                if not missing:
                    self._at(name, _PART).replace(self._at(name))
                    del self._missing[name]
                    self._whole.add(name)
        return True

    def remove(self, name: str) -> None:
        """Forget a file, whole or not."""
        with self._lock, self._disk():
            self._manifests.pop(name, None)
            self._missing.pop(name, None)
            self._whole.discard(name)
            self._hidden.discard(name)
            for suffix in ("", _PART, _HIDDEN, _MANIFEST):
                self._at(name, suffix).unlink(missing_ok=True)

    @property
    def names(self) -> list[str]:
        """Return the names of all that is here, in whole or in part."""
        with self._lock:
            return list(self._manifests)

    @property
    def num_bytes(self) -> int:
        """Return what all files have together once they are whole."""
        return sum(manifest.size for manifest in list(self._manifests.values()))

    def _open(self) -> None:
        """Go on from what is on disk."""
        for path in self._folder.iterdir():
            name = "0x" + path.name.removesuffix(_MANIFEST)
            if not path.name.endswith(_MANIFEST) or not DATA_NAME.fullmatch(name):
                continue
            if self._at(name, _HIDDEN).exists():
                self._hidden.add(name)
            try:
                manifest = decode(path.read_bytes(), Manifest)
            except BadEncoding:
                self.remove(name)
                continue
            if manifest.name != name or not manifest.is_whole:
                self.remove(name)
            elif self._is_whole(name, manifest):
                self._manifests[name] = manifest
                self._whole.add(name)
            else:
                self._at(name).unlink(missing_ok=True)
                self._made(name, manifest)
        # What has no manifest: somebody's writing was cut short.
        for path in self._folder.iterdir():
            is_ours = _OURS.fullmatch(path.name) is not None and path.is_file()
            if is_ours and "0x" + path.name.partition(".")[0] not in self._manifests:
                path.unlink()

    def _is_whole(self, name: str, manifest: Manifest) -> bool:
        try:
            data = self._at(name).read_bytes()
        except FileNotFoundError:
            return False
        return len(data) == manifest.size and manifest_of(data) == manifest

    def _made(self, name: str, manifest: Manifest) -> None:
        """Have a file in the making, with the chunks that are in it already."""
        part = self._at(name, _PART)
        with part.open("a+b") as file:
            file.truncate(manifest.size)
        found = enumerate(zip(chunks(part.read_bytes()), manifest.chunks, strict=True))
        self._missing[name] = {
            index for index, (one, due) in found if hashlib.sha256(one).digest() != due
        }
        self._manifests[name] = manifest
        if not self._missing[name]:
            part.replace(self._at(name))
            del self._missing[name]
            self._whole.add(name)

    def _make_room(self, manifest: Manifest, needed: Collection[str]) -> None:
        """Remove what nobody needs, what came longest ago first, until a file fits."""
        due = self.num_bytes + manifest.size - self._max_bytes
        gone = []
        for name in sorted((one for one in self._manifests if one not in needed), key=self._came):
            if due <= 0:
                break
            due -= self._manifests[name].size
            gone.append(name)
        if due > 0:
            raise DataError(
                f"{manifest.size:,} bytes of data find no room among the {self._max_bytes:,} that this node keeps."
            )
        for name in gone:
            self.remove(name)

    def _came(self, name: str) -> float:
        path = self._at(name) if name in self._whole else self._at(name, _PART)
        return path.stat().st_mtime

    def _read(self, name: str, index: int) -> bytes:
        suffix = _PART if name in self._missing else ""
        with self._at(name, suffix).open("rb") as file:
            file.seek(index * CHUNK_BYTES)
            return file.read(CHUNK_BYTES)

    def _at(self, name: str, suffix: str = "") -> Path:
        return self._folder / (name.removeprefix("0x") + suffix)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except NodeDataError:
            raise
        except OSError as exc:
            raise NodeDataError(
                f"Data cannot be kept in {self._folder}: {exc.strerror or exc}."
            ) from None
