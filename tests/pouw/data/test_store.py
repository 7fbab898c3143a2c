"""Files of data on disk: chunk after chunk, whatever ends in between, and no more than is allowed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pocqueue.pouw.data.manifest import chunks, manifest_of
from pocqueue.pouw.data.store import DataStore
from pocqueue.pouw.errors import DataError, NodeDataError
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.data import CHUNK_BYTES, MAX_DATA_BYTES, Manifest

ROOM = 4 * MAX_DATA_BYTES
DATA = bytes(range(256)) * 2500  # 2.4 chunks
MANIFEST = manifest_of(DATA)
PIECES = list(chunks(DATA))


def _file(folder: Path, data: bytes = DATA) -> Path:
    path = folder / "theirs"
    path.write_bytes(data)
    return path


def test_a_manifest_names_its_file() -> None:
    """By the size and each chunk's hash, counted by hand here."""
    assert [len(piece) for piece in PIECES] == [CHUNK_BYTES, CHUNK_BYTES, 640_000 - 2 * CHUNK_BYTES]
    hashes = b"".join(hashlib.sha256(piece).digest() for piece in PIECES)
    named = hashlib.sha256(
        b"pocqueue.pouw.manifest.v1\0" + (640_000).to_bytes(8, "little") + hashes
    )
    assert MANIFEST.name == "0x" + named.hexdigest()
    assert MANIFEST.is_whole
    assert decode(encode(MANIFEST), Manifest).name == MANIFEST.name
    assert not Manifest(640_000, MANIFEST.chunks[:2]).is_whole


def test_a_file_comes_together_from_chunks_in_any_order(tmp_path: Path) -> None:
    """A wrong one is not kept; what is here can be given on before the rest is."""
    with DataStore(tmp_path, ROOM) as store:
        assert store.begin(MANIFEST) == {0, 1, 2}
        name = MANIFEST.name
        assert not store.write(name, 2, PIECES[1])
        assert store.write(name, 2, PIECES[2])
        assert (store.chunk(name, 2), store.chunk(name, 0)) == (PIECES[2], None)
        assert store.path(name) is None
        assert store.write(name, 0, PIECES[0])
        assert store.write(name, 0, PIECES[0])
        assert store.write(name, 1, PIECES[1])
        path = store.path(name)
        assert path is not None
        assert path.read_bytes() == DATA
        assert store.begin(MANIFEST) == set()
        assert store.chunk(name, 3) is None


def test_a_restart_goes_on_with_what_is_there(tmp_path: Path) -> None:
    """Of a chunk that was half written, nothing counts."""
    with DataStore(tmp_path, ROOM) as store:
        store.begin(MANIFEST)
        for index in (0, 1):
            assert store.write(MANIFEST.name, index, PIECES[index])
    (part,) = tmp_path.glob("data/*.part")
    with part.open("r+b") as file:
        file.write(b"half")
    with DataStore(tmp_path, ROOM) as store:
        assert store.begin(MANIFEST) == {0, 2}
        for index in (0, 2):
            assert store.write(MANIFEST.name, index, PIECES[index])
    with DataStore(tmp_path, ROOM) as store:
        path = store.path(MANIFEST.name)
        assert path is not None
        assert path.read_bytes() == DATA


@pytest.mark.parametrize("left", ["manifest", "file", "foreign", "torn", "damaged"])
def test_whatever_a_crash_leaves_behind_is_put_in_order(tmp_path: Path, left: str) -> None:
    """Files without a manifest and manifests that are none are gone; a damaged file is begun anew."""
    with DataStore(tmp_path, ROOM) as store:
        store.add(_file(tmp_path))
    folder, stem = tmp_path / "data", MANIFEST.name[2:]
    match left:
        case "manifest":
            (folder / f"{stem}.manifest").unlink()
        case "file":
            (folder / stem).unlink()
        case "foreign":
            (folder / f"{stem}.manifest").write_bytes(encode(manifest_of(b"other")))
        case "torn":
            (folder / f"{stem}.manifest").write_bytes(b"\x92")
        case _:
            (folder / stem).write_bytes(DATA[:-1] + b"?")
    with DataStore(tmp_path, ROOM) as store:
        assert store.path(MANIFEST.name) is None
        assert store.begin(MANIFEST) == {0, 1, 2}
    assert sorted(path.suffix for path in folder.iterdir()) == [".manifest", ".part"]


def test_what_is_somebody_elses_stays(tmp_path: Path) -> None:
    """The folder may be that of a project with data of its own; only what is named as ours is goes."""
    folder, stem = tmp_path / "data", MANIFEST.name[2:]
    theirs = ["train.csv", "a.part", f"{stem}.csv", f"{stem[1:]}", ".hidden"]
    ours = [
        stem,
        f"{stem}.part",
        f"{stem}.hidden",
        f".{stem}-abcd_123",
        f".{stem}.manifest-abcd_123",
    ]
    folder.mkdir()
    for name in (*theirs, *ours):
        (folder / name).write_bytes(b"?")
    for name in ("train", "ab" * 32):
        (folder / name).mkdir()
    with DataStore(tmp_path, ROOM) as store:
        assert store.names == []
    assert {path.name for path in folder.iterdir()} == {*theirs, "train", "ab" * 32}


def test_a_damaged_file_is_not_given_on(tmp_path: Path) -> None:
    """Whoever got such a chunk would hold it against us."""
    with DataStore(tmp_path, ROOM) as store:
        name = store.add(_file(tmp_path))
        path = store.path(name)
        assert path is not None
        with path.open("r+b") as file:
            file.write(b"??")
        assert store.chunk(name, 1) == PIECES[1]
        with pytest.raises(NodeDataError, match="was damaged, and is gone now"):
            store.chunk(name, 0)
        assert (store.path(name), store.names) == (None, [])


def test_what_nobody_needs_makes_room(tmp_path: Path) -> None:
    """What was asked for longest ago goes first; what is needed stays, and then there is none."""
    files = [DATA + bytes([number]) for number in range(4)]
    with DataStore(tmp_path, 3 * len(DATA) + 3) as store:
        names = [store.add(_file(tmp_path, data)) for data in files[:3]]
        for age, name in enumerate((names[1], names[0], names[2])):
            path = store.path(name)
            assert path is not None
            os.utime(path, (1_000_000 + age, 1_000_000 + age))
        fourth = store.add(_file(tmp_path, files[3]), needed={names[1]})
        assert sorted(store.names) == sorted([names[1], names[2], fourth])
        with pytest.raises(DataError, match="640,000 bytes of data find no room"):
            store.begin(MANIFEST, needed=store.names)
        assert len(store.names) == 3


def test_a_store_without_a_folder_leaves_nothing(tmp_path: Path) -> None:
    """It has one of its own."""
    with DataStore(None, ROOM) as store:
        path = store.path(store.add(_file(tmp_path)))
        assert path is not None
        assert path.is_file()
    assert not path.exists()


def test_a_disk_in_trouble_is_told(tmp_path: Path) -> None:
    """In a sentence that names the folder."""
    (tmp_path / "data").write_text("")
    with pytest.raises(NodeDataError, match=f"Data cannot be kept in {tmp_path}/data: "):
        DataStore(tmp_path, ROOM)
