"""Networks of the seed's nodes, one process each, over loopback: slots, blocks, and what they cost.

    python -m benchmarks.pouw_network [NAME]

Committees of 1, 4 and 7 with three miners whose slots follow each other without pause; then nine nodes with one
supervisor, and seven with four, at 3.4 slots a second. Blocks come every two seconds on average, so that a hundred of
them take minutes, in the last one every five. Seen from outside: by HTTP, by the nodes' logs, and by what a
supervisor has on its disk afterwards.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
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

_BLOCK_MS, _SLOW_BLOCK_MS = 2000, 5000
#: Of the first targets: a draw in so many is a block. A slot of three miners has 48 draws.
_TARGET_BITS, _PACED_BITS, _SMOKE_BITS = 245, 247, 253
_NUM_BLOCKS, _NUM_SLOW_BLOCKS = 100, 30
#: Committees of several, and the ms that a slot without pause may take with them.
_COMMITTEES = {4: 60, 7: 110}
#: Not counted: until all trainers have begun.
_FIRST_SLOTS = 25
#: Not counted: until trainers of those that only check have begun too, and the difficulty is near what it should be.
_FIRST_BLOCKS = 20
#: 3.4 slots a second.
_PACED_MS = 294
_LOOK_S = 30.0
#: Of the last slots, whose maps nobody has forgotten yet.
_NUM_SLOTS = 900


class _Looked(NamedTuple):
    """What was seen of nodes over some time."""

    seconds: float
    slots: int  #: that were certified
    cpu: list[float]  #: share of a core by node, without its trainer
    pss: list[int]  #: bytes by node, with its trainer
    rates: list[float]  #: bytes/s by node, sent and received together


class _Told(NamedTuple):
    """What is on the supervisor's disk, and when each node took a block by its log."""

    slots: list[Slot]  #: the last ones
    blocks: list[Block]  #: trained ones
    taken: list[dict[str, float]]


def pouw_network(effort: Effort = FULL) -> list[Figure]:
    """Run all networks; a quarter of an hour. A smoke run has one, of two nodes."""
    if not effort.is_full:
        return _alone(effort)
    return [figure for run in _NETWORKS.values() for figure in run(effort)]


def _alone(effort: Effort) -> list[Figure]:
    """One supervisor, without pause."""
    roles = ["supervisor", *["miner"] * (3 if effort.is_full else 1)]
    bits = _TARGET_BITS if effort.is_full else _SMOKE_BITS
    looked, told = _run(roles, 0, bits, effort, _NUM_BLOCKS)
    name = f"pouw: without pause, {len(roles)} nodes"
    figures = [_slot(told, name, 25), _pace(told, name)]
    figures += [_verified(told, name), _share(told, name, 0.05)]
    return figures if effort.is_full else [*figures, *_costs(looked, told, name, 1)]


def _nine(effort: Effort) -> list[Figure]:
    """One supervisor and eight others at 3.4 slots a second."""
    roles = ["supervisor", *["miner"] * 6, "verifier", "peer"]
    looked, told = _run(roles, _PACED_MS, _PACED_BITS, effort, 0)
    name = f"pouw: 3.4 slots/s, {len(roles)} nodes"
    return [_verified(told, name), *_costs(looked, told, name, 1)]


def _committee(size: int, effort: Effort) -> list[Figure]:
    """Several supervisors and three miners, without pause."""
    looked, told = _run(_roles(size), 0, _TARGET_BITS, effort, 0)
    name = f"pouw: without pause, a committee of {size} and 3 miners"
    per_slot = 1000 * looked.seconds / looked.slots
    cpu = Sample([share * per_slot for share in looked.cpu], "ms")
    total, most = sum(cpu.values), 2.0 * _COMMITTEES[size]
    return [
        _slot(told, name, _COMMITTEES[size]),
        _figure(
            f"{name}: CPU of all nodes' own processes for a slot",
            cpu,
            total,
            f"at most two cores for as long: {most:g} ms",
            total <= most,
        ),
    ]


def _paced(effort: Effort) -> list[Figure]:
    """Four supervisors and three miners at 3.4 slots a second, a block every five."""
    looked, told = _run(
        _roles(4), _PACED_MS, _PACED_BITS - 1, effort, _NUM_SLOW_BLOCKS, _SLOW_BLOCK_MS
    )
    name = "pouw: 3.4 slots/s, a committee of 4 and 3 miners"
    return [_verified(told, name), _share(told, name, 0.1), *_costs(looked, told, name, 4)]


