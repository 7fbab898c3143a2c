"""A round on a Redis whose sentinels make another server the primary in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocqueue.rounds.spec import RoundState
from tests.support.sentinels import FailingOver, failing_over
from tests.support.stack import QUICK, Stack

pytestmark = pytest.mark.long

NUM_NONCES = 6000


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailingOver]:
    """A primary, a replica, three sentinels."""
    with failing_over(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture(scope="module")
def pool(servers: FailingOver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A scheduler, an io worker and a GPU worker that know the sentinels."""
    stack = Stack(tmp_path_factory.mktemp("pool"), servers.url, QUICK)
    try:
        stack.scheduler()
        stack.spawn("io", "celery", "-A", "pocqueue", "worker", "-Q", "io")
        stack.worker("gpu0")
        stack.wait_live("gpu0")
        yield stack
    finally:
        stack.close()


def test_a_round_outlives_a_planned_failover(servers: FailingOver, pool: Stack) -> None:
    """The old primary lives on as a replica, which refuses what is written to it."""
    round_id = pool.start(max_nonces=NUM_NONCES)
    pool.wait_checked(round_id, 300)
    servers.fail_over()
    servers.wait_leading("replica")
    assert pool.wait_over(round_id).state is RoundState.COMPLETED
    pool.check_exactly_once(round_id, NUM_NONCES)
    pool.check_alive()


def test_a_round_outlives_its_primary(servers: FailingOver, pool: Stack) -> None:
    """What the new primary has counts once; what it never got is searched again; every process lives on."""
    servers.wait_following("primary")
    round_id = pool.start(max_nonces=NUM_NONCES)
    pool.wait_checked(round_id, 300)
    servers.cut_replication("replica", "primary")
    kept = servers.checked(round_id, "primary")
    pool.wait_checked(round_id, kept + 400)
    servers.kill("replica")
    servers.wait_leading("primary")
    assert servers.checked(round_id, "primary") < kept + 400
    assert pool.wait_over(round_id).state is RoundState.COMPLETED
    pool.check_exactly_once(round_id, NUM_NONCES)
    pool.check_alive()
