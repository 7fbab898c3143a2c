"""Rows of the page's lists: values that can be compared with those before, and how they are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Final

from pocqueue.hosts.gateway.page.advice import Note, notes_of
from pocqueue.hosts.gateway.page.sparkline import Load
from pocqueue.hosts.gateway.schema import iso, turn_view
from pocqueue.hosts.leases import Outcome
from pocqueue.hosts.pay import hyper
from pocqueue.hosts.records import Gpu, Node, NodeStatus
from pocqueue.hosts.store.jobs import Turn
from pocqueue.hosts.store.overview import Earning, Work
from pocqueue.hosts.store.tokens import OpenToken

_WHY: Final = {
    Outcome.CANCELLED: "it was cancelled",
    Outcome.REFUSED: "the node refused it",
    Outcome.NODE_LOST: "nothing was heard of the node",
    Outcome.RELAY_LOST: "it did not reach the node",
    Outcome.TIMEOUT: "no result came in time",
}
_FATES: Final = {
    "held": "Held",
    "due": "To be paid",
    "paid": "Paid",
    "forfeited": "Forfeited",
}
_KINDS: Final = {"payout": "Paid out", "forfeit": "Forfeited", "correction": "Correction"}


@dataclass(frozen=True, slots=True)
class GpuRow:
    """A GPU of a node, or several of which there is nothing else to say."""

    name: str
    vram: str
    healthy: bool
    reason: str
    load: Load | None
    job_id: str  #: that holds it; empty: none
    num: int = 1
    number: int = 0  #: of the first one, among those of the node


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node."""

    id: str
    hostname: str
    status: str
    earned: str
    held: bool
    gpus: tuple[GpuRow, ...]
    work: tuple[Work, ...]
    notes: tuple[Note, ...]
    agent: str
    os: str
    isolation: str
    has_key: bool
    can: tuple[str, ...]  #: what its owner may decide; empty: another looks
    #: Changes with every beat; told by itself.
    last_heartbeat: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A turn of a node at a job."""

    key: str
    id: str
    type: str
    node_id: str
    status: str
    why: str
    duration: int | None
    at: str  #: when it ended; else when it began
    earned: str


@dataclass(frozen=True, slots=True)
class EarningRow:
    """A row of the ledger."""

    key: str
    at: str
    what: str
    job_id: str
    hostname: str
    duration: int | None
    amount: str
    fate: str
    state: str  #: of its badge


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token that waits for a machine."""

    id: str
    created: str
    expires: str
    proven: bool
    address: str


def clock(at: str) -> str:
    """Write a time of `iso` as a person reads it.

    >>> clock(iso(0))
    '1970-01-01 00:00 UTC'
    """
    return f"{at[:16].replace('T', ' ')} UTC"


def node_row(
    node: Node,
    status: NodeStatus,
    work: Sequence[Work],
    test: Sequence[Any],
    loads: Mapping[str, Load | None],
    micro: int,
    *,
    is_owner: bool,
) -> NodeRow:
    """Show a node.

    Args:
        status: as it stands now.
        work: what it is at.
        test: rows of its newest self-test.
        loads: of its GPUs, by uuid.
        micro: that it has earned.
        is_owner: for its owner, signed in.
    """
    holders = {uuid: one.job_id for one in work for uuid in one.gpu_uuids}
    until = "" if node.paused_until_ms is None else clock(iso(node.paused_until_ms))
    return NodeRow(
        id=node.id,
        hostname=node.hostname,
        status=status,
        earned=hyper(micro),
        held=not node.proven,
        gpus=tuple(_gpus(node.gpus, loads, holders)),
        work=tuple(work),
        notes=tuple(notes_of(node, status, test, until, is_owner=is_owner)),
        agent=node.agent_version or ("" if node.protocol > 1 else "an older one, without a key"),
        os=node.os,
        isolation=node.isolation,
        has_key=node.key is not None,
        can=tuple(_decisions(node)) if is_owner else (),
        last_heartbeat=iso(node.last_ms),
    )


def _decisions(node: Node) -> Iterator[str]:
    if node.state == "banned":
        return
    if not node.proven:
        yield "adopt"
    if node.state == "active":
        yield "drain"
    elif node.drained_by != "admin":
        yield "resume"
    if node.key is not None and node.relay is not None:
        yield "rotate-key"
    yield "revoke"


def _gpus(
    gpus: Sequence[Gpu], loads: Mapping[str, Load | None], holders: Mapping[str, str]
) -> Iterator[GpuRow]:
    rows, number = [_gpu(gpu, loads.get(gpu.uuid), holders.get(gpu.uuid, "")) for gpu in gpus], 0
    for row, alike in groupby(rows):
        num = len(list(alike))
        yield replace(row, num=num, number=number)
        number += num


def _gpu(gpu: Gpu, load: Load | None, job_id: str) -> GpuRow:
    vram = "" if gpu.vram_mib is None else f"{gpu.vram_mib / 1024:.0f} GiB"
    return GpuRow(gpu.name, vram, gpu.healthy, gpu.reason or "", load, job_id)


def job_row(turn: Turn) -> JobRow:
    """Show a turn at a job."""
    shown, attempt = turn_view(turn), turn.attempt
    why = _WHY.get(attempt.outcome, "") if attempt.outcome is not None else ""
    if attempt.outcome is Outcome.FAILED and attempt.exit_code is not None:
        why = f"exit code {attempt.exit_code}"
    return JobRow(
        key=f"{attempt.job_id}.{attempt.n}",
        id=attempt.job_id,
        type=shown.type,
        node_id=attempt.node_id,
        status=shown.status,
        why=why,
        duration=shown.duration,
        at=shown.completed_at or iso(attempt.leased_ms),
        earned=hyper(attempt.micro),
    )


def earning_row(one: Earning) -> EarningRow:
    """Show a row of the ledger."""
    kind = one.entry.kind
    state = one.fate or kind
    return EarningRow(
        key=str(one.entry.id),
        at=iso(one.entry.at_ms),
        what=_KINDS.get(kind, one.job_kind or kind),
        job_id=one.job_id or "",
        hostname=one.hostname,
        duration=one.seconds,
        amount=hyper(one.entry.micro),
        fate=_FATES.get(one.fate or "", ""),
        state=state,
    )


def token_row(one: OpenToken) -> TokenRow:
    """Show a token."""
    return TokenRow(one.id, iso(one.created_ms), iso(one.expires_ms), one.proven, one.address)
