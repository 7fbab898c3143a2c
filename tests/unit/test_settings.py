"""The environment as settings: names in messages, secrets nowhere, defaults."""

from __future__ import annotations

import os
import socket
import traceback
from pathlib import Path

import pytest

from pocqueue.errors import SettingsError
from pocqueue.settings import ENV_PREFIX, Settings, load_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without any of our variables."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("POCQUEUE_DEVICE", "gpu"),
        ("POCQUEUE_DEVICE", "cuda:x"),
        ("POCQUEUE_DTYPE", "int8"),
        ("POCQUEUE_NUM_THREADS", "0"),
        ("POCQUEUE_NUM_THREADS", "many"),
        ("POCQUEUE_HOST_NAME", ""),
        ("POCQUEUE_MODEL", ""),
        ("POCQUEUE_RANGE_SECONDS", "0"),
        ("POCQUEUE_RANGE_SECONDS", "61"),
        ("POCQUEUE_RANGE_SECONDS", "nan"),
        ("POCQUEUE_HEARTBEAT_SECONDS", "0.01"),
        ("POCQUEUE_HEARTBEAT_SECONDS", "soon"),
        ("POCQUEUE_CALLBACK_GRACE_SECONDS", "-1"),
        ("POCQUEUE_LOG_LEVEL", "LOUD"),
        ("POCQUEUE_FLOWER_PORT", "65536"),
        ("POCQUEUE_FLOWER_ALLOW_OPEN", "perhaps"),
    ],
)
def test_a_bad_value_names_the_variable_and_the_value(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever set it can see which one to mend."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(f"{variable} cannot be {value!r}: ")
    assert "config/env.example" in message
    assert "\n" not in message


@pytest.mark.parametrize("url", ["http://user:hunter2@host", "hunter2", "file:///hunter2"])
def test_a_bad_redis_url_is_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL may hold a password: neither message nor traceback has it."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", url)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith("POCQUEUE_REDIS_URL cannot be the given value: ")
    assert "redis://" in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_secrets_are_masked_wherever_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither repr nor str nor a JSON dump has a secret in it."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", "redis://user:hunter2@host:6379/0")
    monkeypatch.setenv("POCQUEUE_FLOWER_BASIC_AUTH", "admin:hunter3")
    loaded = load_settings()
    shown = f"{loaded!r} {loaded} {loaded.model_dump_json()} {loaded.model_dump()}"
    assert "hunter" not in shown
    assert loaded.redis_url is not None
    assert loaded.redis_url.get_secret_value() == "redis://user:hunter2@host:6379/0"


def test_secrets_stay_out_of_errors_about_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad variable does not print the rest of the environment."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", "redis://:hunter2@host")
    monkeypatch.setenv("POCQUEUE_FLOWER_BASIC_AUTH", "admin:hunter3")
    monkeypatch.setenv("POCQUEUE_FLOWER_PORT", "none")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "rediss://host",
        "unix:///run/redis.sock?db=1",
        "redis+socket:///run/redis.sock",
    ],
)
def test_every_form_of_redis_url_is_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both what redis-py and what Celery write."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", url)
    loaded = load_settings()
    assert loaded.redis_url is not None
    assert loaded.redis_url.get_secret_value() == url


def test_the_defaults_run_on_a_laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With nothing set: own Redis, embedded model, best device, loopback only."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    loaded = load_settings()
    assert loaded.redis_url is None
    assert loaded.state_dir == tmp_path / "pocqueue"
    assert (loaded.model, loaded.engine, loaded.device, loaded.dtype) == (
        "embedded",
        "torch",
        "auto",
        "auto",
    )
    assert loaded.num_threads is None
    assert loaded.host_name == socket.gethostname()
    assert loaded.range_seconds == 1.0
    assert loaded.heartbeat_seconds == 1.0
    assert loaded.callback_grace_seconds == 60.0
    assert loaded.log_level == "INFO"
    assert (loaded.flower_address, loaded.flower_port) == ("127.0.0.1", 5555)
    assert loaded.flower_basic_auth is None
    assert not loaded.flower_allow_open


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files and env files write `NAME=` for what is not set."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", "")
    monkeypatch.setenv("POCQUEUE_NUM_THREADS", "")
    loaded = load_settings()
    assert loaded.redis_url is None
    assert loaded.num_threads is None


def test_the_state_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` and relative paths mean the same in every process."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POCQUEUE_STATE_DIR", "~/state")
    assert load_settings().state_dir == tmp_path / "state"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POCQUEUE_STATE_DIR", "here")
    assert load_settings().state_dir == tmp_path / "here"


def test_a_dead_worker_is_found_within_the_promise() -> None:
    """Four heartbeats of silence, by default, leave a second of the five for the scheduler."""
    assert Settings().heartbeat_ttl_s == 4.0
    assert Settings(heartbeat_seconds=0.25).heartbeat_ttl_s == 1.0


def test_settings_cannot_be_changed() -> None:
    """They are read once and passed on."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().model = "other"  # type: ignore[misc]
