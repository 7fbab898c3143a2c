"""A committee of several in this process: chain, slots, agreement and sync are real, links are not, and can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from msgspec.structs import replace

from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.records import (
    MINER,
    OFFICE,
    SUPERVISOR,
    Office,
    TicketRecord,
    committee_key,
    live_key,
    ticket_key,
)
from pocqueue.pouw.chain.state import Draft, MemoryTable, State
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.config import NodeConfig
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import BadEncoding, LinkError, PeerFault
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.committee import CommitteeDuty
from pocqueue.pouw.flow.core import Core, Tasks
from pocqueue.pouw.flow.hearing import KINDS, Hearing
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.noise import Noises
from pocqueue.pouw.flow.slot_sync import SlotSync
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.sync import Sync
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.evidence import TwoProposals, TwoVotes
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.requests import SlotsRequest
from pocqueue.pouw.wire.slots import Certificate, SlotRecord
from tests.pouw.blocks import GENESIS
from tests.pouw.flow.committees import Dealt, dealt
from tests.pouw.support import account, group_key, key
from tests.support.waiting import PATIENCE_S

NAMES = ("first", "second", "third", "fourth")


def office_genesis(*miners: str) -> tuple[Genesis, Dealt]:
    """Return a network that begins with the four in office, and with miners."""
    accounts = [account(name) for name in NAMES]
    tickets = [bytes([place]) * 32 for place in range(len(NAMES))]
    found = dealt(accounts, tickets)
    genesis = replace(GENESIS, name="office")
    draft = Draft(State(MemoryTable(), ZERO))
    for entry, value in genesis.state.diff.items():
        draft.put(entry, value)
    for role, names in ((SUPERVISOR, NAMES), (MINER, miners)):
        for place, name in enumerate(names):
            group = group_key(name).public_key if role == SUPERVISOR else None
            ticket = bytes([16 * role + place]) * 32 if role != SUPERVISOR else tickets[place]
            who = account(name)
            record = TicketRecord(who, role, 100_000_000, b"", "", group, height=0)
            draft.put(ticket_key(ticket), record)
            draft.put(live_key(role, who), ticket)
    draft.put(committee_key(0), found.committee)
    draft.put(OFFICE, Office(0, tickets[0]))
    genesis.__dict__["state"] = draft.seal()
    return genesis, found


class Hub:
    """What is pushed comes to all that are linked, in order; who is asked answers."""

    def __init__(self) -> None:
        self.members: dict[bytes, Member] = {}
        #: Pairs that have no link.
        self.cut: set[frozenset[bytes]] = set()
        #: Says of what is pushed whether it comes: sender, receiver, kind.
        self.passes: Callable[[bytes, bytes, Kind], bool] = lambda _a, _b, _kind: True
        #: What was held against whom.
        self.charged: list[str] = []
        #: All that was said.
        self.said: list[tuple[bytes, Kind, bytes]] = []

    def linked(self, who: bytes) -> list[bytes]:
        """Return with whom somebody has a link."""
        return [one for one in self.members if one != who and frozenset((one, who)) not in self.cut]

    def send(self, source: bytes, to: bytes, kind: Kind, body: bytes) -> None:
        """Let something come to one member."""
        if self.passes(source, to, kind):
            self.members[to].inbox.put_nowait((source, kind, body))


class _Links:
    """The links of one member; see `Network`."""

    def __init__(self, hub: Hub, who: bytes) -> None:
        self._hub, self._who = hub, who
        self.config = SimpleNamespace(bootstrap=())

    @property
    def peers(self) -> list[PeerInfo]:
        """Return those that it is linked to."""
        return [_peer(one) for one in self._hub.linked(self._who)]

    def push(self, kind: Kind, body: bytes) -> int:
        """Send to all."""
        self._hub.said.append((self._who, kind, body))
        linked = self._hub.linked(self._who)
        for one in linked:
            self._hub.send(self._who, one, kind, body)
        return len(linked)

    def tell(self, kind: Kind, body: bytes) -> None:
        """Everybody asks for what is told here."""
        self.push(kind, body)

    publish = tell

    def announce(self, kind: Kind, *ids: bytes) -> int:
        """Nobody wants what is announced here."""
        return 0

    def charge(self, who: bytes, points: int, reason: str) -> None:
        """Note it."""
        self._hub.charged.append(reason)

    async def request(self, who: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0) -> bytes:
        """Ask another member."""
        if who not in self._hub.linked(self._who):
            raise LinkError("it has no link")
        asked = self._hub.members[who]
        if kind is Kind.STATUS:
            return encode(asked.sync.status())
        if kind is Kind.SLOTS:
            return encode(await asked.slot_sync.slots(decode(body, SlotsRequest)))
        raise LinkError("nobody answers that")


class Member:
    """One member's node. Made by `member`."""

    core: Core
    store: SlotStore
    slots: SlotFlow
    slot_sync: SlotSync
    sync: Sync
    hearing: Hearing
    duty: CommitteeDuty

    def __init__(self, hub: Hub, who: bytes) -> None:
        self.hub, self.account = hub, who
        #: What shows that somebody has contradicted himself.
        self.faults: list[TwoVotes | TwoProposals] = []
        self.inbox: asyncio.Queue[tuple[bytes, Kind, bytes]] = asyncio.Queue()

    @property
    def turn(self) -> int:
        """Return the turn that is open."""
        return self.slots.next_turn

    async def take(self) -> None:
        """Take what comes."""
        while True:
            source, kind, body = await self.inbox.get()
            with contextlib.suppress(BadEncoding):
                await self.receive(source, kind, body)

    async def receive(self, source: bytes, kind: Kind, body: bytes) -> bool:
        """Take one thing, as `Life.receive`."""
        try:
            if kind in KINDS:
                return await self.hearing.receive(_peer(source), kind, body)
            if kind is Kind.RECORD:
                return await self.slots.receive_record(_peer(source), body)
            return await self.slots.receive_message(_peer(source), body)
        except PeerFault as fault:
            self.hub.charged.append(str(fault))
            return False

    def certificates(self) -> list[Certificate]:
        """Return all certificates, the oldest first."""
        found = [one.signed.certificate for one in self.store.last(1000)]
        return sorted(found, key=lambda one: one.turn)


