"""Which versions of vLLM are taken, and what is asked of each; vLLM itself is not needed for it."""

from __future__ import annotations

import sys
import tomllib
from importlib.util import spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from celery.utils.log import LoggingProxy, get_logger

from pocqueue.engine import EngineOptions, load_engine
from pocqueue.engine.vllm.versions import (
    ALLOWED,
    BEYOND,
    FIRST,
    check_version,
    file_as_stdout,
    find_vllm,
    has_endpoint_plugins,
    has_tokens_third,
    keeps_each_token,
)
from pocqueue.engine.vllm.worker import PoCWorker
from pocqueue.errors import EngineError

ROOT = Path(__file__).parents[3]


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str | None) -> Path:
    """Have a package vllm of this version that cannot be imported; None: one that does not know it."""
    package = folder / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('vLLM is imported')\n")
    if version is not None:
        (package / "_version.py").write_text(f"__version__ = version = {version!r}\n")
    spec = spec_from_file_location("vllm", package / "__init__.py")
    monkeypatch.setattr("pocqueue.engine.vllm.versions.find_spec", lambda _name: spec)
    return package


def test_the_extra_brings_what_is_allowed() -> None:
    """pip, the check and the sentence say the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, beyond = (".".join(map(str, version)) for version in (FIRST, BEYOND))
    assert project["optional-dependencies"]["vllm"] == [f"vllm>={first},<{beyond}"]
    assert f"{first} to {BEYOND[0]}.{BEYOND[1] - 1}" == ALLOWED


@pytest.mark.parametrize(
    "version",
    [
        *("0.25.1", "0.25.1+cu130", "0.26.0", "0.27.0rc1", "0.32.0", "0.32.7.dev3+gabc"),
        # Builds that do not know.
        *("dev", "0.0.0+unknown", "0.1.dev5+gabc"),
    ],
)
def test_versions_of_the_range_are_taken(version: str) -> None:
    """With whatever pip allows behind the numbers."""
    check_version(version)


@pytest.mark.parametrize("version", ["0.24.0", "0.25.0", "0.2.7", "0.33.0", "0.33.0rc1", "1.0"])
def test_other_versions_get_one_sentence(version: str) -> None:
    """Which one it is, which ones are allowed, and where they come from."""
    with pytest.raises(EngineError) as refused:
        check_version(version)
    assert str(refused.value).startswith(f"vLLM is {version}; allowed: {ALLOWED}. ")
    assert "pip install 'pocqueue[vllm]'" in str(refused.value)


def test_no_vllm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is merely called so is none."""
    for spec in None, SimpleNamespace(origin=None):
        monkeypatch.setattr("pocqueue.engine.vllm.versions.find_spec", lambda _name, s=spec: s)
        with pytest.raises(
            EngineError, match=r"not installed here: pip install 'pocqueue\[vllm\]'"
        ):
            find_vllm()


def test_the_version_is_read_and_nothing_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import takes seconds, and may fail in a version that is to be refused."""
    folder = _install(tmp_path, monkeypatch, "0.30.1")
    assert find_vllm() == folder
    assert not has_endpoint_plugins(folder)
    (folder / "plugins" / "endpoint_plugins").mkdir(parents=True)
    assert has_endpoint_plugins(folder)


def test_a_build_without_its_version_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a checkout."""
    folder = _install(tmp_path, monkeypatch, None)
    assert find_vllm() == folder


def test_a_worker_of_another_version_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of an error of an import, or of something missing; the server serves on."""
    _install(tmp_path, monkeypatch, "0.24.0")
    answer = PoCWorker().poc_describe()
    assert answer["error"].startswith("vLLM is 0.24.0; allowed:")


def test_an_engine_of_another_version_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else is done."""
    _install(tmp_path, monkeypatch, "0.24.0")
    monkeypatch.setattr("pocqueue.engine.find_spec", lambda _name: True)
    options = EngineOptions(model="no such model", device="cpu", state_dir=tmp_path)
    with pytest.raises(EngineError, match=r"vLLM is 0\.24\.0; allowed:"):
        load_engine("vllm", options)


def test_a_state_is_of_one_token_unless_said_otherwise() -> None:
    """Versions that do not say have other classes for the others."""
    assert keeps_each_token(SimpleNamespace())
    assert keeps_each_token(SimpleNamespace(tokens_per_state=1))
    assert not keeps_each_token(SimpleNamespace(tokens_per_state=4))


def _backend(*names: str) -> Any:
    def shape(blocks: int, tokens: int, heads: int, head_size: int) -> tuple[int, ...]:
        sizes = {"blocks": blocks, "tokens": tokens, "heads": heads, "size": head_size}
        return tuple(sizes.get(name) or int(name) for name in names)

    return SimpleNamespace(get_kv_cache_shape=shape)


@pytest.mark.parametrize(
    ("backend", "shape", "taken"),
    [
        (SimpleNamespace(), (9, 4, 16, 128), True),
        (SimpleNamespace(), (9, 2, 16, 4, 64), False),
        (_backend("blocks", "heads", "tokens", "128"), (9, 4, 16, 128), True),
        (_backend("blocks", "2", "tokens", "heads", "size"), (9, 2, 16, 4, 64), True),
        (_backend("blocks", "2", "tokens", "heads", "size"), (9, 4, 16, 128), False),
        (_backend("2", "blocks", "tokens", "heads", "size"), (2, 9, 16, 4, 64), False),
        # Sixteen heads and sixteen tokens: the sizes alone would not tell.
        (_backend("blocks", "tokens", "heads", "128"), (9, 16, 16, 128), False),
    ],
)
def test_a_cache_has_its_tokens_third_or_is_refused(
    backend: Any, shape: tuple[int, ...], taken: bool
) -> None:
    """Where they are elsewhere a pass would write beside its scratch."""
    spec = SimpleNamespace(num_kv_heads=4, head_size=64)
    assert has_tokens_third(backend, spec, torch.empty(shape, device="meta")) is taken


def test_output_is_a_file_while_an_engine_starts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Celery's own is not; what is printed meanwhile is not lost, and afterwards all is as before."""
    proxy = LoggingProxy(get_logger("tests.stdout"))
    monkeypatch.setattr(sys, "stdout", proxy)
    with file_as_stdout():
        assert sys.stdout.fileno() == 1
        sys.stdout.write("a line\n")
    assert sys.stdout is proxy
    assert capfd.readouterr().out == "a line\n"


def test_output_that_is_a_file_stays(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is put in its place."""
    before = sys.stdout
    with file_as_stdout():
        assert sys.stdout is before
