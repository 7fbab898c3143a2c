"""The agents' WebSocket."""

from __future__ import annotations

from pocqueue.hosts.gateway.socket.agent_socket import AgentSocket

__all__ = ["AgentSocket"]
