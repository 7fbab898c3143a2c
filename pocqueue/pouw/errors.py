"""What goes wrong in the network of useful work.

PocqueueError
  PouwError
    BadEncoding         bytes that are no canonical message of their kind (ValueError)
    ChainError          the chain of this node cannot be read, written or extended
      InvalidBlock      a block breaks a rule (ValueError)
        UnknownParent   it may be good, but what it builds on is not here yet
      InvalidTransaction  a transaction breaks a rule, or cannot be paid for (ValueError)
      UnknownTask       neither a client's at that state of the chain, nor one of the network's fillers (LookupError)
    UnknownEvidence     no evidence by this transaction or against this account (LookupError)
    TicketError         a stake or a role that is not allowed (ValueError)
    InvalidTask         a task that cannot be trained (ValueError)
      DataError         a file is none of a client's data, or not what was ordered
    SlotError           a message, certificate or beacon of a slot breaks a rule (ValueError)
    NotSigned           a committee has not signed what it was asked to
    LinkError           a peer cannot be reached, or broke the protocol (ConnectionError)
      PeerFault         what a peer sent is held against it
    NoAnswer            the node on this machine does not answer a command
    TrainingError       the trainer failed or is away; the next slot tries again
    NodeDataError       the folder of a node is damaged, in use or another network's
"""

from __future__ import annotations

from pocqueue.errors import PocqueueError


class PouwError(PocqueueError):
    """Something about the network of useful work."""


class ConfigError(PouwError, ValueError):
    """A field of a node's configuration is not allowed.

    Attributes:
        field: its name.
        value: what it was given.
        allowed: what it may be, in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field} is {value!r}; allowed: {allowed}.")


class BadEncoding(PouwError, ValueError):
    """Bytes are no canonical message of the kind that is due."""


class ChainError(PouwError):
    """The chain of this node cannot be read, written or extended."""


class InvalidBlock(ChainError, ValueError):
    """A block breaks a rule.

    Attributes:
        rule: its short name, the same on all nodes, such as ``target`` or ``re-execution``.
    """

    def __init__(self, rule: str, message: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {message}")


class UnknownParent(InvalidBlock):
    """What a block builds on is not here yet.

    Attributes:
        parent: its id.
    """

    def __init__(self, parent: bytes) -> None:
        self.parent = parent
        super().__init__("parent", f"block {parent.hex()} is not known.")


class InvalidTransaction(ChainError, ValueError):
    """A transaction breaks a rule, or its sender cannot pay for it.

    Attributes:
        rule: its short name, such as ``sequence`` or ``balance``.
        is_fault: no state of the chain makes it good, so that whoever sends it is at fault.
    """

    def __init__(self, rule: str, message: str, *, is_fault: bool) -> None:
        self.rule = rule
        self.is_fault = is_fault
        super().__init__(f"{rule}: {message}")


class UnknownTask(ChainError, LookupError):
    """A task is neither a client's at some state of the chain, nor one of the network's fillers.

    It may be one at a later state. No peer is at fault for naming it.

    Attributes:
        task: its id.
    """

    def __init__(self, task: bytes) -> None:
        self.task = task
        super().__init__(
            f"Task {task.hex()} is neither a client's on this chain, as far as it is here, nor one of the network's own."
        )


class UnknownHeight(PouwError, LookupError):
    """The chain has no block of this height."""

    http_status = 404

    def __init__(self, height: int, tip: int) -> None:
        super().__init__(f"There is no block of height {height}; the newest one is {tip}.")


class UnknownEvidence(PouwError, LookupError):
    """The chain has no evidence by this transaction, or against this account."""

    http_status = 404

    def __init__(self, identifier: str) -> None:
        what = "against account" if len(identifier) == 66 else "by transaction"
        super().__init__(f"There is no evidence {what} {identifier} in the chain.")


class TicketError(PouwError, ValueError):
    """A stake or a role is not allowed, or cannot be paid."""


class InvalidTask(PouwError, ValueError):
    """A task cannot be trained as it is described."""


class DataError(InvalidTask):
    """A file is none of a client's data, cannot be read, or is not what its task's order says."""


class SlotError(PouwError, ValueError):
    """A message, certificate or beacon of a slot breaks a rule.

    Attributes:
        rule: its short name, such as ``signature`` or ``map``.
    """

    def __init__(self, rule: str, message: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {message}")


class NotSigned(PouwError):
    """A committee has not signed what it was asked to; it may later."""


class NoAnswer(PouwError):
    """The node on this machine does not answer a command; it may have done all the same what it was asked to."""


class LinkError(PouwError, ConnectionError):
    """A peer cannot be reached, or broke the protocol."""


class PeerFault(LinkError):
    """What a peer sent is held against it.

    Attributes:
        points: how much; a peer with 100 is banned.
    """

    def __init__(self, points: int, reason: str) -> None:
        self.points = points
        super().__init__(reason)


class TrainingError(PouwError):
    """The trainer failed or is away; the next slot tries again."""


class NodeDataError(PouwError, OSError):
    """The folder of a node is damaged, in use, full or another network's."""
