"""Fifty times kill -9, at random moments; TEST_POUW_KILLS=1000 for a night."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path

import pytest

from tests.pouw.acceptance.history import assert_one_history, slots_on_disk
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis

_KILLS = int(os.environ.get("TEST_POUW_KILLS", "50"))


@pytest.mark.long
def test_who_is_killed_goes_on_from_its_disk(tmp_path: Path) -> None:
    """Supervisor and miner, at any moment of their start, slots and blocks; none ever says two things of one slot."""
    rng = random.Random(7)  # noqa: S311 - no secret
    network = quick_genesis(tmp_path, slot_ms=50, block_ms=2000, first_target_bits=250)
    supervisor = NodeProcess(tmp_path / "supervisor", "supervisor", network, options="--no-mine")
    observer = NodeProcess(tmp_path / "observer", "peer", network, supervisor)
    miner = NodeProcess(tmp_path / "miner", "miner", network, supervisor, observer)
    nodes = (supervisor, observer, miner)
    try:
        for one in nodes:
            one.start()
        miner.until_past("anchor_height", 0)
        heights = [miner.number("blockchain_height")]
        certified = slots_on_disk(supervisor.folder)
        for kill in range(_KILLS):
            victim = rng.choice((supervisor, miner))
            # The moment is what is tested: from before it listens to many slots later.
            time.sleep(rng.random() ** 2)
            victim.kill()
            victim.start()
            if kill % 25 == 24:
                heights.append(observer.until_past("blockchain_height", heights[-1]))
        final = observer.number("blockchain_height")
        for one in nodes:
            one.until_past("anchor_height", final)
        assert_one_history(nodes)
        now = slots_on_disk(supervisor.folder)
        assert {at: now[at] for at in certified} == certified
        for one in nodes:
            said = one.log.read_text()
            assert "Traceback" not in said
            assert set(re.findall(r"Security alert: (\w+)", said)) <= {"isolated_detected"}
    finally:
        for one in nodes:
            one.stop()
