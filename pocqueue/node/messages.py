"""What is in the outbox: sessions, their messages, and how several of these go out as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from pocqueue.errors import InvalidRound
from pocqueue.poc.callback import Kind, encode_body, without_secrets

Origin = Literal["delegation", "queue", "engine"]
SessionState = Literal["open", "closed", "fraud"]


@dataclass(frozen=True, slots=True)
class Session:
    """One search whose batches go through this node."""

    session_id: str
    origin: Origin
    state: SessionState
    cursor: str  #: behind the last page that was accepted; empty at first
    request: str  #: JSON of what it takes to go on with it
    created_s: float  #: Unix time
    batches: int  #: generated ones that were accepted
    nonces: int  #: in these
    sampled: int  #: nonces that were recomputed
    invalid: int  #: and of these, those that were wrong


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A batch or verdict, to be sent."""

    position: str  #: of the batch in its session; once for each kind
    kind: Kind
    url: str  #: `/` and kind are appended
    body: Mapping[str, Any]  #: signed already, if it is to be
    nonces: Sequence[int]  #: in the body
    #: May go out as one with its neighbours, see `merged`.
    merges: bool = False
    is_signed: bool = True


@dataclass(frozen=True, slots=True)
class Message:
    """One that waits for its receiver."""

    id: int
    session_id: str
    kind: Kind
    url: str
    body: str  #: JSON, sent as it is
    created_s: float  #: Unix time
    attempts: int  #: that failed
    refusals: int  #: and of these, those that were refused
    next_s: float  #: Unix time before which it is not tried
    merges: bool  #: may go out as one with its neighbours
    is_signed: bool


class OutboxStatus(BaseModel):
    """Batches and verdicts that are still on disk."""

    waiting: int = Field(default=0, description="Not confirmed by their receiver yet.")
    refused: int = Field(default=0, description="Answered with a final error by their receiver.")
    held: int = Field(default=0, description="Of a session that was found to be fraud; never sent.")
    oldest_seconds: float = Field(description="Age of the oldest one that waits; 0 if none does.")
    last_error: str | None = Field(
        default=None, description="Why a receiver did not take the last one that was tried in vain."
    )


def receiver_of(url: str) -> str:
    """Return what may be shown of a callback URL."""
    try:
        return without_secrets(url)
    except InvalidRound:
        return "a callback URL that is none"


def merged(bodies: Sequence[str]) -> tuple[str, int]:
    """Join bodies that differ in their lists alone.

    Args:
        bodies: JSON objects, in order; at least one.

    Returns:
        The first one with the items of those behind it in its lists, up to one that says something else; and
        how many bodies that is.
    """
    if len(bodies) == 1:
        return bodies[0], 1
    joined = json.loads(bodies[0])
    lists = [name for name, value in joined.items() if isinstance(value, list)]
    alike = {name: value for name, value in joined.items() if name not in lists}
    num = 1
    for text in bodies[1:]:
        more = json.loads(text)
        parts = [more.pop(name, None) for name in lists]
        if more != alike or not all(isinstance(part, list) for part in parts):
            break
        for name, part in zip(lists, parts, strict=True):
            joined[name] += part
        num += 1
    return encode_body(joined), num
