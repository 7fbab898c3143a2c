"""Parts of one node in this process: chain, slots, blocks and sync are real, on files of their own; its peers are made up."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace

from pocqueue.pouw.chain.chain import Chain, Change
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.chain.records import SUPERVISOR
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.config import NodeConfig
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.noise import Noises
from pocqueue.pouw.flow.slot_sync import SlotSync
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.sync import Sync
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots.history import Checkpoint, SlotHistory
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.slots.weights import weights_hash
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.hashes import ZERO, merkle_root
from pocqueue.pouw.wire.requests import (
    PIECE_BYTES,
    Slot,
    Slots,
    SlotsRequest,
    Status,
    Weights,
    WeightsRequest,
)
from pocqueue.pouw.wire.slots import Certificate, SignedCertificate, SlotRecord
from pocqueue.pouw.wire.transactions import Faucet, Release
from tests.pouw.blocks import FILLER, GENESIS, founding_block, sent, trained
from tests.pouw.support import account, certify, group_key, key, ticket

PEER = PeerInfo(account("peer"), "peer", "miner", "127.0.0.1", 1, None, True, 0.0)
Answer = Callable[[bytes], bytes]


class Signed:
    """A task's slots as its committee signs them; nobody sends messages, so the weights stay.

    Args:
        task: its id; known at the genesis.
        group: whose key signs.
        turn: of slot 0.
    """

    def __init__(self, task: bytes = FILLER, group: str = "group", turn: int = 0) -> None:
        spec = spec_of(GENESIS, GENESIS.state, task)
        self.history = SlotHistory(spec, GENESIS.network)
        self.group, self.turn = group, turn
        self.slots: list[Slot] = []
        self.checkpoints: dict[int, Checkpoint] = {}

    def certified(self, **changed: Any) -> SlotRecord:
        """Return the record of the open slot, which stays open."""
        history = self.history
        fields: dict[str, Any] = {
            "network": GENESIS.network,
            "epoch": 0,
            "turn": self.turn + history.next_slot,
            "parent": ZERO if history.parent is None else history.parent.id,
            "task": history.task.id,
            "slot": history.next_slot,
            "ballot": 0,
            "previous": history.previous,
            "root": merkle_root([]),
            "count": 0,
            "theta": weights_hash(history.weights),
            "anchor": GENESIS.header_id,
            "anchor_height": 0,
            "time_ms": GENESIS.time_ms + history.next_slot,
        }
        return SlotRecord(certify(group_key(self.group), Certificate(**{**fields, **changed})), ())

    def go_on(self, num_slots: int = 1, **changed: Any) -> SlotRecord:
        """Certify some slots; return the last one's record."""
        for _ in range(num_slots):
            record = self.certified(**changed)
            advance = self.history.check(record)
            self.history.add(advance)
            self.slots.append(advance.slot)
            if advance.checkpoint is not None:
                self.checkpoints[self.history.next_slot] = advance.checkpoint
        return record

    def status(self, tip: bytes = GENESIS.header_id, **changed: Any) -> Status:
        """Return what a node says that has these slots."""
        signed = self.history.signed
        found = Status(
            tip, 0, GENESIS.header_id, 0, self.history.task.id, self.history.next_slot, signed
        )
        return replace(found, **changed)

    def answers(self) -> dict[Kind, Answer]:
        """Return what such a node answers."""

        def slots(body: bytes) -> bytes:
            first = decode(body, SlotsRequest).first
            return encode(Slots(tuple(self.slots[first : first + 64])))

        def theta(body: bytes) -> bytes:
            request = decode(body, WeightsRequest)
            found = self.checkpoints[request.slot - request.slot % LAP]
            return encode(piece(found, request.piece))

        return {Kind.SLOTS: slots, Kind.THETA: theta, Kind.STATUS: lambda _: encode(self.status())}


