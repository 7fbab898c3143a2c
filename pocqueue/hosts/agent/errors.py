"""What can go wrong with an agent.

AgentError
├── SandboxUnavailable
├── GpuFactsUnavailable, IdentityError
├── SpoolError
└── AgentRefused
"""

from __future__ import annotations

from pocqueue.errors import PocqueueError


class AgentError(PocqueueError):
    """Something about an agent that its owner can mend."""


class SandboxUnavailable(AgentError):
    """Commands of strangers cannot be run safely on this machine; says why and what to do."""


class GpuFactsUnavailable(AgentError, LookupError):
    """Nothing can be said of this machine's GPUs.

    Attributes:
        reason: why, as a row of a self-test says it.
        remedy: what to do.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"The GPUs of this machine are not known: {reason}; {remedy}.")


class IdentityError(AgentError, ValueError):
    """The agent's key or what it knows of its node cannot be read or written, or others can read the key."""


class SpoolError(AgentError, OSError):
    """The file of results that wait to be acknowledged cannot be used."""


class AgentRefused(AgentError):
    """The server does not take this agent, and would not the next time either."""
