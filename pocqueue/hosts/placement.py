"""Which node gets a job: a function from values to a value, or to the reason why none does.

A node is asked for what the job needs (kind, GPUs that are free, their memory), and a stranger's node does no
work but its test job. A job that a node has called failed goes to somebody else's, if there is one that can. Among those that can, the order is: not one that has lost this job before; the better
reputation; the less loaded; the wallet with less open work; then by chance, which a hash stands in for.

Of the work that nodes without a reputation have open, one wallet, or one network address, has a quarter at most as
soon as there are others: two hundred machines that appear at once cannot take all of it.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
    lost_it: bool = False  #: it had this job before, and lost it or failed
    is_failers: bool = False  #: its wallet had this job before, and called it failed
    refused_it: bool = False  #: it had this job before, and did not want it

    @property
    def slots(self) -> int:
        """Jobs that it does at a time: one a GPU; those without a key do one."""
        return 1 if self.protocol < 2 else max(1, len(self.gpus))

    def gpus_for(self, need: Need) -> tuple[str, ...] | None:
        """Return the uuids of free GPUs for a job, the smallest that do; None: there are too few."""
        free = [
            gpu
            for gpu in self.gpus
            if gpu.uuid not in self.taken and (gpu.vram_mib or 0) >= need.vram_mib
        ]
        free.sort(key=lambda gpu: (gpu.vram_mib or 0, gpu.uuid))
        return tuple(gpu.uuid for gpu in free[: need.gpus]) if len(free) >= need.gpus else None


class Crowd:
    """The work that all connected nodes have open, by owner.

    Args:
        rows: wallet, network address, `is_known` and open attempts; of one node or of several together.
        has_wallets, has_addresses: the connected nodes have more than one.
    """

    def __init__(
        self,
        rows: Iterable[tuple[str, str, bool, int]],
        *,
        has_wallets: bool,
        has_addresses: bool,
    ) -> None:
        self._has_wallets, self._has_addresses = has_wallets, has_addresses
        self.of_wallet = Counter[str]()
        self._strangers_wallet, self._strangers_address = Counter[str](), Counter[str]()
        for wallet, address, is_known, num_open in rows:
            self.of_wallet[wallet] += num_open
            if not is_known:
                self._strangers_wallet[wallet] += num_open
                self._strangers_address[address] += num_open

    @classmethod
    def of(cls, nodes: Sequence[Candidate]) -> Crowd:
        """Return that of some nodes."""
        rows = [(node.wallet, node.address, node.is_known, node.num_open) for node in nodes]
        wallets, addresses = {row[0] for row in rows}, {row[1] for row in rows}
        return cls(rows, has_wallets=len(wallets) > 1, has_addresses=len(addresses) > 1)

    def has_room_for(self, node: Candidate) -> bool:
        """Say whether a node may get one more job, as far as strangers have a share."""
        most = max(1, int(STRANGERS_SHARE * (self._strangers_wallet.total() + 1)))
        return node.is_known or (
            (not self._has_wallets or self._strangers_wallet[node.wallet] < most)
            and (not self._has_addresses or self._strangers_address[node.address] < most)
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A node for a job, and which of its GPUs."""

    node_id: str
    gpu_uuids: tuple[str, ...]


def place(need: Need, nodes: Sequence[Candidate], crowd: Crowd | None = None) -> Place | str:
    """Choose a node.

    Args:
        need: what the job asks for.
        nodes: those that are connected, active and not paused; or some of them, by chance.
        crowd: of all of them; None: of these.

    Returns:
        Where it goes; or in one sentence why it waits.
    """
    if not nodes:
        return "No node is connected that takes jobs."

    def can(node: Candidate) -> bool:
        return _has_gpus(node, need)

    fit, of_all = nodes, crowd or Crowd.of(nodes)
    rules: list[tuple[Callable[[Candidate], bool], str]] = [
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
        (
            lambda node: not node.refused_it,
            "The nodes that could do it have refused it; its log says why.",
        ),
        (can, _wants(need)),
        (
            lambda node: node.num_open < node.slots and node.gpus_for(need) is not None,
            "All nodes that could do it are busy.",
        ),
        (
            lambda node: need.kind == "test" or of_all.has_room_for(node),
            "It waits for nodes with a reputation, or of other owners.",
        ),
    ]
    for rule, why in rules:
        fit = [node for node in fit if rule(node)]
        if not fit:
            return why
        if rule is can:
            # A failure is believed when somebody else sees it, too; one who is busy is waited for.
            fit = [node for node in fit if not node.is_failers] or fit
    best = min(
        fit,
        key=lambda node: (
            node.lost_it,
            -round(node.score, 1),
            node.num_open / node.slots,
            of_all.of_wallet[node.wallet],
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
