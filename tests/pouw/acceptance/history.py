"""Whether nodes have one history: what their files say, with the nodes stopped or not."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from pocqueue.pouw.slots.slot_store import SLOTS_NAME
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.slots import SlotRecord
from tests.pouw.acceptance.processes import NodeProcess

_RECORDS = "SELECT task, slot, record FROM record"


def slots_on_disk(folder: Path) -> dict[tuple[bytes, int], bytes]:
    """Return the certificate's id of each slot that a node has."""
    file = f"file:{folder / SLOTS_NAME}?mode=ro"
    with contextlib.closing(sqlite3.connect(file, uri=True)) as db:
        return {
            (task, slot): decode(record, SlotRecord).signed.certificate.id
            for task, slot, record in db.execute(_RECORDS)
        }


def assert_one_history(nodes: Iterable[NodeProcess]) -> None:
    """Fail if two nodes have different slots, or different final blocks, of which there is at least one."""
    nodes = list(nodes)
    known: dict[tuple[bytes, int], bytes] = {}
    for one in nodes:
        slots = slots_on_disk(one.folder)
        assert slots, one.name
        different = [at for at, found in slots.items() if known.setdefault(at, found) != found]
        assert not different, f"{one.name} has other slots: {different[:3]}"
    final = min(one.number("anchor_height") for one in nodes)
    assert final > 0
    chains = [
        {block["height"]: block["id"] for block in one.ask("blocks?last=1000")} for one in nodes
    ]
    for height in range(1, final + 1):
        assert len({chain[height] for chain in chains}) == 1, f"height {height}"