_NETWORKS: dict[str, Callable[[Effort], list[Figure]]] = {
    "alone": _alone,
    "nine": _nine,
    **{f"committee{size}": partial(_committee, size) for size in _COMMITTEES},
    "paced": _paced,
}


def _roles(num_supervisors: int) -> list[str]:
    return [*["supervisor"] * num_supervisors, *["miner"] * 3]


def _run(
    roles: Sequence[str],
    slot_ms: int,
    bits: int,
    effort: Effort,
    num_blocks: int,
    block_ms: int = _BLOCK_MS,
) -> tuple[_Looked, _Told]:
    """Run a network until it has so many trained blocks more than it began with, and look at it for a while."""
    with tempfile.TemporaryDirectory(prefix="pocqueue-bench-") as name:
        numbers = {"block_ms": block_ms, "halflife_ms": 10 * block_ms, "slot_ms": slot_ms}
        numbers |= {"first_target_bits": bits}
        with testnet(Path(name), roles, **numbers) as network:
            # What makes nodes and committee comes in founding blocks before the first trained ones.
            begun = network.wait(lambda one: one["turn"] > _FIRST_SLOTS)
            first = max(one["blockchain_height"] for one in begun.values())
            first += effort.size(_FIRST_BLOCKS)
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

    def turn() -> int:
        return int(network.supervisor.ask("status")["turn"])

    for node in network.nodes:
        node.ask("health")  # its rate of bytes is that since the look before
    before, began, first = times(), time.monotonic(), turn()
    time.sleep(seconds)
    after, took, last = times(), time.monotonic() - began, turn()
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
    with SlotStore(folder, genesis.network) as slot_store:
        # Ids of fillers are in the order of their generations.
        tasks = filter(genesis.is_filler, sorted(slot_store.tasks()))
        slots = [
            slot
            for task in tasks
            for slot in slot_store.slots(
                task, max(0, slot_store.num_slots(task) - _NUM_SLOTS), _NUM_SLOTS
            )
        ]
    return _Told(slots[-_NUM_SLOTS:], blocks, [network.taken(node) for node in network.nodes])


def _certificate(block: Block) -> Certificate:
    """Return that of the slot in which a block was drawn."""
    assert isinstance(block.proof, Trained)
    return block.proof.winner.signed.certificate


def _slot(told: _Told, name: str, most_ms: int) -> Figure:
    times = [slot.record.signed.certificate.time_ms for slot in told.slots]
    slots = Sample([float(after - before) for before, after in pairwise(times)], "ms")
    median = slots.median
    return _figure(
        f"{name}: a slot", slots, median, f"median at most {most_ms} ms", median <= most_ms
    )


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


def _share(told: _Told, name: str, most: float) -> Figure:
    """Gradients that one node does over for a block, of those that the network did for it."""
    done_over = [block.header.slot % LAP + 1 for block in told.blocks[1:]]
    done = [
        (_certificate(after).turn - _certificate(before).turn) * _certificate(after).count
        for before, after in pairwise(told.blocks)
    ]
    share = sum(done_over) / sum(done)
    return _figure(
        f"{name}: gradients that a node does over for a block",
        Sample([float(each) for each in done_over], "gradients"),
        share,
        f"at most {most:g} of the network's for it",
        share <= most,
        Sample([float(each) for each in done], "gradients"),
        "done by the network",
    )


def _costs(looked: _Looked, told: _Told, name: str, num_supervisors: int) -> list[Figure]:
    """What nodes take of their machine."""
    maps = sum(len(message.map) for slot in told.slots for message in slot.messages)
    per_slot = looked.seconds / looked.slots / 1000
    # Each comes to a node once from whoever made it, and a miner sends its own to all.
    kilobytes = Sample([rate * per_slot for rate in looked.rates], "kB")
    memory = Sample([pss / 1e9 for pss in looked.pss], "GB")
    supervisor, total = max(looked.cpu[:num_supervisors]), sum(memory.values)
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
    chosen = [_NETWORKS[one] for one in sys.argv[1:]] or _NETWORKS.values()
    for figure in (figure for run in chosen for figure in run(FULL)):
        print(figure.name)
        print(f"    measured   {figure.measured}")
        if figure.against is not None:
            print(f"    against    {figure.against}   {figure.against_name}")
        verdict = "reached" if figure.reached else "MISSED"
        print(f"    asked for  {figure.target}: {figure.value:.4g}, {verdict}")
