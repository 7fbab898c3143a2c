"""What nodes' files say of their slots, with the nodes stopped or not: whether they have one history, and who trained when."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from pocqueue.pouw.slots.slot_store import SLOTS_NAME
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.slots import Certificate, SlotRecord
from tests.pouw.acceptance.founded import transactions
from tests.pouw.acceptance.processes import NodeProcess
from tests.support.waiting import wait_until

_RECORDS = "SELECT task, slot, record FROM record"
_MESSAGES = "SELECT task, slot, miner FROM message"

#: A task's id, and a slot of it.
Place = tuple[bytes, int]


def slots_on_disk(folder: Path) -> dict[Place, Certificate]:
    """Return the certificate of each slot that a node has."""
    with _slots_of(folder) as db:
        return {
            (task, slot): decode(record, SlotRecord).signed.certificate
            for task, slot, record in db.execute(_RECORDS)
        }


def messages_on_disk(folder: Path) -> list[tuple[Place, str]]:
    """Return the slot and the miner's account of each certified message that a node has."""
    with _slots_of(folder) as db:
        return [((task, slot), miner.hex()) for task, slot, miner in db.execute(_MESSAGES)]


def turns_until_caught(one: NodeProcess, cheat: str) -> int:
    """Return how many slots there were, of all tasks, from a cheat's first certified message to the block that took its stake.

    Args:
        one: its chain has that block.
        cheat: account of the miner.
    """
    shown = [found for found in transactions(one, "Evidence") if found["accused"] == cheat]
    taken = min(shown, key=lambda found: found["height"])
    place = (bytes.fromhex(taken["task"]), taken["slot"])
    wait_until(lambda: place in slots_on_disk(one.folder), message=f"slot {place[1]} of {one.name}")
    slots = slots_on_disk(one.folder)
    first = min(slots[at].turn for at, miner in messages_on_disk(one.folder) if miner == cheat)
    return slots[place].turn - first


def assert_one_history(nodes: Iterable[NodeProcess]) -> None:
    """Fail if two nodes have different slots, or different final blocks, of which there is at least one."""
    nodes = list(nodes)
    known: dict[Place, bytes] = {}
    for one in nodes:
        slots = {place: found.id for place, found in slots_on_disk(one.folder).items()}
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


@contextlib.contextmanager
def _slots_of(folder: Path) -> Iterator[sqlite3.Connection]:
    file = f"file:{folder / SLOTS_NAME}?mode=ro"
    with contextlib.closing(sqlite3.connect(file, uri=True)) as db:
        yield db
