"""GPU hosts: one gateway as an operator starts it, and thousands of agents at it over real sockets."""

from __future__ import annotations

from benchmarks.hosts.gateway import hosts_stack
from benchmarks.hosts.rows import hosts, hosts_alone

__all__ = ["hosts", "hosts_alone", "hosts_stack"]