@contextlib.asynccontextmanager
async def member(
    hub: Hub,
    genesis: Genesis,
    committee: Dealt,
    name: str,
    folder: Path | None = None,
    *,
    is_on: bool = True,
) -> AsyncIterator[Member]:
    """Run a member's node.

    Args:
        hub: its links.
        genesis, committee: `office_genesis`.
        name: whose node.
        folder: for its files; None: in memory.
        is_on: it does its duty.
    """
    one = Member(hub, account(name))

    async def is_over(task: bytes, record: object) -> bool:
        return False

    async def look(history: object) -> None:
        return None

    closings: Any = SimpleNamespace(is_over=is_over, look=look)
    async with contextlib.AsyncExitStack() as stack:
        chain_store = stack.enter_context(ChainStore(folder, genesis))
        one.store = stack.enter_context(SlotStore(folder, genesis.network))
        one.core = Core(
            config=NodeConfig(name, NodeRole.SUPERVISOR),
            genesis=genesis,
            key=key(name),
            account=account(name),
            chain=Chain(genesis, chain_store),
            mempool=Mempool(genesis),
            trainer=cast(Any, None),
            security=None,
            network=cast(Any, _Links(hub, one.account)),
        )
        stack.callback(one.core.thread.shutdown)
        one.slots = SlotFlow(
            one.core, one.store, lambda peer: one.sync.wish(peer), lambda: blocks.wish_anchor()
        )
        stack.callback(one.slots.close)
        one.slot_sync = SlotSync(one.core, one.slots, one.store)
        dealer = Dealer(key(name), genesis.network)
        noises = Noises(one.core, one.slots, one.store, group_key(name), dealer)
        blocks = BlockFlow(
            *(one.core, one.slots, one.slot_sync, lambda _: None),
            *(lambda peer: one.sync.wish(peer), noises),
        )
        one.sync = Sync(one.core, blocks, one.slots, one.slot_sync)
        one.hearing = Hearing(one.core, one.slots, lambda peer: one.sync.wish(peer))
        tasks = Tasks(name)
        stack.push_async_callback(tasks.close)
        one.duty = CommitteeDuty(
            *(one.core, one.slots, blocks, one.store, closings),
            Matching(one.core, one.slots, one.store),
            *(one.hearing, tasks, committee.seat(one.account), one.faults.append),
        )
        await one.slots.open()
        one.core.is_current.set()
        hub.members[one.account] = one
        stack.callback(hub.members.pop, one.account)
        tasks.keep(one.take)
        tasks.keep(one.sync.run)
        if is_on:
            tasks.keep(one.duty.run_slots)
        yield one


@contextlib.asynccontextmanager
async def four(**fields: Any) -> AsyncIterator[tuple[Hub, list[Member]]]:
    """Run all four members."""
    hub, (genesis, committee) = Hub(), office_genesis()
    async with contextlib.AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(member(hub, genesis, committee, name, **fields))
            for name in NAMES
        ]
        yield hub, found


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something; fail if it does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.01)


def _peer(who: bytes) -> PeerInfo:
    return PeerInfo(who, who.hex()[:8], "supervisor", "127.0.0.1", 1, None, True, 0.0)


def record_of(hub: Hub, turn: int) -> SlotRecord:
    """Return a turn's record as it was pushed."""
    records = [decode(body, SlotRecord) for _, kind, body in hub.said if kind is Kind.RECORD]
    return next(one for one in records if one.signed.certificate.turn == turn)
