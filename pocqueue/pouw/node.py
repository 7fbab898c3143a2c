"""A node of the network of useful work, as programs use it: made, started, staked, mining, stopped."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocqueue.errors import NodeStateError
from pocqueue.pouw.blockchain import MLTask
from pocqueue.pouw.config import DEFAULT_HOST, DEFAULT_PORT, NodeConfig, place
from pocqueue.pouw.economics import NodeRole, Ticket
from pocqueue.pouw.errors import ConfigError, LinkError, PouwError
from pocqueue.pouw.health import NodeHealthMetrics
from pocqueue.pouw.packages import check_packages
from pocqueue.pouw.security import SecuritySystem

if TYPE_CHECKING:
    from pocqueue.pouw.flow.life import Life
    from pocqueue.pouw.flow.views import Views

__all__ = ["NodeConfig", "NodeHealthMetrics", "PoUWNode"]

_MINING_ROLES = frozenset({NodeRole.MINER, NodeRole.SUPERVISOR})

_log = logging.getLogger(__name__)


class PoUWNode:
    """A node. Its methods are for the event loop that `start` runs in.

    Args:
        node_id: its local name; who it is, its key says.
        role: what it does for the network.
        host, port: where it listens; what is not the default counts, here or in `config`.
        config: everything else.

    Raises:
        ConfigError: the arguments contradict each other, or one is not allowed.
        NodeDataError: its network is not known.
        PouwError: a package of the extra `pouw` is not installed.
    """

    def __init__(
        self,
        node_id: str,
        role: NodeRole,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        config: NodeConfig | None = None,
    ) -> None:
        try:
            check_packages()
            self.config = NodeConfig(node_id, role) if config is None else config
            _check_same("node_id", node_id, self.config.node_id)
            _check_same("role", role, self.config.role)
            self.config.host, self.config.port = place(self.config, host, port)
            self.security_system = (
                SecuritySystem(node_id) if self.config.enable_security_monitoring else None
            )
            from pocqueue.pouw.flow.life import genesis_of

            self._genesis = genesis_of(self.config.network)
        except PouwError as exc:
            _log.error("[%s] Failed to initialize node components: %s", node_id, exc)
            raise
        self._life: Life | None = None
        self._is_starting = False
        self._began = 0.0

    async def start(self) -> None:
        """Open the node's folder, listen, dial; return when it listens and has spent 3 s at most on first links.

        Raises:
            NodeStateError: it runs already, or its port is taken.
            NodeDataError: its folder is damaged, in use or another network's.
        """
        from pocqueue.pouw.flow.life import Life

        if self._life is not None or self._is_starting:
            raise NodeStateError(f"Node {self.config.node_id} runs already: stop it first.")
        life, self._is_starting = Life(self.config, self._genesis, self.security_system), True
        try:
            await life.start()
        except BaseException:
            await life.stop()
            raise
        finally:
            self._is_starting = False
        self._life, self._began = life, time.monotonic()
        _log.info(
            "[%s] %s of network %s, listens on port %d, account %s%s",
            *(self.config.node_id, self.config.role.value, self._genesis.name, self.port),
            self.get_status()["public_key"],
            "; coins of dev are worth nothing" if self._genesis.name == "dev" else "",
        )

    async def stop(self) -> None:
        """End mining, say goodbye, write what is to be written; may be called again."""
        life, self._life = self._life, None
        if life is not None:
            await life.stop()

    def stake_and_register(
        self, stake_amount: float, preferences: Mapping[str, Any] | None = None
    ) -> Ticket:
        """Order a ticket for the node's role; it is live once a block has it.

        Args:
            stake_amount: PAI, at most 6 decimals.
            preferences: JSON of at most 2 KiB; None: those of the configuration.

        Raises:
            TicketError: too little for the role, or more than the account has, what is on its way counted.
            NodeStateError: the node does not run.
        """
        chosen = self.config.preferences if preferences is None else dict(preferences)
        return self._running.tickets.take(stake_amount, chosen)

    def release_ticket(self) -> None:
        """Order that the node's ticket ends; its stake is free some blocks later.

        A member of a committee stays in office until another one is, so it should run until then.

        Raises:
            TicketError: no block has a ticket of this node.
            NodeStateError: the node does not run.
        """
        self._running.tickets.release()

    async def connect_to_peer(self, peer_host: str, peer_port: int) -> bool:
        """Link to a node; it is dialled again by itself if that ever worked. False: it cannot be reached."""
        try:
            await self._running.network.connect(peer_host, peer_port)
        except LinkError as exc:
            _log.error(
                "[%s] Failed to connect to peer %s:%d: %s",
                *(self.config.node_id, peer_host, peer_port, exc),
            )
            return False
        return True

    async def disconnect_peer(self, peer: str) -> bool:
        """End a link and keep that node away for 10 minutes.

        Args:
            peer: its public key in hex, or its node_id.
        """
        is_key = len(peer) == 66 and all(digit in "0123456789abcdef" for digit in peer)
        return await self._running.network.disconnect(bytes.fromhex(peer) if is_key else peer)

    async def add_dataset(self, path: str | Path, *, is_test: bool = False) -> str:
        """Take a copy of a file of data, which other nodes get from this one while it runs.

        Args:
            path: a safetensors file with x_train, y_train, x_val and y_val (docs/pouw.md has its format).
            is_test: it has x_test and y_test instead, and nobody gets it before the training is over.

        Returns:
            What a task names it by: its `dataset_hash`, or `test_hash` of its `model_requirements`.

        Raises:
            DataError: it is no such file; says what is wrong with it.
        """
        return await self._running.datasets.add(Path(path), is_hidden=is_test)

    async def submit_task(self, task: MLTask, fee: float) -> bool:
        """Order a task; True: its transaction is in our mempool and a peer was told.

        Args:
            fee: PAI for the training, beside the reward.
        """
        try:
            await self.order_task(task, fee)
        except PouwError as exc:
            _log.error("[%s] Task %s was not submitted: %s", self.config.node_id, task.task_id, exc)
            return False
        return True

    async def order_task(self, task: MLTask, fee: float) -> str:
        """Order a task as `submit_task` does; return its id, by which `views.task` knows it.

        Raises:
            PouwError: it was not submitted; says why.
        """
        return (await self._running.tasks.submit(task, fee)).hex()

    async def start_mining(self) -> None:
        """Mine as soon as the ticket is live. Without a ticket of a role that may mine this says so and does nothing."""
        life = self._running
        reason = None
        if self.config.role not in _MINING_ROLES:
            reason = f"a {self.config.role.value} does not mine; a miner and a supervisor do"
        elif life.tickets.current is None:
            reason = "it has no ticket; stake_and_register takes one"
        if reason is not None:
            _log.warning("[%s] Node is not configured for mining: %s", self.config.node_id, reason)
            return
        life.miner.is_on = True

    def get_status(self) -> dict[str, Any]:
        """Return how the node stands; a copy."""
        alerts = self.security_system.num_alerts if self.security_system else 0
        status: dict[str, Any] = {
            "node_id": self.config.node_id,
            "role": self.config.role.value,
            "network_role": self.config.role.value,
            "is_running": self._life is not None,
            "is_mining": False,
            "is_training": False,
            "blockchain_height": 0,
            "mempool_size": 0,
            "peer_count": 0,
            "current_task": None,
            "uptime": 0.0,
            "staking_ticket": None,
            "security_alerts": alerts,
            "stats": {
                **{"blocks_mined": 0, "tasks_completed": 0, "rewards_earned": 0.0},
                **{"security_alerts": alerts, "network_messages": 0},
            },
            "anchor_height": 0,
            "network": self._genesis.name,
            "slot": 0,
            "turn": 0,
            "epoch": None,
            "task_name": None,
            "committee": [],
            "public_key": None,
        }
        if self._life is not None:
            said = self._life.views.status()
            status["stats"] |= said.pop("stats")
            status |= said | {"uptime": time.monotonic() - self._began}
        return copy.deepcopy(status)

    def get_health_metrics(self) -> NodeHealthMetrics:
        """Return how healthy the node and its machine are."""
        if self._life is None:
            return NodeHealthMetrics(
                self.config.node_id, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, "stopped"
            )
        return self._life.views.health()

    def get_economic_status(self) -> dict[str, Any]:
        """Return what the node owns, has at stake and has earned since it was started, in PAI."""
        if self._life is None:
            return {
                **{"staked": False, "stake_amount": 0.0, "role": self.config.role.value},
                **{"reputation": 0.5, "rewards_earned": 0.0, "balance": 0.0, "pending": 0.0},
            }
        return self._life.views.economics()

    @property
    def ticket(self) -> Ticket | None:
        """The ticket of its role, live or on its way."""
        return self._running.tickets.current

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._running.network.port

    @property
    def views(self) -> Views:
        """What else there is to see of a node that runs (`flow.views.Views`)."""
        return self._running.views

    @property
    def _running(self) -> Life:
        if self._life is None:
            raise NodeStateError(f"Node {self.config.node_id} does not run: start it first.")
        return self._life


def _check_same(name: str, given: object, configured: object) -> None:
    if given != configured:
        raise ConfigError(name, given, f"the same as in config, where it is {configured!r}")
