"""The ports of a server that has both a chain node and pocqueue: whose each is, and who may reach it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Reach(enum.Enum):
    """From where a port may be reached."""

    PUBLIC = "from everywhere"
    LOOPBACK = "from the server itself"
    TLS = "behind TLS"


@dataclass(frozen=True, slots=True)
class PortUse:
    """One port and what it is for."""

    port: int
    role: str  #: ``node``: the chain node; else a role of pocqueue
    what: str
    reach: Reach
    programs: tuple[str, ...]  #: that listen on it where it is ours


_CONTAINER = ("docker-proxy", "rootlessport")
_POCQUEUE = ("pocqueue", "python", "python3", "uvicorn", "celery", *_CONTAINER)

#: All of them; docs/deploy.md shows this table.
PORTS = (
    PortUse(5000, "node", "p2p", Reach.PUBLIC, _CONTAINER),
    PortUse(8000, "node", "proxy", Reach.PUBLIC, _CONTAINER),
    PortUse(8443, "node", "proxy, TLS", Reach.PUBLIC, _CONTAINER),
    PortUse(26657, "node", "chain RPC", Reach.LOOPBACK, _CONTAINER),
    PortUse(5050, "node", "inference", Reach.LOOPBACK, _CONTAINER),
    PortUse(8080, "node", "proofs of the GPUs", Reach.LOOPBACK, _CONTAINER),
    PortUse(9100, "node", "callbacks of the GPUs", Reach.LOOPBACK, _CONTAINER),
    PortUse(9200, "node", "administration", Reach.LOOPBACK, _CONTAINER),
    PortUse(9400, "node", "node manager", Reach.LOOPBACK, _CONTAINER),
    PortUse(
        8090, "small-node", "small node, where 8080 is the chain node's", Reach.LOOPBACK, _POCQUEUE
    ),
    PortUse(9090, "delegation", "delegation", Reach.TLS, _POCQUEUE),
    PortUse(9101, "scheduler", "metrics of the scheduler", Reach.LOOPBACK, _POCQUEUE),
    PortUse(6379, "redis", "Redis", Reach.LOOPBACK, ("redis-server", "valkey-server", *_CONTAINER)),
    PortUse(5555, "flower", "Flower", Reach.LOOPBACK, _POCQUEUE),
    PortUse(9091, "monitoring", "Prometheus", Reach.LOOPBACK, ("prometheus", *_CONTAINER)),
    PortUse(9102, "monitoring", "node exporter", Reach.LOOPBACK, ("node_exporter", *_CONTAINER)),
    PortUse(
        3000, "monitoring", "Grafana", Reach.LOOPBACK, ("grafana", "grafana-server", *_CONTAINER)
    ),
    PortUse(3001, "hosts", "GPU hosts", Reach.TLS, _POCQUEUE),
    PortUse(3002, "hosts", "page of GPU hosts", Reach.TLS, _POCQUEUE),
)
