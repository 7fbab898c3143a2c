"""Results on disk: kept until acknowledged, never sent again after that."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocqueue.hosts.agent.errors import SpoolError
from pocqueue.hosts.agent.spool import KEEP_S, Attempt, Spool
from tests.support.waiting import Clock

ONE, TWO = Attempt("job-1", 1), Attempt("job-1", 2)


def test_a_result_waits_until_it_is_acknowledged(tmp_path: Path) -> None:
    """By its key, over a restart; the first result of an attempt is the one."""
    with Spool(tmp_path / "results") as spool:
        spool.add(ONE, "first")
        spool.add(ONE, "second")
        spool.add(TWO, "other")
        spool.acknowledge(TWO)
    with Spool(tmp_path / "results") as spool:
        assert spool.waiting() == [ONE]
        assert spool.body(ONE) == "first"
        assert spool.body(TWO) is None
        assert spool.knows(TWO)
        spool.add(TWO, "again")
        assert spool.waiting() == [ONE]


def test_an_acknowledged_attempt_is_forgotten_after_a_day(tmp_path: Path) -> None:
    """And not before; one that was never acknowledged is not forgotten."""
    clock = Clock()
    with Spool(tmp_path / "results", clock=clock) as spool:
        spool.add(ONE, "one")
        spool.add(TWO, "two")
        spool.acknowledge(ONE)
        clock.now_s += KEEP_S
        spool.acknowledge(Attempt("nobody", 1))
        assert spool.knows(ONE)
        clock.now_s += 1
        spool.acknowledge(Attempt("nobody", 1))
        assert not spool.knows(ONE)
        assert spool.waiting() == [TWO]


def test_a_spool_has_one_agent(tmp_path: Path) -> None:
    """Two would be the same node."""
    with (
        Spool(tmp_path / "results"),
        pytest.raises(SpoolError, match="in use by another agent"),
    ):
        Spool(tmp_path / "results")