def piece(checkpoint: Checkpoint, number: int, **changed: Any) -> Weights:
    """Return a piece of weights as a node answers with it."""
    data = checkpoint.theta
    part = data[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
    return replace(Weights(checkpoint.slot, checkpoint.signed, len(data), part), **changed)


def replace_account(account: bytes) -> PeerInfo:
    """Return another peer."""
    return dataclasses.replace(PEER, account=account)


@dataclass
class MadeUpPeers:
    """The links of a node: what its peers answer, and what is held against them."""

    answers: dict[Kind, Answer] = field(default_factory=dict)
    peers: list[PeerInfo] = field(default_factory=lambda: [PEER])
    charged: list[tuple[bytes, str]] = field(default_factory=list)
    asked: list[tuple[bytes, Kind]] = field(default_factory=list)
    #: Ids of blocks that were sent to all.
    pushed: list[bytes] = field(default_factory=list)
    #: Where the node listens.
    listening: tuple[tuple[str, int], ...] = ()

    async def request(self, who: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0) -> bytes:
        """See `Network.request`."""
        self.asked.append((who, kind))
        if kind not in self.answers:
            raise LinkError("it does not answer")
        return self.answers[kind](body)

    def charge(self, who: bytes, points: int, reason: str) -> None:
        """See `Network.charge`."""
        self.charged.append((who, reason))

    def push(self, kind: Kind, body: bytes) -> int:
        """See `Network.push`."""
        return len(self.peers)

    def publish(self, kind: Kind, body: bytes) -> None:
        """See `Network.publish`."""

    def push_block(self, identifier: bytes, body: bytes) -> None:
        """See `Network.push_block`."""
        self.pushed.append(identifier)

    def announce(self, kind: Kind, *ids: bytes) -> int:
        """See `Network.announce`."""
        return len(self.peers)


@dataclass
class Parts:
    """What a node is made of here."""

    core: Core
    net: MadeUpPeers
    store: SlotStore
    slots: SlotFlow
    slot_sync: SlotSync
    blocks: BlockFlow
    sync: Sync
    noises: Noises
    missing: list[PeerInfo] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


@contextlib.asynccontextmanager
async def parts(folder: Path | None = None, *, is_founded: bool = True) -> AsyncIterator[Parts]:
    """Open a miner's node; `is_founded`: with block 1, so that "supervisor" is in office."""
    missing: list[PeerInfo] = []
    changes: list[Change] = []
    net = MadeUpPeers()
    with (
        ChainStore(folder, GENESIS) as chain_store,
        SlotStore(folder, GENESIS.network) as store,
        contextlib.ExitStack() as stack,
    ):
        core = Core(
            config=NodeConfig("node", NodeRole.MINER),
            genesis=GENESIS,
            key=key("node"),
            account=account("node"),
            chain=Chain(GENESIS, chain_store),
            mempool=Mempool(GENESIS),
            trainer=cast(Any, None),
            security=None,
            network=cast(Any, net),
        )
        stack.callback(core.thread.shutdown)
        if is_founded:
            core.chain.add(founding_block(), now_ms())
        slots = SlotFlow(core, store, missing.append, lambda: blocks.wish_anchor())
        stack.callback(slots.close)
        slot_sync = SlotSync(core, slots, store)
        noises = Noises(core, slots, store, group_key("node"), Dealer(core.key, GENESIS.network))
        blocks = BlockFlow(core, slots, slot_sync, changes.append, missing.append, noises)
        sync = Sync(core, blocks, slots, slot_sync)
        await slots.open()
        yield Parts(core, net, store, slots, slot_sync, blocks, sync, noises, missing, changes)


async def follow(node: Parts, signed: Signed) -> None:
    """Give a node what a committee has signed, slot after slot."""
    for slot in signed.slots[(await node.slots.history(signed.history.task.id)).next_slot :]:
        assert await node.slots.take(slot.record, slot.messages)


def forged(record: SlotRecord) -> SlotRecord:
    """Return a record that nobody has signed."""
    signed = SignedCertificate(record.signed.certificate, bytes(96), bytes(96))
    return replace(record, signed=signed)


async def succeeded(node: Parts) -> None:
    """Put "heir" into office in block 3: epoch 1."""
    chain = node.core.chain
    chain.add(
        trained(
            chain.tip,
            (
                sent("heir", 0, Faucet()),
                sent("heir", 1, ticket(SUPERVISOR, group="heir", of="heir")),
            ),
        ),
        now_ms(),
    )
    old = chain.tip.state.live_ticket(account("supervisor"), SUPERVISOR)
    assert old is not None
    chain.add(trained(chain.tip, (sent("supervisor", 2, Release(old)),), slot=19), now_ms())
    office = chain.tip.state.office
    assert office is not None
    assert office.epoch == 1
