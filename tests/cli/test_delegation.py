"""`pocqueue delegation …`: what it prints, and the sentence for everything that keeps it from starting."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pocqueue.cli import app
from pocqueue.errors import PocqueueError
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.redis_server import RedisServer
from tests.support.commands import without_settings
from tests.support.delegation_server import TOKEN, Work, live_gpus
from tests.support.factories import make_spec
from tests.support.fixtures import SettingsFactory
from tests.support.tls import make_certificate


@pytest.fixture(autouse=True)
def _environment(
    redis_server: RedisServer,
    settings_for: SettingsFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shared Redis, a state folder of this test's own, and nothing else of ours."""
    # That fixture takes our variables away, so it has to come first.
    del settings_for
    clean = without_settings()
    clean |= {"POCQUEUE_REDIS_URL": redis_server.url, "POCQUEUE_STATE_DIR": str(tmp_path)}
    monkeypatch.setattr(os, "environ", clean)


def run(*args: str) -> Result:
    """Run the command line."""
    return CliRunner().invoke(app, ["delegation", *args])


def refused(*args: str) -> str:
    """Run what ends with an error that `main` prints before it leaves with code 2; return it."""
    result = run(*args)
    assert isinstance(result.exception, PocqueueError), result.output
    message = str(result.exception)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# serve


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "DELEGATION_AUTH_TOKEN is not set; a big node needs one of 16 or more"),
        ("", "DELEGATION_AUTH_TOKEN is not set; "),
        ("short", "DELEGATION_AUTH_TOKEN has 5 characters; "),
        (f" {TOKEN}", "there are spaces before or after the token"),
        (f"{TOKEN} x", "printable ASCII characters without spaces"),
    ],
)
def test_it_does_not_start_without_a_token(token: str | None, said: str) -> None:
    """It says why; the token itself is not in the message."""
    if token is not None:
        os.environ["DELEGATION_AUTH_TOKEN"] = token
    message = refused("serve")
    assert said in message
    assert not token or token not in message


def test_stray_spaces_of_an_env_file_are_named(tmp_path: Path) -> None:
    """As they are wherever the token comes from."""
    path = tmp_path / "config.env"
    path.write_text(f'export DELEGATION_AUTH_TOKEN="{TOKEN} "\n')
    assert "there are spaces" in refused("serve", f"--env-file={path}")


def test_tls_is_checked_before_it_starts(tmp_path: Path) -> None:
    """Both or none, readable, a pair, without a password."""
    os.environ["DELEGATION_AUTH_TOKEN"] = TOKEN
    cert, key = (str(path) for path in make_certificate(tmp_path))
    (tmp_path / "other").mkdir()
    _, other_key = make_certificate(tmp_path / "other")
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(_encrypted(Path(key)))
    for options, said in (
        ([f"--tls-cert={cert}"], "--tls-cert is set and --tls-key is not"),
        ([f"--tls-key={key}"], "--tls-key is set and --tls-cert is not"),
        ([f"--tls-cert={cert}x", f"--tls-key={key}"], "No such file"),
        ([f"--tls-cert={cert}", f"--tls-key={other_key}"], "cannot be used together"),
        ([f"--tls-cert={key}", f"--tls-key={key}"], "cannot be used together"),
        ([f"--tls-cert={cert}", f"--tls-key={encrypted}"], "is encrypted"),
    ):
        for name in ("DELEGATION_TLS_CERT", "DELEGATION_TLS_KEY"):
            os.environ.pop(name, None)
        assert said in refused("serve", "--host=127.0.0.1", "--port=0", *options)


def _encrypted(path: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization

    key: Any = serialization.load_pem_private_key(path.read_bytes(), None)
    encoded: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    return encoded


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host=no.such.host.invalid"], "DELEGATION_HOST is 'no.such.host.invalid'"),
        (["--host=192.0.2.1", "--port=0"], "DELEGATION_PORT is 0 on 192.0.2.1"),
    ],
)
def test_an_address_that_is_none_of_ours(options: list[str], said: str) -> None:
    """Names the setting."""
    os.environ["DELEGATION_AUTH_TOKEN"] = TOKEN
    assert said in refused("serve", *options)


