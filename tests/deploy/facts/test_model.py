"""Models in a real cache of the hub: what is to be loaded again, in each way that a download can go wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pocqueue.deploy.facts.model import (
    HubFile,
    ModelFacts,
    bytes_to_load,
    cache_folder,
    lacks_space,
    model_facts,
    read_listing,
    read_model,
    to_load,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from tests.deploy.facts.answers import answer

MODEL, REVISION = "Qwen/Qwen3-32B-FP8", "c" * 40
SHARDS = {f"model-0000{n}-of-00002.safetensors": bytes([n]) * 5000 for n in (1, 2)}
INDEX = json.dumps(
    {"weight_map": {f"layer.{n}": name for n, name in enumerate(SHARDS)}}, indent=1
).encode()
FILES = {
    "config.json": b"{}",
    "sub/merges.txt": b"a b",
    "model.safetensors.index.json": INDEX,
    **SHARDS,
}


def name_of(name: str) -> str:
    """Return the name of a file's blob, as the hub gives it."""
    data = FILES[name]
    if name in SHARDS:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


LISTING = tuple(HubFile(name, len(data), name_of(name)) for name, data in FILES.items())
FIRST, SECOND = SHARDS


class Cache:
    """A cache with the whole model, as `hf download` leaves it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "hub" / cache_folder(MODEL)
        self.snapshot = self.folder / "snapshots" / REVISION
        (self.folder / "blobs").mkdir(parents=True)
        (self.folder / "refs").mkdir()
        (self.folder / "refs" / "main").write_text(REVISION)
        for name, data in FILES.items():
            self.blob(name).write_bytes(data)
            link = self.snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("../" * (2 + name.count("/")) + f"blobs/{name_of(name)}")

    def blob(self, name: str) -> Path:
        """Return the content of a file."""
        return self.folder / "blobs" / name_of(name)

    def facts(self) -> ModelFacts:
        """Read what is known of it, as a deployment does."""
        return read_model(run(*model_facts(str(self.home), MODEL, REVISION).argv()))


def run(*argv: str) -> str:
    """Return what a command prints, which has to end well."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache with the whole model."""
    return Cache(tmp_path / "hf")


def test_a_whole_model_is_whole(cache: Cache) -> None:
    """Nothing is to be loaded."""
    facts = cache.facts()
    assert facts.outside == ()
    assert facts.shards == tuple(SHARDS)
    assert to_load(facts, LISTING) == {}


def test_an_empty_cache_has_all_to_load(tmp_path: Path) -> None:
    """On a disk that is measured though the folder is not there yet."""
    facts = read_model(run(*model_facts(str(tmp_path / "none" / "hf"), MODEL, REVISION).argv()))
    assert set(to_load(facts, LISTING)) == set(FILES)
    assert bytes_to_load(facts, LISTING) == sum(map(len, FILES.values()))
    assert facts.free_bytes > 0


def test_a_half_loaded_file_is_resumed(cache: Cache) -> None:
    """Its folder is there, and all other files."""
    cache.blob(SECOND).unlink()
    (cache.snapshot / SECOND).unlink()
    cache.blob(SECOND).with_name(f"{name_of(SECOND)}.incomplete").write_bytes(b"\2" * 1234)
    facts = cache.facts()
    assert to_load(facts, LISTING) == {SECOND: "half loaded: 1,234 of 5,000 bytes"}
    assert bytes_to_load(facts, LISTING) == 5000 - 1234


def test_a_file_under_a_newer_libraries_temporary_name(cache: Cache) -> None:
    """It has a random part."""
    cache.blob(FIRST).unlink()
    cache.blob(FIRST).with_name(f"{name_of(FIRST)}.0a1b2c3d.incomplete").write_bytes(b"\1" * 10)
    assert to_load(cache.facts(), LISTING) == {FIRST: "half loaded: 10 of 5,000 bytes"}


def test_a_cut_shard_is_loaded_again(cache: Cache) -> None:
    """Its size shows it without reading 64 GB."""
    with cache.blob(FIRST).open("r+b") as file:
        file.truncate(4999)
    facts = cache.facts()
    assert to_load(facts, LISTING) == {FIRST: "4,999 of 5,000 bytes"}
    assert bytes_to_load(facts, LISTING) == 5000


