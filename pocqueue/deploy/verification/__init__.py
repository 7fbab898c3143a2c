"""Whether a node does what a verified node does: a table of checks on what was seen, in the form of preflight's.

A node is verified if every required check passes; advisory ones warn. Nothing here reads or changes a server.
"""

from __future__ import annotations

from pocqueue.deploy.preflight.checks import Check
from pocqueue.deploy.verification.advisory import advisory_checks
from pocqueue.deploy.verification.required import required_checks
from pocqueue.deploy.verification.seen import SeenNode, WantedNode

__all__ = ["SeenNode", "WantedNode", "verification"]


def verification(seen: SeenNode, wanted: WantedNode) -> tuple[Check, ...]:
    """Return the whole table: what is required, then what is advised."""
    return (*required_checks(seen, wanted), *advisory_checks(seen, wanted))
