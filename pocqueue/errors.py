"""Every error that pocqueue raises on purpose, in one small tree.

PocqueueError
├── SettingsError, ProofFileError, ProcessError
├── InvalidRound, UnknownRound, UnknownSession, SessionsFull, ModelConflict, CallbackForbidden, CalibrationError
├── StoreError: StoreUnavailable (StoreReadOnly), StoreForbidden, StoreUnfit
├── NoLiveGpu, QueueTaken
├── EngineError: PassTooLarge, ModelNotFound, ModelMismatch, DeviceNotFound, EngineUnavailable
├── InvalidToken, TooManyFailures
└── NodeError: NodeAway, KeyFileError, SignatureError, OutboxError, DelegationError, NodeStateError

`http_status` is what an HTTP service answers with; a class without one of its own has its parent's.

Each message is one or two sentences for the person who can mend it: what failed, on which value,
what is allowed, what to do next. The CLI prints it and leaves with code 2.
"""

from __future__ import annotations

import copyreg
from typing import Any

from typing_extensions import override

from pocqueue.words import shown


class PocqueueError(Exception):
    """Root of everything a caller, operator or peer can cause.

    Attributes:
        http_status: status of the answer where it ends an HTTP request.
        retry_after_s: seconds after which the request is worth repeating, for statuses that say so.
    """

    http_status: int = 500
    retry_after_s: float = 2.0

    @property
    def detail(self) -> Any:
        """What an HTTP answer says: the sentence, or an object where clients of others expect one."""
        return str(self)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        # Python's own calls the class with the message, which most constructors do not take.
        return copyreg.__newobj__, (type(self),), vars(self) | {"args": self.args}  # type: ignore[attr-defined]


def first_line(exc: BaseException) -> str:
    """Return what to show of an error of somebody else's: its class and the first line that it says."""
    said = (str(exc).strip().splitlines() or [""])[0][:300]
    return f"{type(exc).__name__}: {said}".rstrip(": ")


class SettingsError(PocqueueError, ValueError):
    """A setting or an option has a value that is not allowed."""

    http_status = 503


class InvalidRound(PocqueueError, ValueError):
    """A field of a round is out of bounds.

    Attributes:
        field: the field's name as the caller wrote it, such as ``r_target``.
        value: what was given.
        allowed: what would have been accepted, in words.
    """

    http_status = 422

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field} is {shown(field, value)}; allowed: {allowed}.")


class UnknownRound(PocqueueError, LookupError):
    """No round has this id."""

    http_status = 404

    def __init__(self, round_id: str) -> None:
        super().__init__(
            f"Round {round_id!r} is not known: rounds are kept for an hour after they end. "
            "`pocqueue round list` shows those there are."
        )


class UnknownSession(PocqueueError, LookupError):
    """Who asks has no session of this id, whether others have one or not."""

    http_status = 404

    def __init__(self, session_id: str) -> None:
        plain = session_id.isascii() and session_id.isprintable() and len(session_id) <= 64
        shown = session_id if plain else f"{session_id[:40]!r}"
        super().__init__(
            f"Session {shown} not found: sessions are kept for an hour after they end. Start another one."
        )


class SessionsFull(PocqueueError):
    """A delegation has as many sessions as it may have.

    Attributes:
        limit: how many that is.
        retry_after_s: seconds until the first of them ends, at the latest.
    """

    http_status = 429

    def __init__(self, limit: int, retry_after_s: float) -> None:
        self.limit = limit
        self.retry_after_s = retry_after_s
        super().__init__(
            f"Maximum sessions ({limit}) reached. The next one ends in {retry_after_s:.0f} s at the "
            "latest; try again then, or stop a session of yours."
        )


class ModelConflict(PocqueueError):
    """A session asks for another model than the deployed one: its proofs would be worth nothing."""

    http_status = 409


class CallbackForbidden(PocqueueError, OSError):
    """A callback URL leads to an address that is not public.

    An OSError, so that an HTTP client takes it for a connection that could not be made.
    """

    def __init__(self, host: str) -> None:
        super().__init__(
            f"callback_url leads to {host}, which is no public address; POCQUEUE_CALLBACK_PRIVATE=1 "
            "on the io workers allows private, loopback and link-local ones."
        )


class CalibrationError(PocqueueError):
    """Too few distances came back to say anything about the valid rate."""


class StoreError(PocqueueError):
    """Something about Redis."""

    http_status = 503


class StoreUnavailable(StoreError, ConnectionError):
    """Redis does not answer, or refuses for now: this passes by itself, and is worth waiting for."""


class StoreReadOnly(StoreUnavailable):
    """Redis answers but takes no writes for now: memory or disk is full, or it fails over."""


class StoreForbidden(StoreError):
    """Redis wants another user or password, or does not let this user do what is needed."""


class StoreUnfit(StoreError):
    """Redis is too old, or may forget what it was given."""


class NoLiveGpu(PocqueueError, LookupError):
    """No live GPU could run this round."""

    http_status = 503


class QueueTaken(PocqueueError):
    """Another live worker serves this GPU queue."""


class EngineError(PocqueueError):
    """Something about a deployed model."""


class PassTooLarge(EngineError):
    """A batch does not fit into the memory of its device."""

    http_status = 507


class ModelNotFound(EngineError, LookupError):
    """There is no such model, or it cannot be loaded as a causal language model."""


class ModelMismatch(EngineError, ValueError):
    """A proof was made with another model than the one at hand."""


class DeviceNotFound(EngineError, LookupError):
    """The named device does not exist on this machine."""


class EngineUnavailable(EngineError, ConnectionError):
    """The server of a model does not answer, cannot use its model, or has another one by now."""

    http_status = 503


class InvalidToken(PocqueueError):
    """The token is missing or wrong."""

    http_status = 401


class TooManyFailures(PocqueueError):
    """Too many wrong tokens came from this address.

    Attributes:
        retry_after_s: seconds after which it is listened to again.
    """

    http_status = 429

    def __init__(self, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"Too many wrong tokens from this address; try again in {retry_after_s:.0f} s."
        )


class NodeError(PocqueueError):
    """Something about the small node."""


class NodeAway(NodeError, ConnectionError):
    """Nobody listens where a small node was asked for; one that is just starting will."""


class KeyFileError(NodeError, ValueError):
    """The signing key cannot be read, is of another kind, or others can read it."""


class SignatureError(NodeError, ValueError):
    """A batch is not signed, was changed after that, or was signed by somebody else."""


class OutboxError(NodeError, OSError):
    """The file of what waits to be sent cannot be read or written, or is another node's or version's."""

    http_status = 503


class DelegationError(NodeError, ConnectionError):
    """The big node cannot be reached, or refuses.

    Attributes:
        is_final: the same request would be refused again.
        status: of the HTTP answer; None where there was none.
        http_status: what is wrong with the round is passed on, as its caller can mend that; what is wrong
            between the nodes is 502.
    """

    def __init__(self, message: str, *, is_final: bool, status: int | None = None) -> None:
        self.is_final = is_final
        self.status = status
        passed_on = status if status in {409, 422, 429, 503} else 502
        self.http_status = 503 if status is None else passed_on
        super().__init__(message)


class NodeStateError(NodeError, RuntimeError):
    """The small node cannot do that in the state that it is in."""

    http_status = 400


class ProofFileError(PocqueueError, ValueError):
    """A file of proofs or of signed batches is cut, edited or none at all."""


class ProcessError(PocqueueError, RuntimeError):
    """A process that has to run beside this one did not start or did not stay up."""

    http_status = 503
