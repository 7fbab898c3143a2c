"""`pocqueue vllm serve`: the command line and the environment of the server that it becomes."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from pocqueue.cli import app
from pocqueue.cli.vllm import MIDDLEWARE, vllm_command
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


def test_a_vllm_without_plugins_has_the_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the other options, which may end in whatever; plugins of other kinds stay as they are."""
    monkeypatch.setenv("POCQUEUE_TRUSTED_PROXIES", "10.0.0.0/8")
    args = ["--middleware", "other.Middleware", "--", "x"]
    argv, env = vllm_command("model", args, {"VLLM_PLUGINS": "other"}, plugins=False)
    assert argv[5:] == ["--worker-extension-cls", EXTENSION, "--middleware", MIDDLEWARE, *args]
    assert env == {"VLLM_PLUGINS": "other", "FORWARDED_ALLOW_IPS": "10.0.0.0/8"}


@pytest.mark.parametrize("args", [["--middleware", MIDDLEWARE], [f"--middleware={MIDDLEWARE}"]])
def test_our_own_middleware_may_be_named(args: list[str]) -> None:
    """It is not added twice; and proxies that the server's own variable names are believed."""
    environ = {"FORWARDED_ALLOW_IPS": "192.0.2.1"}
    argv, env = vllm_command("model", args, environ, plugins=False)
    assert sum(MIDDLEWARE in arg for arg in argv) == 1
    assert env == environ


def test_the_middleware_is_there() -> None:
    """Under the name that vLLM imports it by: a module, and a class of it."""
    module, _, name = MIDDLEWARE.rpartition(".")
    assert isinstance(getattr(import_module(module), name), type)


class Started(Exception):
    """Stands for the end of this process, in whose place the server runs."""


@pytest.mark.parametrize("plugins", [True, False])
def test_this_process_becomes_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, plugins: bool
) -> None:
    """With all of its environment, and no shell between; in the way that this vLLM has."""
    started: list[Any] = []

    def execve(*call: Any) -> NoReturn:
        started.append(call)
        raise Started

    if plugins:
        (tmp_path / "plugins" / "endpoint_plugins").mkdir(parents=True)
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr("pocqueue.engine.vllm.versions.find_vllm", lambda: tmp_path)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    args = ["model", "--port", "8001", "--enforce-eager", "-tp", "2"]
    result = CliRunner().invoke(app, ["vllm", "serve", *args])
    assert isinstance(result.exception, Started)
    [(program, argv, env)] = started
    assert program == argv[0] == sys.executable
    assert argv[3:5] == ["--model", "model"]
    assert argv[-5:] == args[1:]
    assert env == dict(os.environ) | {"VLLM_PLUGINS": "other,pocqueue" if plugins else "other"}
    assert (MIDDLEWARE in argv) is not plugins


def test_a_missing_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setattr("pocqueue.engine.vllm.versions.find_spec", lambda _: None)
    result = CliRunner().invoke(app, ["vllm", "serve", "model"])
    assert isinstance(result.exception, EngineError)
    assert "pip install 'pocqueue[vllm]'" in str(result.exception)
