"""Networks of the seed's nodes, one process each, over loopback: slots, blocks, and what they cost.

    python -m benchmarks.pouw_network

Two networks, both with a block every two seconds on average, so that a hundred of them take minutes: one
supervisor and three miners whose slots follow each other without pause; then nine processes at 3.4 slots a
second. Seen from outside: by HTTP, by the nodes' logs, and by what the supervisor has on its disk afterwards.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.effort import FULL, Effort
from benchmarks.pouw_nodes import Testnet, testnet
from benchmarks.stats import Figure, Sample, percentile
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.requests import Slot
from pocqueue.pouw.wire.slots import Certificate

_BLOCK_MS = 2000
#: Of the first targets: a draw in so many is a block. A slot of three miners has 48 draws.
_TARGET_BITS, _PACED_BITS, _SMOKE_BITS = 245, 247, 253
_NUM_BLOCKS = 100
#: Not counted: until the difficulty is near what it should be.
_FIRST_BLOCKS = 20
#: 3.4 slots a second.
_PACED_MS = 294
_LOOK_S = 30.0
#: Of the last slots, whose maps nobody has forgotten yet.
_NUM_SLOTS = 900


class _Looked(NamedTuple):
    """What was seen of nodes over some time."""

    seconds: float
    slots: int  #: that the supervisor certified
    cpu: list[float]  #: share of a core by node, without its trainer
    pss: list[int]  #: bytes by node, with its trainer
    rates: list[float]  #: bytes/s by node, sent and received together


class _Told(NamedTuple):
    """What is on the supervisor's disk, and when each node took a block by its log."""

    slots: list[Slot]  #: the last ones
    blocks: list[Block]  #: trained ones
    taken: list[dict[str, float]]


def pouw_network(effort: Effort = FULL) -> list[Figure]:
    """Run both networks; six minutes. A smoke run has one, of two nodes."""
    roles = ["supervisor", *["miner"] * (3 if effort.is_full else 1)]
    bits = _TARGET_BITS if effort.is_full else _SMOKE_BITS
    looked, told = _run(roles, 0, bits, effort, _NUM_BLOCKS)
    name = f"pouw: without pause, {len(roles)} nodes"
    figures = [_slot(told, name), _pace(told, name), _verified(told, name), _share(told, name)]
    if effort.is_full:
        roles = ["supervisor", *["miner"] * 6, "verifier", "peer"]
        looked, told = _run(roles, _PACED_MS, _PACED_BITS, effort, 0)
        name = f"pouw: 3.4 slots/s, {len(roles)} nodes"
        figures.append(_verified(told, name))
    return [*figures, *_costs(looked, told, name)]


def _run(
    roles: Sequence[str], slot_ms: int, bits: int, effort: Effort, num_blocks: int
) -> tuple[_Looked, _Told]:
    """Run a network until it has so many trained blocks more than it began with, and look at it for a while."""
    with tempfile.TemporaryDirectory(prefix="pocqueue-bench-") as name:
        numbers = {"block_ms": _BLOCK_MS, "halflife_ms": 10 * _BLOCK_MS, "slot_ms": slot_ms}
        numbers |= {"first_target_bits": bits, "filler_slots": 1_000_000}
        with testnet(Path(name), roles, **numbers) as network:
            # Tickets of all are in founding blocks before the first trained ones.
            first = len(roles) + effort.size(_FIRST_BLOCKS)
            network.wait(lambda one: one["blockchain_height"] >= first)
            looked = _look(network, effort.seconds(_LOOK_S))
            last = first + effort.runs(num_blocks) if num_blocks else 0
            network.wait(lambda one: one["blockchain_height"] >= last)
        return looked, _read(network, first)


def _look(network: Testnet, seconds: float) -> _Looked:
    """Look at the nodes' processes for so long."""
    processes = {node.name: node.process() for node in network.nodes}
    families = {name: [one, *one.children(recursive=True)] for name, one in processes.items()}

    def times() -> list[list[float]]:
        return [[sum(one.cpu_times()[:2]) for one in family] for family in families.values()]

    def slot() -> int:
        return int(network.supervisor.ask("status")["slot"])

    for node in network.nodes:
        node.ask("health")  # its rate of bytes is that since the look before
    before, began, first = times(), time.monotonic(), slot()
    time.sleep(seconds)
    after, took, last = times(), time.monotonic() - began, slot()
    used = [
        [(b - a) / took for a, b in zip(*pair, strict=True)]
        for pair in zip(before, after, strict=True)
    ]
    return _Looked(
        seconds=took,
        slots=last - first,
        cpu=[shares[0] for shares in used],
        pss=[sum(one.memory_full_info().pss for one in family) for family in families.values()],
        rates=[node.ask("health")["bandwidth_utilization"] for node in network.nodes],
    )