def test_a_bad_file_of_customers_keeps_it_from_starting(tmp_path: Path) -> None:
    """Better than a service that customers find closed."""
    os.environ["DELEGATION_AUTH_TOKEN"] = TOKEN
    (tmp_path / "delegation-tokens.json").write_text("{")
    assert "delegation-tokens.json" in refused("serve", "--host=127.0.0.1", "--port=0")


# token


def test_a_token_is_printed_once(tmp_path: Path) -> None:
    """Alone on standard output, so that it can be piped; no list shows it or its digest."""
    result = run("token", "add", "alice", "--sessions=3", "--share=2")
    assert result.exit_code == 0, result.output
    token = result.stdout.strip()
    assert len(token.split()) == 1
    assert len(token) >= 40
    assert "not shown again" in result.stderr
    listed = run("token", "list")
    assert listed.stdout.split()[-4:-1] == ["alice", "3", "2"]
    as_json = run("token", "list", "--json")
    [customer] = json.loads(as_json.stdout)
    assert set(customer) == {"name", "sessions", "share", "created"}
    assert token not in listed.output + as_json.output
    assert run("token", "revoke", "alice").exit_code == 0
    assert "No customers" in run("token", "list").stdout
    assert "no token" in refused("token", "revoke", "alice")
    assert (tmp_path / "delegation-tokens.json").exists()


@pytest.mark.parametrize("stop", [False, True])
def test_sessions_of_a_token_that_is_revoked(backend: Backend, stop: bool) -> None:
    """They search on, unless they are to end; others' sessions do in any case."""
    for name in ("alice", "bob"):
        assert run("token", "add", name).exit_code == 0
    ids = {name: backend.store.create(make_spec(customer=name)) for name in ("alice", "bob")}
    said = run("token", "revoke", "alice", *(["--stop"] if stop else []))
    assert said.exit_code == 0
    assert ("1 session stopped." in said.output) is stop
    assert set(backend.store.active_ids()) == {ids["bob"], *([] if stop else [ids["alice"]])}


def test_a_token_is_revoked_only_if_its_sessions_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is changed while Redis is away, so that the command can be given again."""
    assert run("token", "add", "alice").exit_code == 0
    monkeypatch.setenv("POCQUEUE_REDIS_URL", f"unix://{tmp_path}/nobody")
    refused("token", "revoke", "alice", "--stop")
    assert run("token", "revoke", "alice").exit_code == 0


def test_the_file_may_be_elsewhere(tmp_path: Path) -> None:
    """DELEGATION_TOKENS_FILE says where."""
    os.environ["DELEGATION_TOKENS_FILE"] = str(tmp_path / "elsewhere.json")
    assert run("token", "add", "alice").exit_code == 0
    assert (tmp_path / "elsewhere.json").exists()


# status


def test_status_shows_all_customers(backend: Backend) -> None:
    """The operator's view: whose, how far, how many GPUs."""
    live_gpus(backend, 3)
    ids = [
        backend.store.create(make_spec(customer=name, node_id=i, node_count=2))
        for i, name in enumerate(["main", "[b]alice"])
    ]
    backend.store.create(make_spec())
    work = Work(backend, ids[1])
    work.batch(num_valid=3)
    result = run("status")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    # In any order: they may have begun in the same millisecond.
    first, second = (next(row.split() for row in lines if one in row) for one in ids)
    assert first[:5] == [ids[0], "main", "0", "3", "0"]
    assert second[:7] == [ids[1], "[b]alice", "1", "3", "1", "3", "10"]
    assert (first[-1], second[-1]) == ("initializing", "generating")
    assert lines[3] == "2 active, 2 in the last hour, 10 at a time at most"
    found = json.loads(run("status", "--json").stdout)
    assert found["active_sessions"] == 2
    assert found["sessions"][ids[1]]["customer"] == "[b]alice"


def test_status_without_sessions(backend: Backend) -> None:
    """Says how there would be some."""
    assert backend.store.list_ids() == []
    assert "pocqueue delegation serve" in run("status").stdout


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:9090", "--url is '127.0.0.1:9090'; allowed: "),
        ("http://127.0.0.1:1", "does not answer"),
        ("http://[::1", "does not answer"),
    ],
)
def test_status_of_a_service_that_is_not_there(url: str, said: str) -> None:
    """One sentence."""
    assert said in refused("status", f"--url={url}")
