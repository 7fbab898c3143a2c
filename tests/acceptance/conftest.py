"""What acceptance tests share: a stack of two workers, one scheduler, one io worker; a service of GPU hosts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocqueue.rounds.spec import RoundState
from tests.support.hosts_service import Hosts
from tests.support.stack import QUICK, Stack


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One set of processes for the session: a worker takes seconds to load its engine."""
    stack = Stack(tmp_path_factory.mktemp("stack"), variables=QUICK)
    try:
        stack.scheduler()
        stack.spawn("io", "celery", "-A", "pocqueue", "worker", "-Q", "io")
        stack.worker("gpu0")
        stack.worker("gpu1")
        yield stack
    finally:
        stack.close()


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The shared stack, whole again before each test, with no active round."""
    shared_stack.server.ensure()
    for name in ("gpu0", "gpu1"):
        if name not in shared_stack.processes:
            shared_stack.worker(name)
    if "scheduler" not in shared_stack.processes:
        shared_stack.scheduler()
    shared_stack.wait_live("gpu0", "gpu1")
    yield shared_stack
    for round_id in shared_stack.backend.store.active_ids():
        shared_stack.backend.store.close(round_id, RoundState.STOPPED, "end of test")


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