def test_a_link_that_is_missing_costs_no_bytes(cache: Cache) -> None:
    """Or one that leads to another content."""
    (cache.snapshot / FIRST).unlink()
    (cache.snapshot / SECOND).unlink()
    (cache.snapshot / SECOND).symlink_to(f"../../blobs/{name_of(FIRST)}")
    facts = cache.facts()
    assert to_load(facts, LISTING)[FIRST] == "loaded, but not in the snapshot"
    assert to_load(facts, LISTING)[SECOND].startswith("leads to ../../blobs/")
    assert bytes_to_load(facts, LISTING) == 0


def test_links_out_of_the_cache_are_not_followed(cache: Cache, tmp_path: Path) -> None:
    """A content that is a link, a name that leads elsewhere, a folder that is a link."""
    outside = tmp_path / "outside"
    outside.write_bytes(SHARDS[FIRST])
    cache.blob(FIRST).unlink()
    cache.blob(FIRST).symlink_to(outside)
    (cache.snapshot / "config.json").unlink()
    (cache.snapshot / "config.json").symlink_to("/etc/passwd")
    facts = cache.facts()
    assert to_load(facts, LISTING) == {
        FIRST: "its content is a link to somewhere else",
        "config.json": "leads to /etc/passwd, not to its content",
    }
    moved = tmp_path / "moved"
    cache.folder.rename(moved)
    cache.folder.symlink_to(moved)
    assert str(cache.folder) in cache.facts().outside


@pytest.mark.parametrize(
    "place", ["blobs", "snapshots/{}", "refs", ".pocqueue-verified", "refs/main", "../.locks/{}"]
)
def test_whatever_leads_out_is_named(place: str, cache: Cache, tmp_path: Path) -> None:
    """Folders and files that root would write through."""
    path = cache.folder / place.format(REVISION)
    if place.startswith(".."):
        path = cache.home / "hub" / ".locks" / cache_folder(MODEL)
        path.parent.mkdir()
    if path.exists():
        path.rename(tmp_path / "away")
    path.symlink_to(tmp_path / "away")
    assert str(path) in cache.facts().outside


def test_a_shard_that_only_the_index_names(cache: Cache) -> None:
    """A listing that was cut does not make a model whole."""
    (cache.snapshot / SECOND).unlink()
    listing = [file for file in LISTING if file.name != SECOND]
    assert to_load(cache.facts(), listing) == {SECOND: "named by the index, but not there"}


def test_the_hubs_listing() -> None:
    """Large files by their SHA-256, small ones by git's hash."""
    siblings: list[dict[str, object]] = [
        {"rfilename": "config.json", "blobId": "a" * 40, "size": 2},
        {
            "rfilename": FIRST,
            "blobId": "b" * 40,
            "size": 5000,
            "lfs": {"sha256": "c" * 64, "size": 5000, "pointerSize": 1},
        },
    ]
    assert read_listing(json.dumps({"sha": REVISION, "siblings": siblings})) == (
        HubFile("config.json", 2, "a" * 40),
        HubFile(FIRST, 5000, "c" * 64),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"error": "Repository not found"}',
        '{"siblings": []}',
        '{"siblings": [{"rfilename": "a"}]}',
        json.dumps({"siblings": [{"rfilename": "../../x", "blobId": "a" * 40, "size": 1}]}),
        json.dumps({"siblings": [{"rfilename": "/etc/x", "blobId": "a" * 40, "size": 1}]}),
        json.dumps({"siblings": [{"rfilename": "a", "blobId": "zz", "size": 1}]}),
    ],
)
def test_what_is_no_listing_is_an_error(text: str) -> None:
    """Nor one with a name that leads out of the model."""
    with pytest.raises(UnexpectedAnswer, match="the model hub"):
        read_listing(text)


def test_space_for_what_is_missing(cache: Cache) -> None:
    """With a tenth to spare; nothing missing needs none."""
    facts = replace(cache.facts(), free_bytes=65 * 10**9)
    assert lacks_space(facts, 64 * 10**9).startswith("65.0 GB are free, 70.4 GB are needed")
    assert lacks_space(facts, 50 * 10**9) == ""
    assert lacks_space(facts, 0) == ""
    assert "inodes" in lacks_space(replace(facts, free_inodes=3), 1)


def test_what_is_not_understood_is_an_error() -> None:
    """Lines of find of another form."""
    with pytest.raises(UnexpectedAnswer, match="find"):
        read_model(
            answer(
                where="home=/a\nfolder=/a/hub/models--x",
                outside="",
                blobs="what",
                snapshot="",
                shards="",
                verified="",
                free="1 1",
            )
        )
