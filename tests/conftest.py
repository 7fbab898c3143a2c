"""Fixtures for every folder of tests: real Redis servers, settings and backends on them.

- `redis_server`: one real server for the whole run. `backend` and `settings_for` use it, emptied.
- `own_redis`: a server for one test that stops, fills or locks it; `own_backend` stands on it.
- `settings_for(**changes)`: settings on the shared server, whatever the environment says.
- `child_env`: the same as environment variables, for processes that a test starts.
- `postgres_server`: one real PostgreSQL server for the whole run.
- `receiver`: an HTTP server that takes callbacks.

A missing Redis binary fails the tests: a round without Redis is nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from pydantic import SecretStr
from typing_extensions import override
from xdist.scheduler import LoadScopeScheduling

from pocqueue.rounds.backend import Backend
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.settings import ENV_PREFIX, Settings, settings
from tests.support.callback_receiver import Receiver, receiving
from tests.support.commands import without_settings
from tests.support.fixtures import SettingsFactory
from tests.support.postgresql import PostgresServer

# The same examples on every run, and no time limit on one of them or on making it: the machine may be busy.
hypothesis.settings.register_profile(
    "pocqueue",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("pocqueue")


# Of this process and of all that tests start. Threads of a team spin while they wait for one that has no core, and the
# cores have other tests to run; set before torch is imported, which reads it then. Tests of teams make their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes import the same modules, and pytest's import the same tests: the first compiles them for all.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_configure() -> None:
    """Have signals as users have them: in the background of a shell, or under nohup, some are ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


#: Modules of tests/acceptance on processes that stand once; the others have processes of their own.
_ON_SHARED_PROCESSES = {
    **dict.fromkeys(("test_artifact_delegation", "test_artifacts", "test_broken_line"), "stack"),
    **dict.fromkeys(("test_cli", "test_delegation", "test_failures"), "stack"),
    **dict.fromkeys(("test_mlnode", "test_rounds"), "stack"),
    **dict.fromkeys(("test_host_agents", "test_hosts"), "hosts"),
}


def _group(nodeid: str) -> str:
    """Return what a test is to share a process of pytest's with: all that goes by the same name."""
    path = Path(nodeid.partition("::")[0])
    # One vLLM at a time, and each stack of workers once.
    if "vllm" in str(path) or "engine_compare" in path.name:
        return "vllm"
    # One clone of the machine.
    if str(path).startswith("tests/deploy/clone/"):
        return "clone"
    shared = _ON_SHARED_PROCESSES if path.parent.name == "acceptance" else {}
    return shared.get(path.stem, str(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first, and mark what needs a Redis server: `-m "not redis"` does without."""
    longest = {"stack", "vllm", "clone"}
    items.sort(key=lambda item: _group(item.nodeid) not in longest)
    for item in items:
        if {"redis_server", "own_redis"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.redis)


class _Groups(LoadScopeScheduling):  # type: ignore[misc]  # has no types
    """Keeps tests that share expensive processes in the same one of pytest's processes."""

    @override
    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Groups:
    """Say how tests are shared out with `-n`."""
    return _Groups(config, log)


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """Take back what a command that ran in this process has put into its environment, and what was read from it."""
    before = {name: text for name, text in os.environ.items() if name.startswith(ENV_PREFIX)}
    yield
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        if name not in before:
            del os.environ[name]
    os.environ.update(before)
    settings.cache_clear()


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Take back where a command that ran in this process has its messages go: its standard error is closed by then."""
    root, ours = logging.getLogger(), logging.getLogger("pocqueue")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis server for the whole run."""
    yield from _server()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL server for the whole run."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A real Redis server of this test's own, to be stopped and reconfigured at will."""
    yield from _server()


def _server() -> Iterator[RedisServer]:
    # Not below pytest's folder: that path is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="pq-") as folder:
        server = RedisServer(Path(folder))
        server.ensure()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def settings_for(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SettingsFactory:
    """Return a function that makes settings on the shared Redis server."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)

    def make(**changes: Any) -> Settings:
        fields: dict[str, Any] = {
            "redis_url": SecretStr(redis_server.url),
            "state_dir": tmp_path,
        }
        return Settings(**(fields | changes))

    return make


@pytest.fixture
def child_env(redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a process that is to use the shared Redis server."""
    env = without_settings()
    return env | {
        f"{ENV_PREFIX}REDIS_URL": redis_server.url,
        f"{ENV_PREFIX}STATE_DIR": str(tmp_path),
    }


@pytest.fixture
def backend(settings_for: SettingsFactory) -> Iterator[Backend]:
    """A backend on the shared Redis server, which is empty at first."""
    with Backend.open(settings_for()) as backend:
        backend.client.flushall()
        yield backend


@pytest.fixture
def own_backend(own_redis: RedisServer, settings_for: SettingsFactory) -> Iterator[Backend]:
    """A backend on this test's own Redis server."""
    with Backend.open(settings_for(redis_url=SecretStr(own_redis.url))) as backend:
        yield backend


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """Make a receiver of callbacks that listens."""
    async with receiving() as receiver:
        yield receiver
