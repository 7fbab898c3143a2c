"""A model in the hub's cache: what is there, and which of its files are to be loaded (again).

The cache has `blobs/HASH`, the contents, and `snapshots/REVISION/NAME`, links to them; a content that is not whole yet is
`blobs/….incomplete`. A snapshot folder proves nothing: its links are made one by one, and a blob may be cut or damaged.
What has to be there is the hub's own listing of the revision (`read_listing`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, pairs, read_json, read_parts
from pocqueue.deploy.words import Command

#: Space that is left after a download, as a part of what is missing.
SPARE = 0.1
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_INCOMPLETE = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})(?:\.[0-9a-zA-Z_-]+)?\.incomplete")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a revision, as the hub lists it."""

    name: str
    size_bytes: int
    hash_hex: str  #: the name of its blob: SHA-256 of a large file, git's hash of a small one


@dataclass(frozen=True, slots=True)
class Blob:
    """A content in the cache."""

    name: str
    size_bytes: int
    is_file: bool = True  #: and not a link


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a snapshot."""

    name: str
    size_bytes: int  #: of a link: of no meaning
    target: str  #: of a link, as it is written; empty: a file


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the cache has of one revision of a model.

    Attributes:
        home: HF_HOME, where it really is.
        folder: of the model, where it really is.
        outside: what leads out of that folder, such as a link; nothing is to be written there.
        blobs: whole contents, by their names.
        incomplete: bytes of contents that are not whole, by the name that they will have.
        entries: of the snapshot.
        shards: that the model's index names.
        is_verified: all contents were hashed, and are the same since.
        free_bytes: of the disk.
        free_inodes: of the disk.
    """

    home: str
    folder: str
    outside: tuple[str, ...]
    blobs: Mapping[str, Blob]
    incomplete: Mapping[str, int]
    entries: tuple[Entry, ...]
    shards: tuple[str, ...]
    is_verified: bool
    free_bytes: int
    free_inodes: int

    @property
    def size_bytes(self) -> int:
        """Return how many bytes of contents are there, also of those that are not whole."""
        return sum(blob.size_bytes for blob in self.blobs.values()) + sum(self.incomplete.values())


def cache_folder(model: str) -> str:
    """Return the name of a model's folder in the cache.

    >>> cache_folder("Qwen/Qwen3-32B-FP8")
    'models--Qwen--Qwen3-32B-FP8'
    """
    return "models--" + model.replace("/", "--")


def model_facts(home: str, model: str, revision: str) -> Command:
    """Return the command that reads them.

    Args:
        home: HF_HOME.
        model: such as ``Qwen/Qwen3-32B-FP8``.
        revision: a commit.
    """
    return Command(
        (home, cache_folder(model), revision), script="model_facts", sudo=True, timeout_s=60
    )


