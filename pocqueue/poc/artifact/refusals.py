"""What the network's artifact routes are refused with, in the words that its clients know; docs/wire.md."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from pocqueue.errors import InvalidRound, PocqueueError

if TYPE_CHECKING:
    from pocqueue.poc.artifact.bodies import Params

#: Fields by which requests and claims of the decode scheme are known.
_DECODE = frozenset({"scheme", "max_tokens", "k_points_steps", "decode"})


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


def refuse_decode(fields: Any, place: str = "") -> Any:
    """Refuse the fields of a decode request, which would be answered with something else.

    Args:
        fields: an object as it was sent, or anything else, which passes.
        place: of the object in the body, with a dot behind it; "": it is the body.

    Raises:
        InvalidRound: there are some.
    """
    if isinstance(fields, dict) and (found := sorted(_DECODE & fields.keys())):
        raise InvalidRound(
            f"{place}{found[0]}",
            fields[found[0]],
            "artifacts of the prefill scheme alone; the decode scheme is not computed here",
        )
    return fields
