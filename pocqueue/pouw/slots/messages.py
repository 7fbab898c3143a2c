"""What a miner pushes for a slot: an iteration with its map. What is wrong with one can be said without torch."""

from __future__ import annotations

from typing import Final

from pocqueue.pouw.chain.signatures import verify
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.maps import SignMap, decode_map, map_hash
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.requests import IterationWithMap

#: How far a message's slot may be from the one that is open here: nodes hear of certificates at different times.
WINDOW: Final = 2


def check(
    message: IterationWithMap, task: TaskSpec, network: bytes, next_slot: int, num_lanes: int
) -> None:
    """Return if a message may be kept and passed on.

    Its `previous` is not looked at: this node may not have that certificate yet.

    Args:
        message: from anybody.
        task: what it says it is of.
        network: this node's.
        next_slot: the slot that is open here.
        num_lanes: of its miner's live ticket; 0: it has none.

    Raises:
        SlotError: ``slot`` or ``lane``, which may be nobody's fault, or as `read`.
    """
    iteration = message.iteration
    if abs(iteration.slot - next_slot) > WINDOW:
        raise SlotError(
            "slot",
            f"a message is of slot {iteration.slot}, {next_slot} is open; allowed: ± {WINDOW}.",
        )
    if iteration.lane >= num_lanes:
        raise SlotError(
            "lane",
            f"miner {iteration.miner.hex()} has {num_lanes} lanes by its ticket, and a message of lane "
            f"{iteration.lane}.",
        )
    read(message, task, network)


def read(message: IterationWithMap, task: TaskSpec, network: bytes) -> SignMap:
    """Return the entries of a message's map, if the message is its miner's and holds together.

    Raises:
        SlotError: ``network``, ``task``, ``signature`` or ``map``: whoever made it is at fault.
    """
    iteration = message.iteration
    if iteration.network != network:
        raise SlotError("network", f"a message is of {iteration.network.hex()}, another network.")
    if iteration.task != task.id:
        raise SlotError("task", f"a message is of {iteration.task.hex()}; due: {task.id.hex()}.")
    if map_hash(message.map) != iteration.map_hash:
        raise SlotError("map", "its hash is another one than the message beside it has.")
    entries = decode_map(message.map, task.num_weights, task.cap)
    if len(entries.indices) != iteration.entries:
        raise SlotError(
            "map", f"it has {len(entries.indices)} entries; its message says {iteration.entries}."
        )
    if not verify(iteration.miner, iteration.id, iteration.signature):
        raise SlotError("signature", f"a message is not by its miner {iteration.miner.hex()}.")
    return entries
