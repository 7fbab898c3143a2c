"""Bodies and answers of the REST routes. Fields are camelCase, times ISO 8601 in UTC, money HYPER as a number."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from pydantic.alias_generators import to_camel

from pocqueue.hosts import wire
from pocqueue.hosts.leases import JobState, Outcome
from pocqueue.hosts.pay import MICRO_PER_HYPER
from pocqueue.hosts.records import Gpu, Job, Node
from pocqueue.hosts.store.jobs import Turn
from pocqueue.hosts.store.overview import Earning
from pocqueue.web.errors import error_answers

_ADDRESS = "9xQeWvG816bUx9EPjHmaT23yvVM2ZWbrrpZb9PusVFin"


class Body(BaseModel):
    """A body or an answer."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(alias=to_camel), populate_by_name=True, extra="ignore"
    )


class HostError(BaseModel):
    """One sentence on what was wrong."""

    error: str


_ERRORS: dict[int, tuple[str, str]] = {
    400: ("A field is missing, or no wallet's address.", "wallet address is required"),
    401: (
        "A token, a session or a signature is missing or wrong.",
        "This is for admins: send …",
    ),
    403: ("The web page that asks is of another site.", "Origin is 'https://example.com', …"),
    404: ("There is none, or not for who asks.", "Node not found"),
    409: ("It is not in a state for that.", "Job … is completed and cannot be cancelled any more."),
    413: ("The body is too large.", "The body is larger than 65536 bytes."),
    422: ("A field has a value that is not allowed.", "limit is 0; allowed: …"),
    429: ("Too many requests.", "Too many requests: 120 requests in 60 seconds are allowed; …"),
    503: ("The database is away for now.", "The hosts database … cannot be used: …"),
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return error answers for the OpenAPI document; those that every route has are among them."""
    return error_answers(_ERRORS, 401, 403, 422, 429, 503, *statuses, model=HostError)


# Bodies

_Text = Annotated[str, Field(max_length=10_000_000)]
Line = Annotated[str, Field(max_length=200), AfterValidator(wire.one_line)]
#: A GPU, or its name alone.
_NamedGpu = Annotated[
    wire.HostGpu, BeforeValidator(lambda gpu: {"name": gpu} if isinstance(gpu, str) else gpu)
]


class TokenBody(Body):
    """Asks for a node token."""

    wallet: _Text = Field(default="", examples=[_ADDRESS])
    signature: Annotated[str, Field(max_length=200)] | None = None  #: of the text of a challenge
    nonce: Annotated[str, Field(max_length=200)] | None = None  #: of that challenge


class WalletBody(Body):
    """Asks for a text to sign."""

    wallet: _Text = Field(default="", examples=[_ADDRESS])


class SignInBody(Body):
    """Brings the signature of a text."""

    wallet: _Text = ""
    nonce: Annotated[str, Field(max_length=200)] = ""
    signature: Annotated[str, Field(max_length=200)] = ""


class ReportBody(Body):
    """A job's result over REST. The gateway's clock says what it is paid; `duration` is not looked at."""

    job_id: Annotated[str, Field(max_length=200)] | None = None
    node_id: Annotated[str, Field(max_length=200)] | None = None
    status: Any = None
    logs: Any = None
    duration: Any = None


class AnnouncementBody(Body):
    """A machine that says that it is there; nothing else comes of it."""

    wallet: _Text = ""
    hostname: Line = ""
    gpus: Annotated[tuple[_NamedGpu, ...], Field(max_length=wire.MAX_GPUS)] = ()
    os: Line = ""
    ip: Any = None  #: not kept


# Answers


class TokenAnswer(Body):
    """A token for one node, shown once."""

    token: str
    expires_at: str
    proven: bool  #: the wallet's owner asked for it


class TokenView(Body):
    """A token that waits for a machine; its id lets nobody in."""

    id: str
    created_at: str
    expires_at: str
    proven: bool  #: the wallet's owner asked for it


class ChallengeAnswer(Body):
    """A text for a wallet to sign."""

    nonce: str
    message: str
    expires_at: str


class SessionAnswer(Body):
    """Who is signed in."""

    wallet: str | None


class GpuView(Body):
    """A GPU of a node."""

    uuid: str
    name: str
    vram_mib: int | None
    healthy: bool
    reason: str | None


class NodeView(Body):
    """A node as everybody may see it; to its owner and to admins it has more."""

    id: str
    hostname: str
    gpu: str  #: the first one
    status: str  #: online, busy, offline, paused, draining, revoked or banned
    last_heartbeat: str
    earned: float
    gpus: list[GpuView] | None = None
    held: float | None = None  #: of `earned`: paid once the wallet's owner has signed in
    busy: bool | None = None
    os: str | None = None
    wallet: str | None = None
    agent_version: str | None = None
    isolation: str | None = None
    self_test: list[Any] | None = None  #: rows that failed


class JobView(Body):
    """A job of a wallet's node."""

    id: str
    type: str
    node_id: str | None
    status: str  #: pending, running, completed or failed
    duration: int | None  #: whole seconds; None: not over
    created_at: str
    completed_at: str | None
    earned: float | None = None
    reason: str | None = None  #: why it waits, or failed


class EarningView(Body):
    """A row of the ledger."""

    at: str
    node_id: str
    kind: str  #: job, payout, forfeit or correction
    ref: str  #: the fact that it is for
    hyper: float  #: below 0: taken out
    fate: str | None  #: of pay: held, due, paid or forfeited
    job_id: str | None
    job_type: str | None
    duration: int | None  #: whole seconds


class EarningsAnswer(Body):
    """What a wallet has earned, in HYPER."""

    earned: float
    held: float
    paid: float
    payable: float
    rows: list[EarningView]


class OkAnswer(Body):
    """It is done."""

    ok: bool = True


class SuccessAnswer(Body):
    """The result is kept."""

    success: bool = True


class SpeedAnswer(Body):
    """The bytes have come."""

    bytes: int


class AnnouncedView(Body):
    """A machine that announced itself."""

    wallet: str
    hostname: str
    gpus: list[Any]
    os: str
    last_seen: str


class HealthAnswer(Body):
    """It runs."""

    status: str
    timestamp: str


class ReadyAnswer(Body):
    """Whether it can do its work."""

    status: str
    database: bool
    redis: bool


class LogAnswer(Body):
    """What a job has written."""

    log: str
    truncated: bool


def iso(at_ms: int) -> str:
    """Write a time.

    >>> iso(0)
    '1970-01-01T00:00:00.000Z'
    """
    at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def hypers(micro: int) -> float:
    """Return micro-HYPER as HYPER."""
    return micro / MICRO_PER_HYPER


def node_view(
    node: Node,
    *,
    status: str,
    micro: int,
    is_owner: bool = False,
    self_test: list[Any] | None = None,
) -> NodeView:
    """Show a node.

    Args:
        micro: that it has earned.
        is_owner: for its owner, signed in, or an admin.
        self_test: rows of its self-test, for them.
    """
    view = NodeView(
        id=node.id,
        hostname=node.hostname,
        gpu=node.gpus[0].name if node.gpus else "unknown",
        status=status,
        last_heartbeat=iso(node.last_ms),
        earned=hypers(micro),
    )
    if not is_owner:
        return view
    return view.model_copy(
        update={
            "gpus": [_gpu_view(gpu) for gpu in node.gpus],
            "held": 0.0 if node.proven else hypers(micro),
            "busy": status == "busy",
            "os": node.os,
            "wallet": node.wallet,
            "agent_version": node.agent_version,
            "isolation": node.isolation,
            "self_test": self_test,
        }
    )


def turn_view(turn: Turn) -> JobView:
    """Show an attempt of a wallet's node."""
    attempt, job = turn.attempt, turn.job
    status = "running" if job.state is JobState.RUNNING else "pending"
    if attempt.outcome is not None:
        status = "completed" if attempt.outcome is Outcome.COMPLETED else "failed"
    duration = None
    if attempt.sent_ms is not None and attempt.ended_ms is not None:
        duration = (attempt.ended_ms - attempt.sent_ms) // 1000
    return JobView(
        id=job.id,
        type=job.kind,
        node_id=attempt.node_id,
        status=status,
        duration=duration,
        created_at=iso(job.created_ms),
        completed_at=None if attempt.ended_ms is None else iso(attempt.ended_ms),
        earned=hypers(attempt.micro),
        reason=None if attempt.outcome in {None, Outcome.COMPLETED} else str(attempt.outcome),
    )


def earning_view(row: Earning) -> EarningView:
    """Show a row of the ledger."""
    return EarningView(
        at=iso(row.entry.at_ms),
        node_id=row.entry.node_id,
        kind=row.entry.kind,
        ref=row.entry.ref,
        hyper=hypers(row.entry.micro),
        fate=row.fate,
        job_id=row.job_id,
        job_type=row.job_kind,
        duration=row.seconds,
    )


#: States of jobs as older pages know them.
_STATUS: Mapping[str, str] = {"queued": "pending", "leased": "pending", "cancelled": "failed"}


def job_view(job: Job, last: Turn | None) -> JobView:
    """Show a job.

    Args:
        last: its newest attempt; None: it has none.
    """
    state = str(job.state)
    if last is None:
        view = JobView(
            id=job.id,
            type=job.kind,
            node_id=None,
            status="",
            duration=None,
            created_at=iso(job.created_ms),
            completed_at=None if job.ended_ms is None else iso(job.ended_ms),
        )
    else:
        view = turn_view(last)
    changes = {"status": _STATUS.get(state, state), "reason": job.reason}
    return view.model_copy(update=changes)


def _gpu_view(gpu: Gpu) -> GpuView:
    return GpuView(
        uuid=gpu.uuid,
        name=gpu.name,
        vram_mib=gpu.vram_mib,
        healthy=gpu.healthy,
        reason=gpu.reason,
    )
