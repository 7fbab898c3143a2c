"""What there is to see of a running node, as plain values. Coins are in PAI here."""

from __future__ import annotations

import datetime
import statistics
import time
from typing import Any

from pocqueue.pouw.chain.amounts import pai
from pocqueue.pouw.chain.reputation import reputation
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.chain.tasks import MILLION
from pocqueue.pouw.errors import ChainError, InvalidBlock, TrainingError, UnknownHeight
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.closing import Closings
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.mining import Mining
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.flow.security_views import SecurityViews
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.task_views import TaskViews
from pocqueue.pouw.flow.tickets import TicketDesk
from pocqueue.pouw.flow.watch import Watch
from pocqueue.pouw.health import Bandwidth, Machine, NodeHealthMetrics
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.evidence import Fault, TwoMessages, TwoProposals, TwoVotes
from pocqueue.pouw.wire.slots import SlotRecord
from pocqueue.pouw.wire.transactions import ROLES, Evidence, Transaction


class Views:
    """Reads what a node's parts know."""

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        blocks: BlockFlow,
        orders: Orders,
        mining: Mining,
        closings: Closings,
        matching: Matching,
        tickets: TicketDesk,
        watch: Watch,
    ) -> None:
        self._core, self._slots, self._blocks = core, slots, blocks
        self._orders, self._mining, self._tickets = orders, mining, tickets
        self._closings = closings
        self._tasks = TaskViews(core, slots, closings, matching, orders)
        self.security = SecurityViews(core, slots, watch)
        self._machine = Machine() if core.config.enable_production_features else None
        self._bandwidth = Bandwidth()

    @property
    def accuracy(self) -> float | None:
        """Return the share of right answers of the common model, as this node's committee saw it last."""
        return self._closings.accuracy.get(self._slots.newest[0])

    def status(self) -> dict[str, Any]:
        """Return what `PoUWNode.get_status` says of a node that runs."""
        core, chain = self._core, self._core.chain
        task, slot, newest = self._slots.newest
        ticket = self._tickets.current
        committee = chain.tip.state.committee_in_office
        return {
            "is_mining": self._mining.is_on,
            "is_training": self._mining.is_training,
            "blockchain_height": chain.tip.height,
            "mempool_size": len(core.mempool),
            "peer_count": len(core.network.peers),
            "current_task": None if newest is None else task.hex(),
            "task_name": None if newest is None else core.genesis.task_name(task),
            "staking_ticket": None if ticket is None else ticket.ticket_id,
            "anchor_height": chain.anchor.height,
            "slot": slot,
            "turn": 0 if newest is None else newest.certificate.turn + 1,
            "epoch": None if committee is None else committee.epoch,
            "committee": [] if committee is None else [one.hex() for one in committee.members],
            "public_key": core.account.hex(),
            "stats": {
                "blocks_mined": core.counts.blocks_mined,
                "tasks_completed": self._tasks.ended()[0],
                "rewards_earned": pai(core.counts.rewards),
                "network_messages": core.counts.network_messages,
            },
        }

    def health(self) -> NodeHealthMetrics:
        """Return what `PoUWNode.get_health_metrics` says of a node that runs."""
        core = self._core
        pings = [peer.rtt_s for peer in core.network.peers if peer.rtt_s is not None]
        cpu, memory = (0.0, 0.0) if self._machine is None else self._machine.look()
        traffic = core.network.traffic
        heard_s = self._slots.heard_at
        is_isolated = not core.network.peers and bool(core.network.config.bootstrap)
        return NodeHealthMetrics(
            node_id=core.config.node_id,
            last_heartbeat=heard_s,
            response_time=statistics.median(pings) if pings else 0.0,
            success_rate=self._mining.certified.rate,
            task_completion_rate=self._completion(),
            bandwidth_utilization=self._bandwidth.rate(traffic.bytes_in + traffic.bytes_out),
            cpu_usage=cpu,
            memory_usage=memory,
            status="isolated" if is_isolated else "running",
        )

    def economics(self) -> dict[str, Any]:
        """Return what `PoUWNode.get_economic_status` says of a node that runs."""
        core, state = self._core, self._core.chain.tip.state
        stake = sum(ticket.stake for ticket in self._own_tickets(state).values())
        balance = state.account(core.account).balance
        return {
            "staked": stake > 0,
            "stake_amount": pai(stake),
            "role": core.config.role.value,
            "reputation": reputation(state, core.account) / MILLION,
            "rewards_earned": pai(core.counts.rewards),
            "balance": pai(balance),
            "pending": pai(self._orders.owned() - balance),
        }

    def peers(self) -> list[dict[str, Any]]:
        """Return the links."""
        now_s = time.time()
        return [
            {
                "node_id": peer.node_id,
                "role": peer.role,
                "host": peer.host,
                "port": peer.port,
                "account": peer.account.hex(),
                "rtt_s": peer.rtt_s,
                "outbound": peer.outbound,
                "age_s": now_s - peer.since,
            }
            for peer in self._core.network.peers
        ]

    async def account(self, account: str) -> dict[str, Any]:
        """Return what an account owns, by its public key in hex."""
        key = bytes.fromhex(account)
        state = self._core.chain.tip.state
        tickets = {
            ticket: record
            for role in range(len(ROLES) - 1)
            if (ticket := state.live_ticket(key, role)) and (record := state.ticket(ticket))
        }
        return {
            "account": account,
            "balance": pai(state.account(key).balance),
            "sequence": state.account(key).sequence,
            "next_sequence": self._orders.next_sequence(key),
            "usual_fee": self._orders.usual_fee,
            "staked": pai(sum(record.stake for record in tickets.values())),
            "tickets": [
                {
                    **{"id": ticket.hex(), "role": ROLES[record.role]},
                    **{"stake": pai(record.stake), "state": "live"},
                }
                for ticket, record in tickets.items()
            ],
        }

    async def pass_on(self, transaction: str) -> dict[str, Any]:
        """Take a signed transaction, its bytes in hex; return its bytes' length.

        Raises:
            InvalidTransaction: it is not good.
        """
        data = bytes.fromhex(transaction)
        await self._orders.take(data)
        return {"num_bytes": len(data)}

    async def transaction(self, identifier: str) -> dict[str, Any]:
        """Return in which of the newest blocks a transaction is, by its id in hex, None: in none, and why one of our own
        was given up."""
        sought = bytes.fromhex(identifier)
        return {
            "id": identifier,
            "height": await self._orders.height_of(sought),
            "reason": self._orders.why_given_up(sought),
        }

    async def tasks(self) -> list[dict[str, Any]]:
        """Return the clients' tasks, newest first."""
        return await self._tasks.tasks()

    async def task(self, identifier: str) -> dict[str, Any]:
        """Return a task by its id in hex, an order of this node also before a block has it (`TaskViews.task`)."""
        return await self._tasks.task(identifier)

    async def blocks(self, last: int) -> list[dict[str, Any]]:
        """Return the newest blocks in short, newest first."""
        core = self._core
        tip = core.chain.tip.height
        heights = range(tip, max(0, tip - last), -1)
        found = [await core.in_chain(core.chain.block_at, height) for height in heights]
        return [self._short(block) for block in found if block is not None]

    async def slots(self, last: int) -> list[dict[str, Any]]:
        """Return the newest slots of all tasks, newest first."""
        records = await self._slots.last(last)
        return [_slot(record) for record in records]

    async def block(self, height: int) -> dict[str, Any]:
        """Return a block, and what comes of each rule for it; its training is not done over.

        Raises:
            UnknownHeight: there is none.
        """
        block = await self._block(height)
        checks = await self._core.in_chain(lambda: list(self._core.chain.checks(block, now_ms())))
        shown = [{"rule": one.rule, "holds": one.is_kept, "what": one.finding} for one in checks]
        if isinstance(block.proof, Trained):
            shown.append(
                {"rule": "re-execution", "holds": None, "what": "`pocqueue pouw verify` does it."}
            )
        return self._whole(block, shown)

    async def verify_block(self, height: int) -> dict[str, Any]:
        """Check a block again, its training too.

        Raises:
            UnknownHeight: there is none.
        """
        found = await self.block(height)
        block = await self._block(height)
        if isinstance(block.proof, Trained):
            del found["checks"][-1]
            holds: bool | None = True
            try:
                what = await self._blocks.retrain(block)
            except InvalidBlock as exc:
                holds, what = False, str(exc)
            except (ChainError, TrainingError) as exc:
                holds, what = None, str(exc)
            found["checks"].append({"rule": "re-execution", "holds": holds, "what": what})
        found["is_valid"] = all(check["holds"] for check in found["checks"])
        return found

    async def _block(self, height: int) -> Block:
        block = await self._core.in_chain(self._core.chain.block_at, height)
        if block is None:
            raise UnknownHeight(height, self._core.chain.tip.height)
        return block

    def _short(self, block: Block) -> dict[str, Any]:
        header = block.header
        return {
            "height": header.height,
            "id": block.id.hex(),
            "state": header.state.hex(),
            "miner": header.miner.hex(),
            "slot": header.slot,
            "time": _iso(header.time_ms),
            "proof": self._proof(block),
            "num_transactions": len(block.transactions),
            "is_final": header.height <= self._core.chain.anchor.height,
        }

    def _whole(self, block: Block, checks: list[dict[str, Any]]) -> dict[str, Any]:
        header = block.header
        return {
            **self._short(block),
            "parent": header.parent.hex(),
            "target": header.target.hex(),
            "lane": header.lane,
            "task": header.task.hex(),
            "nonce": header.nonce.hex(),
            "transactions": [self._transaction(one) for one in block.transactions],
            "checks": checks,
            "is_valid": all(check["holds"] is not False for check in checks),
        }

    def _transaction(self, one: Transaction) -> dict[str, Any]:
        said = {
            "id": one.id.hex(),
            "kind": type(one.body).__name__,
            "sender": one.sender.hex(),
            "fee": pai(one.fee),
        }
        if isinstance(one.body, Evidence):
            said["evidence"] = type(one.body.fault).__name__
            said["accused"] = self._accused(one.body.fault).hex()
        return said

    def _accused(self, fault: Fault | TwoMessages | TwoVotes | TwoProposals) -> bytes:
        """Return whose account it is that evidence is about."""
        match fault:
            case Fault():
                return fault.miner
            case TwoMessages():
                return fault.first.miner
            case TwoVotes():
                epoch, member = fault.first.epoch, fault.first.member
            case TwoProposals():
                epoch, member = fault.first.certificate.epoch, fault.first.member
        committee = self._core.chain.tip.state.committee(epoch)
        return b"" if committee is None else committee.members[member]

    def _own_tickets(self, state: State) -> dict[bytes, Any]:
        found = {}
        for role in range(len(ROLES) - 1):
            ticket = state.live_ticket(self._core.account, role)
            if ticket is not None:
                found[ticket] = state.ticket(ticket)
        return found

    def _completion(self) -> float:
        settled, refunded = self._tasks.ended()
        return settled / (settled + refunded) if settled + refunded else 1.0

    def _proof(self, block: Block) -> str:
        if isinstance(block.proof, Trained):
            name = self._core.genesis.task_name(block.header.task)
            return f"trained: slot {block.header.slot} of task {name}"
        return "founding: plain hashes, as nobody could train yet"


def _slot(record: SlotRecord) -> dict[str, Any]:
    certificate = record.signed.certificate
    return {
        "turn": certificate.turn,
        "task": certificate.task.hex(),
        "slot": certificate.slot,
        "epoch": certificate.epoch,
        "ballot": certificate.ballot,
        "certificate": certificate.id.hex(),
        "messages": certificate.count,
        "theta": certificate.theta.hex(),
        "anchor": certificate.anchor.hex(),
        "anchor_height": certificate.anchor_height,
        "time": _iso(certificate.time_ms),
    }


def _iso(time_ms: int) -> str:
    moment = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")
