"""The variables of pocqueue on a server: what is in their file, and what may not be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pocqueue.deploy.errors import BadUsage
from pocqueue.deploy.stack.variables import (
    env_file,
    revealed,
    secrets_of,
    stack_id,
    variables,
)
from pocqueue.settings import ALL
from tests.deploy.confs import conf

TOKEN = 'a-token-of-16-characters $`"#;'


def private(path: Path, text: str, mode: int = 0o600) -> str:
    """Write a file; return its name."""
    path.write_text(text)
    path.chmod(mode)
    return path.name


def test_what_each_role_needs(tmp_path: Path) -> None:
    """All are variables that pocqueue reads; nothing listens to the world by itself."""
    roles = "redis,scheduler,worker,io,delegation,hosts,agent"
    found = variables(conf(tmp_path, POCQUEUE_ROLE=roles), "/var/lib/pocqueue")
    known = {kind.variable(name) for kind in ALL for name in kind.model_fields} | {"HF_HOME"}
    assert set(found) <= known
    assert found["POCQUEUE_REDIS_URL"] == "unix:///var/lib/pocqueue/redis/redis.sock"
    for name, value in found.items():
        if name.endswith(("_HOST", "_ADDRESS")):
            assert value == "127.0.0.1", name
    assert not secrets_of(found)
    agent = variables(conf(tmp_path, POCQUEUE_ROLE="agent"), "/var/lib/pocqueue")
    assert "POCQUEUE_REDIS_URL" not in agent


def test_a_worker_of_a_gpu_has_a_gpu(tmp_path: Path) -> None:
    """Unless the operator says otherwise; a container has the number of its own."""
    more = private(tmp_path / "more", "POCQUEUE_DEVICE=cpu\n")
    for fields, device in (
        ({}, "cuda"),
        ({"POCQUEUE_ENV_FILE": more}, "cpu"),
        ({"POCQUEUE_ROLE": "redis,io"}, None),
        ({"POCQUEUE_RUN": "compose"}, None),
    ):
        node = conf(tmp_path, **{"POCQUEUE_ROLE": "redis,worker"} | fields)
        assert variables(node, "/s").get("POCQUEUE_DEVICE") == device


def test_a_shell_reads_what_was_meant(tmp_path: Path) -> None:
    """Also what shells make something else of; secrets are known as such, the password in a URL by itself."""
    name = private(tmp_path / "url", "redis://:p%40ss%2Fword@redis.internal:6379/0\n")
    more = private(
        tmp_path / "more", f"DELEGATION_AUTH_TOKEN='{TOKEN}'\nPOCQUEUE_DEVICE=cpu # why\n"
    )
    node = conf(
        tmp_path,
        POCQUEUE_ROLE="worker,delegation",
        POCQUEUE_REDIS_URL_FILE=name,
        POCQUEUE_ENV_FILE=more,
    )
    found = variables(node, "/s")
    assert [secret.reveal() for secret in secrets_of(found)] == [
        *("redis://:p%40ss%2Fword@redis.internal:6379/0", TOKEN, "p@ss/word")
    ]
    assert TOKEN not in repr(env_file(found, "x"))
    (tmp_path / "pocqueue.env").write_text(revealed(env_file(found, "abc")))
    script = "set -a; . ./pocqueue.env; exec env"
    said = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    assert f"DELEGATION_AUTH_TOKEN={TOKEN}" in said
    assert "POCQUEUE_DEVICE=cpu" in said
    assert "STACK_ID=abc" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("POCQUEUE_MODLE=x\n", "did you mean POCQUEUE_MODEL?"),
        ("PATH=/tmp\n", "is no variable of pocqueue"),
        ("POCQUEUE_REDIS_URL=redis://x\n", "is given by the conf file"),
        ('DELEGATION_AUTH_TOKEN="it\'s one"\n', "without ' and"),
        ("DELEGATION_AUTH_TOKEN=\n", "that is not empty"),
        ("BROKEN LINE\n", "no NAME=value"),
        ("\n\nBROKEN LINE\n", "line 3: it is no NAME=value"),
    ],
)
def test_what_may_not_be_in_the_file(text: str, said: str, tmp_path: Path) -> None:
    """By line; no secret is in the message."""
    more = private(tmp_path / "more", text)
    with pytest.raises(BadUsage, match=said) as refused:
        variables(conf(tmp_path, POCQUEUE_ROLE="redis", POCQUEUE_ENV_FILE=more), "/s")
    assert "it's one" not in str(refused.value)


@pytest.mark.parametrize("field", ["POCQUEUE_REDIS_URL_FILE", "POCQUEUE_ENV_FILE"])
def test_secrets_are_in_files_of_their_own(field: str, tmp_path: Path) -> None:
    """That nobody else can read."""
    name = private(tmp_path / "open", "redis://x\n", 0o644)
    role = "redis" if field == "POCQUEUE_ENV_FILE" else "io"
    with pytest.raises(BadUsage, match="chmod 600"):
        variables(conf(tmp_path, POCQUEUE_ROLE=role, **{field: name}), "/s")


def test_a_url_that_is_none_is_refused_without_being_shown(tmp_path: Path) -> None:
    """It has a password in it."""
    name = private(tmp_path / "url", "redis://:hidden@host:6379/0?unknown=1\n")
    with pytest.raises(BadUsage) as refused:
        variables(conf(tmp_path, POCQUEUE_ROLE="io", POCQUEUE_REDIS_URL_FILE=name), "/s")
    assert "hidden" not in str(refused.value)


def test_what_a_process_was_started_with_is_all_of_it() -> None:
    """Version, variables, unit files: each changes it."""
    usual = stack_id("1-a", {"A": "b"}, ["unit"])
    others = {
        stack_id("1-b", {"A": "b"}, ["unit"]),
        stack_id("1-a", {"A": "c"}, ["unit"]),
        stack_id("1-a", {"A": "b"}, ["other"]),
    }
    assert len(others | {usual}) == 4
