"""What acceptance tests share: stacks of two workers, one scheduler, one io worker; a service of GPU hosts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from pocqueue.rounds.spec import RoundState
from tests.support.hosts_service import Hosts
from tests.support.stack import QUICK, Stack


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One set of processes for the session: a worker takes seconds to load its engine."""
    yield from _standing(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="session")
def shared_quick_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One more, for thousands of nonces whose values are only compared with their like."""
    yield from _standing(tmp_path_factory.mktemp("quick-stack"), QUICK)


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The shared stack, whole again before each test, with no active round."""
    yield from _whole(shared_stack)


@pytest.fixture
def quick_stack(shared_quick_stack: Stack) -> Iterator[Stack]:
    """The quick one, in the same way."""
    yield from _whole(shared_quick_stack)


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """A running service of GPU hosts, its gateway and Redis up whenever a test begins."""
    # Not below pytest's folder: that path is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="pq-") as folder:
        hosts = Hosts(Path(folder))
        try:
            yield hosts
        finally:
            hosts.end()


def _standing(folder: Path, variables: Mapping[str, str] = MappingProxyType({})) -> Iterator[Stack]:
    stack = Stack(folder, variables=variables)
    try:
        stack.scheduler()
        stack.spawn("io", "celery", "-A", "pocqueue", "worker", "-Q", "io")
        stack.worker("gpu0")
        stack.worker("gpu1")
        yield stack
    finally:
        stack.close()


def _whole(stack: Stack) -> Iterator[Stack]:
    stack.server.ensure()
    for name in ("gpu0", "gpu1"):
        if name not in stack.processes:
            stack.worker(name)
    if "scheduler" not in stack.processes:
        stack.scheduler()
    stack.wait_live("gpu0", "gpu1")
    yield stack
    for round_id in stack.backend.store.active_ids():
        stack.backend.store.close(round_id, RoundState.STOPPED, "end of test")
