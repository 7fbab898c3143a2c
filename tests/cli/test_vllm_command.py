"""`pocqueue vllm serve`: the command line and the environment of the server that it becomes."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from pocqueue.cli import app
from pocqueue.cli.vllm import vllm_command
from pocqueue.engine.base import EXTENSION
from pocqueue.errors import EngineError, SettingsError


def test_the_server_has_plugin_and_extension() -> None:
    """As a module of this very Python, which exists."""
    argv, env = vllm_command("Qwen/Qwen3-0.6B", [], {"HOME": "/root"})
    assert argv == [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "Qwen/Qwen3-0.6B",
        "--worker-extension-cls",
        EXTENSION,
    ]
    assert env == {"HOME": "/root", "VLLM_PLUGINS": "pocqueue"}


def test_other_options_are_passed_on() -> None:
    """Untouched and in order, after ours."""
    args = ["--port", "8001", "-tp", "2", "--api-key=a b", "--enforce-eager", "--", "x"]
    argv, _ = vllm_command("model", args, {})
    assert argv[-len(args) :] == args


@pytest.mark.parametrize(
    ("plugins", "wanted"),
    [
        ("", "pocqueue"),
        ("pocqueue", "pocqueue"),
        ("lora_filesystem", "lora_filesystem,pocqueue"),
        ("pocqueue,other", "pocqueue,other"),
        (",other,", "other,pocqueue"),
        ("pocqueue2", "pocqueue2,pocqueue"),
    ],
)
def test_other_plugins_stay(plugins: str, wanted: str) -> None:
    """Ours is added where it is missing; the caller's environment is left alone."""
    environ = {"VLLM_PLUGINS": plugins}
    assert vllm_command("model", [], environ)[1]["VLLM_PLUGINS"] == wanted
    assert environ == {"VLLM_PLUGINS": plugins}


@pytest.mark.parametrize(
    "args",
    [
        ["--worker-extension-cls", "other.Worker"],
        ["--worker-extension-cls=other.Worker"],
        ["--worker_extension_cls", "other.Worker"],
        ["--port", "1", "--worker_extension_cls=other.Worker", "--seed", "0"],
    ],
)
def test_another_extension_is_refused(args: list[str]) -> None:
    """However it is written: the proof could not be made, and the server would say so much later."""
    with pytest.raises(SettingsError, match=r"--worker-extension-cls is 'other\.Worker'; allowed:"):
        vllm_command("model", args, {})


@pytest.mark.parametrize("args", [["--worker-extension-cls"], ["--worker-extension-cls="]])
def test_an_extension_without_a_name_is_refused(args: list[str]) -> None:
    """Rather than to let it take the next option for its name."""
    with pytest.raises(SettingsError, match="--worker-extension-cls is ''"):
        vllm_command("model", args, {})


@pytest.mark.parametrize(
    "args", [["--worker-extension-cls", EXTENSION], [f"--worker_extension_cls={EXTENSION}"]]
)
def test_our_own_extension_may_be_named(args: list[str]) -> None:
    """It says nothing new."""
    argv, _ = vllm_command("model", args, {})
    assert argv[-len(args) :] == args


@pytest.mark.parametrize("model", ["--port", "-tp", "--model"])
def test_options_before_the_model_are_refused(model: str) -> None:
    """Whether one takes a value is for vLLM to know, so the model could not be told from it."""
    with pytest.raises(SettingsError, match="allowed: a folder or a hub id, before all options"):
        vllm_command(model, ["8001", "model"], {})


class Started(Exception):
    """Stands for the end of this process, in whose place the server runs."""


def test_this_process_becomes_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of its environment, and no shell between."""
    started: list[Any] = []

    def execve(*call: Any) -> NoReturn:
        started.append(call)
        raise Started

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    args = ["model", "--port", "8001", "--enforce-eager", "-tp", "2"]
    result = CliRunner().invoke(app, ["vllm", "serve", *args])
    assert isinstance(result.exception, Started)
    [(program, argv, env)] = started
    assert program == argv[0] == sys.executable
    assert argv[3:5] == ["--model", "model"]
    assert argv[-5:] == args[1:]
    assert env == dict(os.environ) | {"VLLM_PLUGINS": "other,pocqueue"}


def test_a_missing_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = CliRunner().invoke(app, ["vllm", "serve", "model"])
    assert isinstance(result.exception, EngineError)
    assert "pip install 'pocqueue[vllm]'" in str(result.exception)