def read_model(text: str) -> ModelFacts:
    """Return what `model_facts` said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "where", "outside", "blobs", "snapshot", "shards", "verified", "free")
    where = pairs("readlink", parts["where"].wanted().text)
    if not {"home", "folder"} <= where.keys():
        raise UnexpectedAnswer("readlink", parts["where"].text, "two folders")
    blobs, incomplete = dict[str, Blob](), dict[str, int]()
    for kind, entry in _listed(parts["blobs"]):
        if begun := _INCOMPLETE.fullmatch(entry.name):
            incomplete[begun[1]] = max(entry.size_bytes, incomplete.get(begun[1], 0))
        elif _HASH.fullmatch(entry.name):
            blobs[entry.name] = Blob(entry.name, entry.size_bytes, kind == "f")
    verified = pairs("sha256sum", parts["verified"].wanted().text)
    free = parts["free"].wanted().text.split()
    if len(free) != 2 or not free[0].isdecimal():
        raise UnexpectedAnswer("df", parts["free"].text, "free bytes and inodes")
    return ModelFacts(
        home=where["home"],
        folder=where["folder"],
        outside=tuple(parts["outside"].wanted().lines),
        blobs=blobs,
        incomplete=incomplete,
        entries=tuple(entry for _, entry in _listed(parts["snapshot"])),
        shards=tuple(line.strip().strip('"') for line in parts["shards"].wanted().lines),
        is_verified="now" in verified and verified.get("proved") == verified["now"],
        free_bytes=int(free[0]),
        # Some filesystems have no such number.
        free_inodes=int(free[1]) if free[1].isdecimal() and free[1] != "0" else 1 << 40,
    )


def _listed(part: Part) -> Iterable[tuple[str, Entry]]:
    for line in part.wanted().lines:
        said, _, target = line.partition("\t")
        words = said.split(" ", 2)
        if len(words) != 3 or not words[1].isdecimal() or len(words[0]) != 1:
            raise UnexpectedAnswer("find", line, "a file with its size")
        yield words[0], Entry(words[2], int(words[1]), target if words[0] == "l" else "")


def read_listing(text: str) -> tuple[HubFile, ...]:
    """Return the files of a revision from the hub's `/api/models/MODEL/revision/REVISION?blobs=true`.

    Raises:
        UnexpectedAnswer: it is no such answer, or names a file outside the model.
    """
    files = []
    try:
        for row in read_json("the model hub", text)["siblings"]:
            name, large = str(row["rfilename"]), row.get("lfs") or {}
            hash_hex = str(large.get("sha256") or row["blobId"])
            path = PurePosixPath(name)
            if (
                not _HASH.fullmatch(hash_hex)
                or path.is_absolute()
                or ".." in path.parts
                or not path.parts
            ):
                raise UnexpectedAnswer("the model hub", str(row), "a file with its hash")
            files.append(HubFile(name, int(large.get("size") or row["size"]), hash_hex))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        if isinstance(exc, UnexpectedAnswer):
            raise
        raise UnexpectedAnswer(
            "the model hub", text, "a listing of files with sizes and hashes"
        ) from None
    if not files:
        raise UnexpectedAnswer("the model hub", text, "a model with files")
    return tuple(files)


def read_revision(text: str) -> str:
    """Return the commit that a listing is of.

    Raises:
        UnexpectedAnswer: it names none.
    """
    said = read_json("the model hub", text)
    found = said.get("sha") if isinstance(said, dict) else None
    if not isinstance(found, str) or not re.fullmatch(r"[0-9a-f]{40}", found):
        raise UnexpectedAnswer("the model hub", text, "a listing with its commit")
    return found


def to_load(facts: ModelFacts, listing: Iterable[HubFile]) -> dict[str, str]:
    """Return the files that are to be loaded, by their names, each with the reason.

    Args:
        facts: of the cache.
        listing: what the revision has.
    """
    entries = {entry.name: entry for entry in facts.entries}
    wanted = dict[str, str]()
    for file in listing:
        if reason := _reason(facts, file, entries.get(file.name)):
            wanted[file.name] = reason
    for shard in facts.shards:
        if shard not in entries and shard not in wanted:
            wanted[shard] = "named by the index, but not there"
    return wanted


def _reason(facts: ModelFacts, file: HubFile, entry: Entry | None) -> str:
    blob = facts.blobs.get(file.hash_hex)
    if blob is not None and not blob.is_file:
        return "its content is a link to somewhere else"
    if blob is not None and blob.size_bytes != file.size_bytes:
        return f"{blob.size_bytes:,} of {file.size_bytes:,} bytes"
    if blob is None and file.hash_hex in facts.incomplete:
        return f"half loaded: {facts.incomplete[file.hash_hex]:,} of {file.size_bytes:,} bytes"
    if blob is None:
        return "not there"
    if entry is None:
        return "loaded, but not in the snapshot"
    # Copies, where links cannot be made, are whole files; they are not what is hashed.
    if entry.target != "/".join([*[".."] * (2 + file.name.count("/")), "blobs", file.hash_hex]):
        return f"leads to {entry.target or 'a copy'}, not to its content"
    return ""


def bytes_to_load(facts: ModelFacts, listing: Iterable[HubFile]) -> int:
    """Return how many bytes are missing; what is loaded by half is resumed, what has no link alone costs nothing."""
    listing = tuple(listing)
    wanted = to_load(facts, listing)
    missing = 0
    for file in {file.hash_hex: file for file in listing if file.name in wanted}.values():
        blob = facts.blobs.get(file.hash_hex)
        if blob is None or blob.size_bytes != file.size_bytes:
            missing += max(file.size_bytes - facts.incomplete.get(file.hash_hex, 0), 0)
    return missing


def lacks_space(facts: ModelFacts, num_bytes: int) -> str:
    """Return the sentence where the disk has too little space for a download; empty: it has enough."""
    needed = int(num_bytes * (1 + SPARE))
    if num_bytes and facts.free_bytes < needed:
        return (
            f"{facts.free_bytes / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed for {num_bytes / 1e9:.1f} GB "
            "that are missing and a reserve: free some, or use a larger disk."
        )
    if num_bytes and facts.free_inodes < 1000:
        return f"The disk has only {facts.free_inodes} inodes left: remove small files."
    return ""
