"""From a name to a model folder, and the sentence for each name that leads nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocqueue.engine import hub
from pocqueue.engine.models import ResolvedModel, fingerprint_with_progress, resolve_model
from pocqueue.errors import ModelNotFound
from tests.support.model_folders import write_config, write_model


def _quiet(_text: str) -> None:
    """Take progress and drop it."""


def test_the_embedded_model_is_made(tmp_path: Path) -> None:
    """It goes below the state folder and keeps its name."""
    path, name = resolve_model("embedded", tmp_path, _quiet)
    assert path == tmp_path.resolve() / "models" / "embedded-v1"
    assert name == "embedded"


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By absolute path, by relative path, and below the home folder."""
    folder = write_model(tmp_path / "m").resolve()
    assert resolve_model(str(folder), tmp_path, _quiet) == (folder, str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("m", "./m", " m ", "~/m"):
        assert resolve_model(name, tmp_path, _quiet) == (folder, name.strip())


def test_a_hub_id_goes_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where no folder has that name."""
    folder = write_model(tmp_path / "snapshot")
    asked = []

    def fetch(repo_id: str, **_options: Any) -> Path:
        asked.append(repo_id)
        return folder

    monkeypatch.setattr(hub, "fetch_from_hub", fetch)
    assert resolve_model("Qwen/Qwen3-0.6B", tmp_path, _quiet) == (folder, "Qwen/Qwen3-0.6B")
    assert asked == ["Qwen/Qwen3-0.6B"]


@pytest.mark.parametrize(
    "name", ["", "  ", "/no/such", "./no-such", "~nobody-here/m", "a/b/c", "a b", "é/m"]
)
def test_a_name_that_leads_nowhere_says_what_is_allowed(tmp_path: Path, name: str) -> None:
    """The value and every kind of name that is allowed are in the message."""
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(name, tmp_path, _quiet)
    message = str(caught.value)
    assert repr(name.strip()) in message
    assert '"embedded", a folder that has a config.json, or a hub id' in message
    assert "\n" not in message


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """The message says so."""
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve_model(str(tmp_path / "m.gguf"), tmp_path, _quiet)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    """The message names the missing file."""
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        resolve_model(str(tmp_path), tmp_path, _quiet)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        {"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]},
        {"model_type": "made-up", "architectures": ["MadeUpForCausalLM"]},
        {"model_type": None, "architectures": None},
    ],
)
def test_a_model_for_something_else_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """What is not a causal language model never gets as far as loading."""
    folder = write_model(tmp_path / "m")
    write_config(folder, **changes)
    with pytest.raises(ModelNotFound, match="is not a causal language model"):
        resolve_model(str(folder), tmp_path, _quiet)


@pytest.mark.parametrize("architectures", [["Qwen3ForCausalLM"], None])
def test_causal_language_models_pass(tmp_path: Path, architectures: list[str] | None) -> None:
    """By their class, or by their type where the file names no class."""
    folder = write_model(tmp_path / "m")
    write_config(folder, architectures=architectures)
    assert resolve_model(str(folder), tmp_path, _quiet).path == folder.resolve()


def test_hashing_large_weights_tells_how_far_it_is(tmp_path: Path) -> None:
    """Each tenth once; small ones are hashed without a word."""
    model = ResolvedModel(write_model(tmp_path / "m"), "small")
    lines: list[str] = []
    fingerprint_with_progress(model, lines.append)
    assert lines == []
    fingerprint_with_progress(model, lines.append, told_from_bytes=1)
    assert lines[-1] == "Hashing the weights of small: 100 % of 0.0 GB"
    assert len(lines) == len(set(lines)) <= 10
