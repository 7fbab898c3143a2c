"""The hub, stood in for by a local server: downloads, caches and every way it can say no."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from pocqueue.engine.fingerprint import fingerprint
from pocqueue.engine.hub import cached_folder, fetch_from_hub
from pocqueue.errors import ModelNotFound
from tests.support.fake_hub import COMMIT, FILES, REPO, FakeHub, running_hub
from tests.support.model_folders import write_model


@pytest.fixture
def hub() -> Iterator[str]:
    """Run a hub with one model; give its URL."""
    with running_hub() as url:
        yield url


def _fetch(endpoint: str, cache: Path, repo_id: str = REPO, timeout_s: float = 5.0) -> Path:
    return fetch_from_hub(
        repo_id,
        on_progress=lambda _text: None,
        endpoint=endpoint,
        cache_dir=cache,
        timeout_s=timeout_s,
    )


def _download(name: str, endpoint: str, cache: Path) -> None:
    """Have one file in the cache, as somebody else's download leaves it."""
    snapshot_download(REPO, endpoint=endpoint, cache_dir=cache, allow_patterns=name)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_downloaded_without_what_is_not_needed(hub: str, tmp_path: Path) -> None:
    """Configuration and weights; nothing from the folders below."""
    folder = _fetch(hub, tmp_path)
    assert _names(folder) == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights" * 1000


def test_older_weights_are_taken_where_there_are_no_others(hub: str, tmp_path: Path) -> None:
    """Only then: they would double the download."""
    FakeHub.files = {**FILES, "pytorch_model.bin": b"old weights"}
    assert _names(_fetch(hub, tmp_path)) == {"config.json", "pytorch_model.bin"}


def test_bytes_are_reported_and_nothing_is_printed(
    hub: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Progress goes through the callback."""
    lines: list[str] = []
    fetch_from_hub(REPO, on_progress=lines.append, endpoint=hub, cache_dir=tmp_path)
    assert lines[0] == f"Asking the hub for {REPO}"
    assert lines[1].startswith(f"Downloading {REPO}: ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [503, 404])
def test_a_downloaded_model_needs_no_hub(hub: str, tmp_path: Path, status: int) -> None:
    """Down, or without the model now: what is in the cache will do."""
    folder = _fetch(hub, tmp_path)
    FakeHub.status = status
    assert _fetch(hub, tmp_path) == folder
    assert _fetch("http://127.0.0.1:9", tmp_path) == folder


def test_a_cached_model_needs_no_more_than_is_loaded(hub: str, tmp_path: Path) -> None:
    """Without a network, configuration and weights are enough, whatever else the repository has."""
    model = write_model(tmp_path / "model")
    FakeHub.files = {
        **FILES,
        **{path.name: path.read_bytes() for path in model.iterdir()},
        **{"tokenizer.json": b"{}", "chart.png": b"x", "pytorch_model.bin": b"x"},
    }
    cache = tmp_path / "cache"
    for name in ("config.json", "model.safetensors"):
        _download(name, hub, cache)
    FakeHub.status = 503
    folder = _fetch(hub, cache)
    assert _names(folder) == {"config.json", "model.safetensors"}
    assert fingerprint(folder) == fingerprint(model)


def test_weights_that_are_missing_in_the_cache_are_named(hub: str, tmp_path: Path) -> None:
    """As a download that broke off leaves it."""
    _download("config.json", hub, tmp_path)
    FakeHub.status = 503
    with pytest.raises(ModelNotFound, match=r"has no weights; wanted: .* Finish the download"):
        fingerprint(_fetch(hub, tmp_path))


def test_a_snapshot_is_found_by_its_files_and_revision(hub: str, tmp_path: Path) -> None:
    """The first that is there of several names; nothing of other revisions."""
    _download("model.safetensors", hub, tmp_path)
    names = ["model.safetensors.index.json", "model.safetensors"]
    folder = cached_folder(REPO, names, cache_dir=tmp_path)
    assert folder is not None
    assert folder.name == COMMIT
    assert cached_folder(REPO, names, revision=COMMIT, cache_dir=tmp_path) == folder
    assert cached_folder(REPO, names, revision="other", cache_dir=tmp_path) is None
    assert cached_folder(REPO, ["config.json"], cache_dir=tmp_path) is None


def test_a_model_that_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    """The message says that the hub was asked, and what could be meant."""
    with pytest.raises(ModelNotFound) as caught:
        _fetch(hub, tmp_path, "someone/else")
    message = str(caught.value)
    assert "'someone/else'" in message
    assert "the hub has no such public model" in message
    assert "a folder with a config.json" in message
    assert "\n" not in message


def test_a_hub_in_trouble_is_named_by_its_status(hub: str, tmp_path: Path) -> None:
    """So that people know that waiting may help."""
    FakeHub.status = 503
    with pytest.raises(ModelNotFound, match="HTTP status 503"):
        _fetch(hub, tmp_path)


def test_without_a_network_the_answer_comes_at_once(tmp_path: Path) -> None:
    """What fails says so itself: nobody waits for the time that an answer may take."""
    with pytest.raises(ModelNotFound, match=r"cannot be downloaded from the hub \(ConnectError\)"):
        _fetch("http://127.0.0.1:9", tmp_path, timeout_s=300)


def test_a_network_that_swallows_everything_is_waited_for_briefly(tmp_path: Path) -> None:
    """A server that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ModelNotFound, match="cannot be downloaded from the hub"):
            _fetch(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, timeout_s=0.5)
        # Asked once, and not again by another part of the download.
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
