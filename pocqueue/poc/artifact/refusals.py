"""What the network's artifact routes are refused with, in the words that its clients know; docs/wire.md."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from pocqueue.errors import PocqueueError

if TYPE_CHECKING:
    from pocqueue.poc.artifact.bodies import Params


class ParamsMismatch(PocqueueError):
    """Another model is asked for than the deployed one.

    Attributes:
        requested: what was asked for.
        names: what the deployed model may be called.
    """

    http_status = 409

    def __init__(self, requested: Params, names: Collection[str]) -> None:
        self.requested, self.names = requested, sorted(names)
        super().__init__(
            f"params mismatch: model {requested.model!r} is asked for, and {', '.join(self.names)} is deployed."
        )

    @property
    @override
    def detail(self) -> dict[str, Any]:
        return {
            "error": "params mismatch",
            "requested": self.requested.model_dump(),
            # The other two are free, within the model's limits.
            "deployed": {"model": self.names, "seq_len": None, "k_dim": None},
        }


class AlreadyGenerating(PocqueueError):
    """A round is generating; it has to be stopped first."""

    http_status = 409

    def __init__(self) -> None:
        super().__init__("Already generating")


class NoncesDiffer(PocqueueError, ValueError):
    """A validation names other nonces than the request."""

    http_status = 400

    def __init__(self) -> None:
        super().__init__("validation.artifacts nonces must match nonces field")


class QueueFull(PocqueueError):
    """A request would let more nonces wait than may."""

    http_status = 429

    def __init__(self, num_waiting: int, most: int) -> None:
        super().__init__(f"Queue full: {num_waiting} nonces queued, limit is {most}")


class UnknownRequest(PocqueueError, LookupError):
    """No request has this id, or its result is not kept any more."""

    http_status = 404

    def __init__(self, request_id: str) -> None:
        super().__init__(f"Request {request_id[:100]} not found")


class RequestFailed(PocqueueError):
    """What somebody waits for was not computed; says why."""

    http_status = 503


def check_model(requested: Params, names: Collection[str]) -> None:
    """Refuse a request for another model.

    Args:
        requested: by the request.
        names: what the deployed model may be called.

    Raises:
        ParamsMismatch: its model is none of them.
    """
    if requested.model not in names:
        raise ParamsMismatch(requested, names)
