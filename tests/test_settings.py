"""The environment as settings: names in messages, secrets nowhere, defaults, options before it."""

from __future__ import annotations

import os
import pwd
import socket
import traceback
from pathlib import Path

import pytest

from pocqueue.errors import SettingsError
from pocqueue.settings import (
    ALL,
    ArtifactSettings,
    DelegationSettings,
    NodeSettings,
    Settings,
    settings,
)
from tests.support.commands import without_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without any of our variables, and leave none behind."""
    monkeypatch.setattr(os, "environ", without_settings())


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
        ("POCQUEUE_VLLM_DRAIN_SECONDS", "-1"),
        ("POCQUEUE_VLLM_DRAIN_SECONDS", "soon"),
        ("POCQUEUE_CALLBACK_PRIVATE", "perhaps"),
        ("POCQUEUE_METRICS_PORT", "65536"),
        ("POCQUEUE_METRICS_PORT", "many"),
        ("POCQUEUE_LOG_LEVEL", "LOUD"),
        ("POCQUEUE_FLOWER_PORT", "65536"),
        ("POCQUEUE_FLOWER_ALLOW_OPEN", "perhaps"),
        ("DELEGATION_PORT", "65536"),
        ("DELEGATION_MAX_SESSIONS", "0"),
        ("DELEGATION_MAX_SESSIONS", "ten"),
        ("DELEGATION_WINDOW_SECONDS", "0"),
        ("DELEGATION_AUTH_FAILURES", "0"),
        ("DELEGATION_URL", "192.168.1.100:9090"),
        ("DELEGATION_URL", "ftp://192.168.1.100"),
        ("DELEGATION_POLL_SECONDS", "0"),
        ("DELEGATION_POLL_SECONDS", "nan"),
        ("DELEGATION_FALLBACK", "remote"),
        ("DELEGATION_PUBLIC_STATUS", "perhaps"),
        ("POC_BATCH_SIZE_DEFAULT", "4097"),
        ("POC_RPC_TIMEOUT_MS", "0"),
        ("POC_GENERATE_CHUNK_TIMEOUT_SEC", "0"),
        ("POC_GENERATE_RESULT_TTL_SEC", "-1"),
        ("POC_MAX_QUEUED_NONCES", "many"),
        ("POC_CALLBACK_INTERVAL_SEC", "-0.1"),
        ("POC_CALLBACK_MAX_ARTIFACTS", "0"),
        ("POC_CALLBACK_MAX_RETRIES", "0"),
        ("POC_CALLBACK_MAX_CONCURRENT", "0"),
        ("POC_CALLBACK_QUEUE_SIZE", "0"),
        ("POCQUEUE_NODE_PORT", "-1"),
        ("POCQUEUE_NODE_WORK", "hard"),
        ("POCQUEUE_NODE_CALLBACK_URL", "chain:9100"),
        ("POCQUEUE_NODE_CALLBACK_URL", "http://:80"),
    ],
)
def test_a_bad_value_names_the_variable_and_the_value(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever set it can see which one to mend."""
    monkeypatch.setenv(variable, value)
    [kind] = [k for k in ALL if variable in {k.variable(name) for name in k.model_fields}]
    with pytest.raises(SettingsError) as caught:
        kind.load()
    message = str(caught.value)
    assert message.startswith(f"{variable} cannot be {value!r}: ")
    assert "config/env.example" in message
    assert "\n" not in message


def test_the_networks_variables_have_its_defaults() -> None:
    """Which its operators rely on."""
    assert ArtifactSettings.load().variables() == {
        "POC_BATCH_SIZE_DEFAULT": "32",
        "POC_RPC_TIMEOUT_MS": "60000",
        "POC_GENERATE_CHUNK_TIMEOUT_SEC": "60.0",
        "POC_GENERATE_RESULT_TTL_SEC": "300.0",
        "POC_MAX_QUEUED_NONCES": "100000",
        "POC_CALLBACK_INTERVAL_SEC": "5.0",
        "POC_CALLBACK_MAX_ARTIFACTS": "1000000",
        "POC_CALLBACK_MAX_RETRIES": "10",
        "POC_CALLBACK_MAX_CONCURRENT": "10",
        "POC_CALLBACK_QUEUE_SIZE": "10000",
    }


def test_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were given: they are judged like variables, and child processes see them."""
    monkeypatch.setenv("POCQUEUE_MODEL", "other")
    monkeypatch.setenv("POCQUEUE_DEVICE", "cuda")
    loaded = Settings.override(model=None, device="cpu", flower_port=0)
    assert (loaded.model, loaded.device, loaded.flower_port) == ("other", "cpu", 0)
    assert (os.environ["POCQUEUE_DEVICE"], os.environ["POCQUEUE_FLOWER_PORT"]) == ("cpu", "0")
    with pytest.raises(SettingsError, match=r"^POCQUEUE_DEVICE cannot be 'gpu': "):
        Settings.override(device="gpu")


def test_settings_can_be_handed_on_as_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets included; what is not set is named, so that it can be taken away."""
    changed = Settings(num_threads=2, callback_private=True, redis_url="redis://:hunter2@host")
    for name, value in changed.variables().items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert Settings.load() == changed
    assert changed.variables()["POCQUEUE_METRICS_PORT"] is None


