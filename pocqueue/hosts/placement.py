"""Which node gets a job: a function from values to a value, or to the reason why none does.

A node is asked for what the job needs (kind, GPUs that are free, their memory), and a stranger's node does no
work but its test job. Among those that can, the order is: not one that has lost this job before; the better
reputation; the less loaded; the wallet with less open work; then by chance, which a hash stands in for.

Of the work that nodes without a reputation have open, one wallet, or one network address, has a quarter at most as
soon as there are others: two hundred machines that appear at once cannot take all of it.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pocqueue.hosts.records import Gpu

#: Of the open work of nodes without a reputation, for one wallet or address.
STRANGERS_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks for."""

    job_id: str
    kind: str
    gpus: int = 0
    vram_mib: int = 0  #: on each
    only_node: str | None = None
    has_text: bool = True  #: it can be said in one `command`, for agents of protocol 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connected node that takes jobs now."""

    node_id: str
    wallet: str
    address: str  #: network address
    protocol: int
    kinds: tuple[str, ...]
    gpus: tuple[Gpu, ...]  #: the healthy ones
    taken: frozenset[str] = frozenset()  #: uuids of those that have a job
    num_open: int = 0  #: attempts that it has now
    proven: bool = True  #: the wallet's owner wants it
    score: float = 0.5  #: `Reputation.score` with this kind
    is_known: bool = False  #: `Reputation.is_known` with this kind
    lost_it: bool = False  #: it had this job before, and lost it
    refused_it: bool = False  #: it had this job before, and did not want it

    @property
    def slots(self) -> int:
        """Jobs that it does at a time: one a GPU; agents of protocol 1 do one."""
        return 1 if self.protocol == 1 else max(1, len(self.gpus))

    def gpus_for(self, need: Need) -> tuple[str, ...] | None:
        """Return the uuids of free GPUs for a job, the smallest that do; None: there are too few."""
        free = [
            gpu
            for gpu in self.gpus
            if gpu.uuid not in self.taken and (gpu.vram_mib or 0) >= need.vram_mib
        ]
        free.sort(key=lambda gpu: (gpu.vram_mib or 0, gpu.uuid))
        return tuple(gpu.uuid for gpu in free[: need.gpus]) if len(free) >= need.gpus else None


@dataclass(frozen=True, slots=True)
class Place:
    """A node for a job, and which of its GPUs."""

    node_id: str
    gpu_uuids: tuple[str, ...]


def place(need: Need, nodes: Sequence[Candidate]) -> Place | str:
    """Choose a node.

    Args:
        need: what the job asks for.
        nodes: those that are connected, active and not paused.

    Returns:
        Where it goes; or in one sentence why it waits.
    """
    if not nodes:
        return "No node is connected that takes jobs."
    fit = nodes
    for rule, why in (
        (
            lambda node: need.only_node in {None, node.node_id},
            "The node that it is for is not connected.",
        ),
        (
            lambda node: need.kind in node.kinds and (need.has_text or node.protocol > 1),
            f"No connected node takes jobs of kind {need.kind}.",
        ),
        (
            lambda node: node.proven or need.kind == "test",
            "Only nodes of wallets that have not signed in are connected.",
        ),
        (lambda node: not node.refused_it, "The nodes that could do it have refused it."),
        (lambda node: _has_gpus(node, need), _wants(need)),
        (
            lambda node: node.num_open < node.slots and node.gpus_for(need) is not None,
            "All nodes that could do it are busy.",
        ),
        (_within_share(need, nodes), "It waits for nodes with a reputation, or of other owners."),
    ):
        fit = [node for node in fit if rule(node)]
        if not fit:
            return why
    wallets = Counter[str]()
    for node in nodes:
        wallets[node.wallet] += node.num_open
    best = min(
        fit,
        key=lambda node: (
            node.lost_it,
            -round(node.score, 1),
            node.num_open / node.slots,
            wallets[node.wallet],
            zlib.crc32(f"{need.job_id} {node.node_id}".encode()),
            node.node_id,
        ),
    )
    uuids = best.gpus_for(need)
    assert uuids is not None
    return Place(best.node_id, uuids)


def _has_gpus(node: Candidate, need: Need) -> bool:
    large = [gpu for gpu in node.gpus if (gpu.vram_mib or 0) >= need.vram_mib]
    return len(large) >= need.gpus


def _wants(need: Need) -> str:
    memory = f" with {need.vram_mib:,} MiB each" if need.vram_mib else ""
    return f"No connected node has {need.gpus} healthy GPU{'s' * (need.gpus != 1)}{memory}."


def _within_share(need: Need, nodes: Sequence[Candidate]) -> Callable[[Candidate], bool]:
    """Return the rule that keeps a stranger's nodes from taking all the work of strangers."""
    if need.kind == "test":
        return lambda _: True
    strangers = [node for node in nodes if not node.is_known]
    num_open = sum(node.num_open for node in strangers)
    owners = {node.wallet for node in nodes}
    places = {node.address for node in nodes}
    by_wallet, by_address = Counter[str](), Counter[str]()
    for node in strangers:
        by_wallet[node.wallet] += node.num_open
        by_address[node.address] += node.num_open
    most = max(1, int(STRANGERS_SHARE * (num_open + 1)))

    def is_within(node: Candidate) -> bool:
        return node.is_known or (
            (len(owners) == 1 or by_wallet[node.wallet] < most)
            and (len(places) == 1 or by_address[node.address] < most)
        )

    return is_within