def _read(network: Testnet, first: int) -> _Told:
    """Read what a network that has ended left behind: trained blocks from a height on, and the slots."""
    genesis, folder = Genesis.load(network.genesis), network.data(network.supervisor)
    with ChainStore(folder, genesis) as store:
        chain = Chain(genesis, store)
        found = map(chain.block_at, range(first, chain.tip.height + 1))
        blocks = [one for one in found if one is not None and isinstance(one.proof, Trained)]
    task = genesis.filler_task(0)
    with SlotStore(folder, genesis.network) as slot_store:
        slots = slot_store.slots(task, max(0, slot_store.num_slots(task) - _NUM_SLOTS), _NUM_SLOTS)
    return _Told(slots, blocks, [network.taken(node) for node in network.nodes])


def _certificate(block: Block) -> Certificate:
    """Return that of the slot in which a block was drawn."""
    assert isinstance(block.proof, Trained)
    return block.proof.winner.signed.certificate


def _slot(told: _Told, name: str) -> Figure:
    times = [slot.record.signed.certificate.time_ms for slot in told.slots]
    slots = Sample([float(after - before) for before, after in pairwise(times)], "ms")
    median = slots.median
    return _figure(f"{name}: a slot", slots, median, "median at most 25 ms", median <= 25)


def _pace(told: _Told, name: str) -> Figure:
    """Blocks a minute against what the network's parameters ask for."""
    times = [block.header.time_ms for block in told.blocks]
    gaps = Sample([float(after - before) for before, after in pairwise(times)], "ms")
    ratio = _BLOCK_MS * (len(times) - 1) / (times[-1] - times[0])
    return _figure(
        f"{name}: time between {len(times)} blocks, one every {_BLOCK_MS} ms wanted",
        gaps,
        ratio,
        "blocks a minute 0.8 to 1.2 of 60/T",
        0.8 <= ratio <= 1.2,
    )


def _verified(told: _Told, name: str) -> Figure:
    """From the certificate that a winner drew with until the last node has trained its lap over and taken it in."""
    delays = []
    for block in told.blocks:
        certified_s = _certificate(block).time_ms / 1000
        taken_s = [node.get(block.id.hex()[:16]) for node in told.taken]
        if None not in taken_s:
            delays.append(1000 * (max(filter(None, taken_s)) - certified_s))
    slowest = percentile(delays, 95)
    return _figure(
        f"{name}: block found to verified by all",
        Sample(delays, "ms"),
        slowest,
        "95 % within 100 ms",
        slowest <= 100,
    )


def _share(told: _Told, name: str) -> Figure:
    """Gradients that one node does over for a block, of those that the network did for it."""
    done_over = [block.header.slot % LAP + 1 for block in told.blocks[1:]]
    done = [
        (after.header.slot - before.header.slot) * _certificate(after).count
        for before, after in pairwise(told.blocks)
    ]
    share = sum(done_over) / sum(done)
    return _figure(
        f"{name}: gradients that a node does over for a block",
        Sample([float(each) for each in done_over], "gradients"),
        share,
        "at most 0.05 of the network's for it",
        share <= 0.05,
        Sample([float(each) for each in done], "gradients"),
        "done by the network",
    )


def _costs(looked: _Looked, told: _Told, name: str) -> list[Figure]:
    """What nodes take of their machine."""
    maps = sum(len(message.map) for slot in told.slots for message in slot.messages)
    per_slot = looked.seconds / looked.slots / 1000
    # Each goes to a node once and once on to a peer, on average; to the others it is known.
    kilobytes = Sample([rate * per_slot for rate in looked.rates], "kB")
    memory = Sample([pss / 1e9 for pss in looked.pss], "GB")
    supervisor, total = looked.cpu[0], sum(memory.values)
    most = 5 + 2 * maps / len(told.slots) / 1000
    busiest = max(kilobytes.values)
    return [
        _figure(
            f"{name}: a supervisor's own CPU",
            Sample(looked.cpu, "of a core"),
            supervisor,
            "at most 0.15 of a core",
            supervisor <= 0.15,
        ),
        _figure(
            f"{name}: memory of a node and its trainer",
            memory,
            total,
            "2.5 GB together",
            total <= 2.5,
        ),
        _figure(
            f"{name}: bytes a slot, in and out",
            kilobytes,
            busiest,
            f"at most 5 kB and the slot's maps in and out: {most:.3g}",
            busiest <= most,
        ),
    ]


def _figure(
    name: str,
    measured: Sample,
    value: float,
    target: str,
    reached: bool,
    against: Sample | None = None,
    against_name: str = "",
) -> Figure:
    return Figure(name, measured, against, against_name, value, target, reached)


if __name__ == "__main__":
    for figure in pouw_network():
        print(figure.name)
        print(f"    measured   {figure.measured}")
        if figure.against is not None:
            print(f"    against    {figure.against}   {figure.against_name}")
        verdict = "reached" if figure.reached else "MISSED"
        print(f"    asked for  {figure.target}: {figure.value:.4g}, {verdict}")
