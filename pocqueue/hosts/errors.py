"""Errors of the GPU hosts.

HostError
├── WalletRefused, WalletProofError, TokenRefused, TooManyTokens, NodeKeyError, NoNewKey
├── UnknownNode, NodeDrained, UnknownJob, UnknownToken, JobRefused, JobOver, LeaseLost
├── CommandsError
└── DatabaseUnavailable, DatabaseUnfit, LedgerError

Texts that today's agents and pages read stand here word for word: they have no full stop.
"""

from __future__ import annotations

from pocqueue.errors import PocqueueError


class HostError(PocqueueError):
    """Something about GPU hosts, their jobs or their pay."""


class WalletRefused(HostError, ValueError):
    """A text is no address of a wallet, or of one that is banned."""

    http_status = 400


class WalletProofError(HostError):
    """Who says that a wallet is his has not shown it."""

    http_status = 401


class TokenRefused(HostError):
    """A node token is unknown, used or too old."""

    http_status = 401


class TooManyTokens(HostError):
    """A wallet has as many unused tokens as it may have.

    Attributes:
        retry_after_s: seconds until the first of them is too old.
    """

    http_status = 429

    def __init__(self, limit: int, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"This wallet has {limit} unused tokens, which is the most: use one of them, or try again in "
            f"{retry_after_s:.0f} s."
        )


class NodeKeyError(HostError):
    """A node has not shown that it has its key, or the key is none."""

    http_status = 401


class NoNewKey(HostError):
    """A node cannot be asked for a new key."""

    http_status = 409

    def __init__(self, *, has_key: bool) -> None:
        super().__init__(
            "The node is not connected: ask again when it is."
            if has_key
            else "This node has no key, as its agent is of protocol 1: revoke it, and let the machine join anew."
        )


class UnknownNode(HostError, LookupError):
    """There is no such node, or it is not for who asks."""

    http_status = 404

    def __init__(self) -> None:
        super().__init__("Node not found")


class NodeDrained(HostError):
    """An admin has drained a node, and its owner wants it to get jobs again."""

    http_status = 409

    def __init__(self) -> None:
        super().__init__(
            "The operator of this server has drained this node, and alone takes it back: ask there what is wrong. "
            "What it has earned stays yours."
        )


class UnknownJob(HostError, LookupError):
    """There is no such job, or it was never given to the node that speaks of it."""

    http_status = 404

    def __init__(self) -> None:
        super().__init__("Job not found")


class UnknownToken(HostError, LookupError):
    """There is no such token that could be used, or it is not for who asks."""

    http_status = 404

    def __init__(self) -> None:
        super().__init__("Token not found: it was used, is too old or was revoked.")


class JobRefused(HostError, ValueError):
    """A job cannot be taken as it was submitted."""

    http_status = 422


class JobOver(HostError):
    """A job has ended and cannot be changed any more."""

    http_status = 409


class LeaseLost(HostError):
    """A node speaks of an attempt that is not its any more."""

    http_status = 409


class CommandsError(HostError, ValueError):
    """The file of allowed commands and images has a mistake."""

    http_status = 503


class LedgerError(HostError):
    """A payment that cannot be written as it was asked for."""

    http_status = 409


class DatabaseUnavailable(HostError, ConnectionError):
    """The database does not answer, is held by somebody else, or has no room: this passes, and is waited for."""

    http_status = 503


class DatabaseUnfit(HostError):
    """A person has to mend the database first: it is of another version, damaged, or does not let us in."""

    http_status = 503
