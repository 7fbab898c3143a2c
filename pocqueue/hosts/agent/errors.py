"""What can go wrong with an agent.

AgentError
├── SandboxUnavailable
├── IdentityError
├── SpoolError
└── AgentRefused
"""

from __future__ import annotations

from pocqueue.errors import PocqueueError


class AgentError(PocqueueError):
    """Something about an agent that its owner can mend."""


class SandboxUnavailable(AgentError):
    """Commands of strangers cannot be run safely on this machine; says why and what to do."""


class IdentityError(AgentError, ValueError):
    """The agent's key or what it knows of its node cannot be read or written, or others can read the key."""


class SpoolError(AgentError, OSError):
    """The file of results that wait to be acknowledged cannot be used."""


class AgentRefused(AgentError):
    """The server does not take this agent, and would not the next time either."""