@pytest.mark.parametrize("url", ["http://user:hunter2@host", "hunter2", "file:///hunter2"])
def test_a_bad_redis_url_is_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL may hold a password: neither message nor traceback has it."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", url)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert str(caught.value).startswith("POCQUEUE_REDIS_URL cannot be the given value: ")
    assert "redis://" in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_secrets_are_masked_wherever_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither repr nor str nor a JSON dump has a secret in it."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", "redis://user:hunter2@host:6379/0")
    monkeypatch.setenv("POCQUEUE_FLOWER_BASIC_AUTH", "admin:hunter3")
    loaded = Settings.load()
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
        Settings.load()
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
    loaded = Settings.load()
    assert loaded.redis_url is not None
    assert loaded.redis_url.get_secret_value() == url


def test_the_defaults_run_on_a_laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With nothing set: own Redis, embedded model, best device, loopback only."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    loaded = Settings.load()
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
    assert not loaded.callback_private
    assert (loaded.metrics_address, loaded.metrics_port) == ("127.0.0.1", None)
    assert loaded.log_level == "INFO"
    assert (loaded.flower_address, loaded.flower_port) == ("127.0.0.1", 5555)
    assert loaded.flower_basic_auth is None
    assert not loaded.flower_allow_open


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files and env files write `NAME=` for what is not set."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", "")
    monkeypatch.setenv("POCQUEUE_NUM_THREADS", "")
    monkeypatch.setenv("POCQUEUE_METRICS_PORT", "")
    loaded = Settings.load()
    assert loaded.redis_url is None
    assert loaded.num_threads is None
    assert loaded.metrics_port is None


def test_the_state_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` and relative paths mean the same in every process."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POCQUEUE_STATE_DIR", "~/state")
    assert Settings.load().state_dir == tmp_path / "state"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POCQUEUE_STATE_DIR", "here")
    assert Settings.load().state_dir == tmp_path / "here"
    monkeypatch.setenv("POCQUEUE_STATE_DIR", "")
    with pytest.raises(SettingsError, match="POCQUEUE_STATE_DIR cannot be '': allowed is a folder"):
        Settings.load()


def test_settings_cannot_be_changed() -> None:
    """They are read once and passed on."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().model = "other"  # type: ignore[misc]


# A delegation


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (" hunter2-hunter2-hunter2", "there are spaces before or after the token; take them away"),
        ("hunter2-hunter2-hunter2\t", "there are spaces before or after the token"),
        ("hunter2 hunter2 hunter2", "printable ASCII characters without spaces"),
        ("hunter2-hunter2-hünter2", "printable ASCII characters without spaces"),
    ],
)
def test_stray_spaces_in_a_token_are_named_and_the_token_is_not(
    token: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commonest mistake with tokens; neither message nor traceback shows it."""
    monkeypatch.setenv("DELEGATION_AUTH_TOKEN", token)
    with pytest.raises(SettingsError) as caught:
        DelegationSettings.load()
    assert str(caught.value).startswith("DELEGATION_AUTH_TOKEN cannot be the given value: ")
    assert words in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in shown
    assert "hünter2" not in shown


def test_a_delegation_is_as_operators_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults that clients count on, and delegating only where URL and token are both set."""
    loaded = DelegationSettings.load()
    assert (loaded.host, loaded.port, loaded.max_sessions) == ("0.0.0.0", 9090, 10)  # noqa: S104
    assert (loaded.window_seconds, loaded.poll_seconds, loaded.fallback) == (330.0, 5.0, "none")
    assert not loaded.is_delegating
    monkeypatch.setenv("DELEGATION_URL", "http://192.168.1.100:9090")
    monkeypatch.setenv("DELEGATION_AUTH_TOKEN", "")
    assert not DelegationSettings.load().is_delegating
    monkeypatch.setenv("DELEGATION_AUTH_TOKEN", "my-secure-token-123")
    assert DelegationSettings.load().is_delegating
    assert "my-secure" not in repr(DelegationSettings.load())


def test_the_small_node_listens_to_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its routes ask for no token."""
    monkeypatch.setenv("POCQUEUE_NODE_KEY", "")
    loaded = NodeSettings.load()
    assert (loaded.host, loaded.port, loaded.work) == ("127.0.0.1", 8080, "auto")
    assert loaded.key is None
    assert loaded.callback_url is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "~/.local/state cannot be found: user"),
        ("~/state", "POCQUEUE_STATE_DIR cannot be '~/state': ~/state cannot be found: user"),
        ("/state", None),
    ],
)
def test_a_user_without_a_home_is_told(
    monkeypatch: pytest.MonkeyPatch, value: str | None, words: str | None
) -> None:
    """As in a container that runs under any number; a whole path takes no home."""

    def nobody(_: object) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    if value is not None:
        monkeypatch.setenv("POCQUEUE_STATE_DIR", value)
    if words is None:
        assert Settings.load().state_dir == Path("/state")
        return
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert words in str(caught.value)
    assert "has no home folder that ~ could stand for" in str(caught.value)


@pytest.mark.parametrize("level", ["DEBUG", "ERROR"])
def test_what_a_process_reads_once_each_test_reads_anew(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """Tests of one process share nothing but what they say themselves."""
    monkeypatch.setenv("POCQUEUE_LOG_LEVEL", level)
    assert settings().log_level == level
    assert settings() is settings()
