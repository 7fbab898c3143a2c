"""A node from its start to its stop: what it is made of, in which order that opens and closes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import AsyncExitStack
from pathlib import Path

from pocqueue.errors import NodeStateError
from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.chain import Chain, Change
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.signatures import account_of
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.config import DEFAULT_PORT, NodeConfig
from pocqueue.pouw.data.store import DataStore
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import BadEncoding, ChainError, LinkError, PeerFault
from pocqueue.pouw.flow.accusations import Accusations
from pocqueue.pouw.flow.addresses import staked
from pocqueue.pouw.flow.audit import Audits
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.clients import TaskDesk
from pocqueue.pouw.flow.closing import Closings
from pocqueue.pouw.flow.committee import CommitteeDuty
from pocqueue.pouw.flow.core import Core, Tasks, now_ms
from pocqueue.pouw.flow.datasets import Datasets
from pocqueue.pouw.flow.evaluation import Evaluation
from pocqueue.pouw.flow.gaps import Gaps
from pocqueue.pouw.flow.hearing import Hearing
from pocqueue.pouw.flow.key_generation import KeyGenerationDuty, Seats
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.mining import Mining
from pocqueue.pouw.flow.noise import Noises
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.flow.rewards import rewards_of
from pocqueue.pouw.flow.slot_sync import SlotSync
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.statements import Statements
from pocqueue.pouw.flow.sync import Sync
from pocqueue.pouw.flow.tickets import TicketDesk
from pocqueue.pouw.flow.views import Views
from pocqueue.pouw.flow.watch import Watch
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.network import Network
from pocqueue.pouw.p2p.service import NetworkConfig, PeerInfo
from pocqueue.pouw.security import SecuritySystem
from pocqueue.pouw.slots import bls
from pocqueue.pouw.slots.history import Advance, SlotHistory
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.training.trainer import Trainer
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.evidence import Fault, TwoProposals, TwoVotes
from pocqueue.pouw.wire.hashes import tagged
from pocqueue.pouw.wire.requests import BlocksRequest, ChunkRequest, SlotsRequest, WeightsRequest

#: `start` waits this long for first links.
_FIRST_LINKS_S = 3.0
#: A peer waits this long for the chain of those that it is linked to then.
_CHAIN_S = 60.0
_POINTS = 20
#: Who looks at messages that win nothing.
_AUDITORS = frozenset({NodeRole.SUPERVISOR, NodeRole.VERIFIER})
#: On `dev`, for whoever names none and is not that node itself.
_DEV_BOOTSTRAP = ("127.0.0.1", DEFAULT_PORT)

_log = logging.getLogger(__name__)


class Life:
    """A node that runs. `start` and `stop` once each.

    Args:
        config: of the node.
        genesis: of its network.
        security: hears what is noticed; None: nobody does.
    """

    def __init__(
        self, config: NodeConfig, genesis: Genesis, security: SecuritySystem | None
    ) -> None:
        self._config, self._genesis, self._security = config, genesis, security
        self._stack = AsyncExitStack()
        self._tasks = Tasks(f"[{config.node_id}]")

    async def start(self) -> None:
        """Open everything, inside first; see `PoUWNode.start`."""
        config, stack = self._config, self._stack
        key = config.key or SigningKey.generate()
        store = stack.enter_context(
            await asyncio.to_thread(ChainStore, config.data_dir, self._genesis)
        )
        slot_store = stack.enter_context(
            await asyncio.to_thread(SlotStore, config.data_dir, self._genesis.network)
        )
        trainer = stack.enter_context(Trainer.shared())
        self.network = Network(key, self._genesis.network, self._network_config(config.port), self)
        core = self._core = Core(
            config=config,
            genesis=self._genesis,
            key=key,
            account=account_of(key),
            chain=await asyncio.to_thread(Chain, self._genesis, store),
            mempool=Mempool(self._genesis),
            trainer=trainer,
            security=self._security,
            network=self.network,
        )
        stack.callback(core.thread.shutdown)
        data_store = stack.enter_context(
            await asyncio.to_thread(DataStore, config.data_dir, config.data_mib * 2**20)
        )
        self.datasets = Datasets(core, data_store)
        core.has_data, core.data_problem = self.datasets.has, self.datasets.problem
        stack.callback(self.datasets.close)
        # Known to nobody but the key's owner, and the same after a restart without a file of its own.
        secret = bls.SecretKey.from_seed(
            bytes.fromhex(key.sign(tagged("bls-seed", self._genesis.network)))
        )
        self._dealer = Dealer(key, self._genesis.network)
        find_seat = Seats(core, secret, self._dealer)
        self._orders = Orders(core)
        self._key_generation = KeyGenerationDuty(core, self._orders, self._dealer)
        self._statements = Statements(core, self._tasks, find_seat)
        self._slots = SlotFlow(core, slot_store, self._missing, self._anchored)
        stack.callback(self._slots.close)
        self._slot_sync = SlotSync(core, self._slots, slot_store)
        self._slots.complete = self._slot_sync.complete
        self._noises = Noises(core, self._slots, slot_store, secret, self._dealer)
        core.is_shown = self._noises.is_shown
        self._blocks = BlockFlow(
            *(core, self._slots, self._slot_sync, self._changed, self._missing, self._noises)
        )
        self._sync = Sync(core, self._blocks, self._slots, self._slot_sync)
        matching = Matching(core, self._slots, slot_store)
        self.miner = Mining(core, self._slots, self._blocks, slot_store, matching, self._noises)
        accusations = Accusations(
            core, self._tasks, self._statements, self._orders, self._blocks, self._slot_sync
        )
        self._statements.judges[Fault] = accusations.judge
        self._slots.on_contradiction = accusations.show
        self._blocks.on_cheat = accusations.accuse
        audits = self._audits = Audits(core, self._blocks, accusations.accuse)

        async def choose(history: SlotHistory, advance: Advance) -> None:
            work = self._slots.with_messages
            audits.add(await work(history, audits.choose, history.task, advance))

        async def on_advance(history: SlotHistory, advance: Advance) -> None:
            self.network.turn_is_over()
            await self.miner.on_record(history, advance.slot.record)
            if config.role in _AUDITORS:  # the next slot does not wait for that
                self._tasks.start(choose(history, advance))

        self._slots.on_advance = on_advance
        gaps = Gaps(core, self._slots, slot_store)
        closings = Closings(
            core, self._slots, slot_store, self._orders, self._statements, gaps.fill
        )
        self._hearing = Hearing(core, self._slots, self._missing)
        self.watch = Watch(core, self._slots)
        self._hearing.on_word = self.watch.heard

        def on_fault(fault: TwoVotes | TwoProposals) -> None:
            self.watch.contradicted(fault)
            accusations.show(fault)

        duty = CommitteeDuty(
            *(core, self._slots, self._blocks, slot_store, closings, matching),
            *(self._hearing, self._tasks, find_seat, on_fault),
        )
        self.tickets = TicketDesk(core, self._orders, secret, self._tasks)
        self.tasks = TaskDesk(core, self._orders, self.datasets)
        self._evaluation = Evaluation(core, self._slot_sync, self.datasets, self._orders)
        self.views = Views(
            *(core, self._slots, self._blocks, self._orders, self.miner, closings, matching),
            *(self.tickets, self.watch),
        )
        await self._slots.open()
        stack.push_async_callback(self._tasks.close)
        if self._security is not None:
            stack.push_async_callback(self._security.close)
        await self._listen()
        stack.push_async_callback(self.network.stop)
        self._run(duty, closings)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LINKS_S):
                await self.network.first_dials(_FIRST_LINKS_S)
                if self.network.peers:
                    # What is signed from now on has numbers that go on from what the chain has of this account.
                    await core.is_current.wait()
        if config.role is NodeRole.PEER and self.network.peers:
            # A client comes for a few minutes with an account that has a past; the others' coins have time.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHAIN_S):
                    await core.is_current.wait()
        await self.tickets.ask_faucet()

    async def stop(self) -> None:
        """Close everything, outside first; may be called again."""
        await self._stack.aclose()

    async def receive(
        self, peer: PeerInfo, kind: Kind, body: bytes, identifier: bytes = b""
    ) -> bool:
        """See `p2p.service.Service`."""
        self._core.counts.network_messages += 1
        match kind:
            case Kind.TX:
                return await self._orders.receive(peer, body)
            case Kind.BLOCK:
                self._blocks.receive(peer, body, identifier)
                return False
            case Kind.ITERATION:
                return await self._slots.receive_message(peer, body)
            case Kind.RECORD:
                return await self._slots.receive_record(peer, body)
            case Kind.PROPOSAL | Kind.VOTE | Kind.BEACON:
                return await self._hearing.receive(peer, kind, body)
            case Kind.NOISE:
                return await self._noises.receive(peer, body)
            case Kind.MOTION:
                return await self._statements.receive_motion(peer, body)
            case Kind.SHARE:
                return self._statements.receive_share(peer, body)
            case _:
                return False

    async def serve(self, peer: PeerInfo, kind: Kind, body: bytes) -> bytes:
        """See `p2p.service.Service`."""
        try:
            match kind:
                case Kind.STATUS:
                    return encode(self._sync.status())
                case Kind.BLOCKS:
                    return encode(await self._sync.blocks(decode(body, BlocksRequest)))
                case Kind.SLOTS:
                    return encode(await self._slot_sync.slots(decode(body, SlotsRequest)))
                case Kind.THETA:
                    return encode(await self._slot_sync.piece(decode(body, WeightsRequest)))
                case Kind.CHUNK:
                    return await self.datasets.answer(decode(body, ChunkRequest))
                case _:
                    raise LinkError("nobody answers that")
        except BadEncoding as exc:
            raise PeerFault(_POINTS, str(exc)) from None

    def has(self, kind: Kind, identifier: bytes) -> bool:
        """See `p2p.service.Service`."""
        if kind is Kind.TX:
            return identifier in self._core.mempool
        return self._core.chain.knows(identifier)

    async def body(self, kind: Kind, identifier: bytes) -> bytes | None:
        """See `p2p.service.Service`."""
        core = self._core
        if kind is Kind.TX:
            transaction = core.mempool.get(identifier)
            return None if transaction is None else encode(transaction)
        return await core.in_chain(core.chain.bytes_of, identifier)

    def given(self, kind: Kind, identifier: bytes) -> None:
        """See `p2p.service.Service`."""
        if kind is Kind.TX:
            self._orders.given(identifier)

    def linked(self, peer: PeerInfo) -> None:
        """See `p2p.service.Service`."""
        _log.info("[%s] Linked to %s", self._config.node_id, peer.node_id)
        self._sync.wish(peer)
        waiting = [transaction.id for transaction in self._core.mempool]
        self.network.announce(Kind.TX, *waiting, to=peer.account)

    def unlinked(self, peer: PeerInfo, reason: str) -> None:
        """See `p2p.service.Service`."""
        _log.info("[%s] Link to %s ended: %s", self._config.node_id, peer.node_id, reason)

    def charged(self, peer: PeerInfo, points: int, reason: str, is_banned: bool) -> None:
        """See `p2p.service.Service`."""
        if reason.startswith("flood:"):
            self._core.alert("flood", f"{peer.node_id}: {reason}", source=peer.account)

    async def _listen(self) -> None:
        """Listen; a peer whose port is nobody's choice takes another one if that is taken."""
        config = self._config
        try:
            await self.network.start()
        except LinkError as exc:
            if config.role is not NodeRole.PEER or config.port != DEFAULT_PORT:
                raise NodeStateError(f"Node {config.node_id} cannot start: {exc}") from None
            other = self._network_config(port=0)
            self.network = Network(self._core.key, self._genesis.network, other, self)
            self._core.network = self.network
            await self.network.start()
            _log.info(
                "[%s] Port %d is taken; it listens on %d.",
                *(config.node_id, DEFAULT_PORT, self.network.port),
            )

    def _network_config(self, port: int) -> NetworkConfig:
        config = self._config
        bootstrap = list(config.bootstrap_peers)
        if not bootstrap and self._genesis.name == "dev" and port != DEFAULT_PORT:
            bootstrap = [_DEV_BOOTSTRAP]
        return NetworkConfig(
            node_id=config.node_id,
            role=config.role.value,
            host=config.host,
            port=port,
            max_peers=config.max_peers,
            bootstrap=bootstrap,
            folder=config.data_dir,
            bans=config.enable_attack_mitigation,
        )

    def _run(self, duty: CommitteeDuty, closings: Closings) -> None:
        loops = [
            *(self._orders.run, self._blocks.run, self._sync.run, self.miner.run),
            *(self.datasets.run, self._evaluation.run),
            self.watch.run,
        ]
        if self._config.role in _AUDITORS:
            loops.append(self._audits.run)
        if self._config.role is NodeRole.SUPERVISOR and self._config.enable_advanced_features:
            loops += [duty.run_slots, duty.run_founding, self._key_generation.run, closings.run]
        for loop in loops:
            self._tasks.keep(loop)

    def _missing(self, peer: PeerInfo) -> None:
        self._sync.wish(peer)

    def _anchored(self) -> None:
        self._blocks.wish_anchor()

    def _changed(self, change: Change) -> None:
        """Hear what happened to the chain."""
        core = self._core
        self._orders.changed(change.disconnected, change.connected)
        self._tasks.start(core.in_chain(self._renew_mempool, change))
        if change.disconnected:
            self._tasks.start(self._slots.forget_others())
        self._tasks.start(core.in_chain(self._count_rewards, change))
        self._tasks.start(self._prefer())
        offices = (point.state.committee_in_office for point in (core.chain.tip, core.chain.anchor))
        core.network.set_members(one for office in offices if office for one in office.members)
        core.chain_changed.ring()

    def _count_rewards(self, change: Change) -> None:
        core = self._core
        for sign, blocks in ((1, change.connected), (-1, change.disconnected)):
            for block in blocks:
                try:
                    before = core.chain.state_at(block.header.parent)
                    after = core.chain.state_at(block.id)
                except ChainError:  # the first one, or a branch that is forgotten by now
                    before = after = core.chain.tip.state
                earned = rewards_of(core.genesis, before, after, block, core.account)
                core.counts.rewards += sign * earned

    async def _prefer(self) -> None:
        """Keep links to some of the nodes that have tickets."""
        core = self._core
        state, is_local = core.chain.tip.state, core.network.is_local
        core.network.prefer(await core.in_chain(lambda: staked(state, is_local=is_local)))

    def _renew_mempool(self, change: Change) -> None:
        core = self._core
        for block in change.connected:
            core.mempool.remove(block.transactions)
        for block in change.disconnected:
            core.mempool.readd(block.transactions, core.chain.tip.state, now_ms())
        core.mempool.drop_steps(core.chain.tip.height + 1)
        core.mempool.retry(core.chain.tip.state, now_ms())


def genesis_of(network: str) -> Genesis:
    """Return the network of a configuration: `dev`, or that of a file.

    Raises:
        NodeDataError: the file cannot be read, or describes no network.
    """
    return Genesis.dev() if network == "dev" else Genesis.load(Path(network))
