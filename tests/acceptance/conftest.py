"""The stack that acceptance tests share: two workers, one scheduler, one io worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack import Stack


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One set of processes for the session: a worker takes seconds to load its engine."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
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
        from pocqueue.rounds.spec import RoundState

        shared_stack.backend.store.close(round_id, RoundState.STOPPED, "end of test")
