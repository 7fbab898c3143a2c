"""A committee most of whose members came when a client's task was half trained: it says who worked on all of it."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pocqueue.pouw.slots.slot_store import SLOTS_NAME
from tests.pouw.acceptance.history import assert_one_history
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis
from tests.support.commands import without_settings
from tests.support.waiting import wait_until

_LAPS = 80


def _slots(one: NodeProcess) -> int:
    """Return how many slots the one client's task has by a node's word."""
    tasks: list[dict[str, Any]] = one.ask("tasks") or []
    return max((int(task["slots"]) for task in tasks), default=0)


def _first(one: NodeProcess, table: str, task: str) -> int:
    """Return the first slot of a task that a node has something of."""
    file = f"file:{one.folder / SLOTS_NAME}?mode=ro"
    query = f"SELECT min(slot) FROM {table} WHERE task = ?"  # noqa: S608
    with contextlib.closing(sqlite3.connect(file, uri=True)) as db:
        [found] = db.execute(query, (bytes.fromhex(task),)).fetchone()
    return int(found)


@pytest.mark.long
def test_members_that_came_late_have_the_work_before_paid(tmp_path: Path) -> None:
    """One supervisor begins; three come when slots are there that they skip; the four close the task and it is paid for."""
    network = quick_genesis(tmp_path, slot_ms=150, result_blocks=4)
    first = NodeProcess(tmp_path / "first", "supervisor", network, options="--no-mine")
    miner = NodeProcess(tmp_path / "miner", "miner", network, first)
    late = [
        NodeProcess(
            tmp_path / f"late_{place}",
            "supervisor",
            network,
            first,
            options="--no-mine",
            change="jumps",
        )
        for place in range(3)
    ]
    argv = [
        *(sys.executable, "-m", "pocqueue", "pouw", "task", "submit", "digits", "--name", "long")
    ]
    argv += [
        "--widths",
        "16",
        "--min-accuracy",
        "1",
        "--max-epochs",
        str(_LAPS),
        "--watch",
        "--json",
    ]
    argv += ["--bootstrap", f"127.0.0.1:{first.port}"]
    env = {
        **without_settings(),
        "POCQUEUE_STATE_DIR": str(tmp_path / "client"),
        "POCQUEUE_POUW_NETWORK": network,
    }
    try:
        first.start()
        miner.start()
        first.until_past("turn", 3)
        client = subprocess.Popen(
            argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until(lambda: _slots(first) > 60, message="sixty slots of the task")
            for one in late:
                one.start()
            said, told = client.communicate(timeout=900)
        finally:
            client.kill()
        assert client.returncode == 0, told
        found = json.loads(said)
        closed = re.search(r"closed by the committee of epoch (\d+) after (\d+) slots", told)
        assert closed is not None, told
        assert (int(closed[1]) > 0, int(closed[2])) == (True, 8 * _LAPS), told
        assert found["state"] == "settled"
        trained = [line for line in found["payouts"] if line["for"] == "training"]
        assert [line["account"] for line in trained] == [miner.ask()["public_key"]]
        certified = {line["account"] for line in found["payouts"] if line["for"] == "certifying"}
        assert certified == {one.ask()["public_key"] for one in (first, *late)}
        # They go on with the task before it, of which three of them had nothing, where it was.
        everybody = (first, miner, *late)
        turn = max(one.number("turn") for one in everybody)
        for one in everybody:
            one.until_past("turn", turn + 8)
        assert_one_history(everybody)
        # Three of four had to say how the task ended, so two of these at least had skipped slots, and have learned who worked in them.
        task = found["id"]
        skipped = [one for one in late if _first(one, "map", task) > _first(first, "map", task)]
        assert len(skipped) >= 2
        learned = [
            _first(one, "message", task) == _first(first, "message", task) for one in skipped
        ]
        assert learned.count(True) >= 2
    finally:
        for one in (*late, miner, first):
            one.stop()
