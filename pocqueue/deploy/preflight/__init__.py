"""Whether a server can become a node: a table of checks on facts, each with what was measured, what is wanted, and what
to do. Nothing here reads or changes a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pocqueue.deploy.preflight.checks import Check, Seen, Verdict, Wanted, failures
from pocqueue.deploy.preflight.containers import container_checks, port_checks
from pocqueue.deploy.preflight.gpus import driver_checks, gpu_checks
from pocqueue.deploy.preflight.server import disk_checks, network_checks, system_checks

__all__ = ["Check", "Seen", "Verdict", "Wanted", "failures", "preflight"]


def preflight(seen: Seen, wanted: Wanted) -> tuple[Check, ...]:
    """Return the whole table, in its groups."""
    tables: tuple[Callable[[Seen, Wanted], Iterator[Check]], ...] = (
        *(driver_checks, gpu_checks, container_checks, port_checks),
        *(disk_checks, network_checks, system_checks),
    )
    return tuple(check for table in tables for check in table(seen, wanted))
