"""Records: rounds, ranges and proofs as read from the store, and what the store is asked for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.spec import RoundSpec, RoundState


class Outcome(StrEnum):
    """What became of a batch that was committed; see `lua/commit_batch.lua`."""

    COMMITTED = "committed"  #: it counts
    REPEATED = "repeated"  #: it was counted before
    GAP = "gap"  #: the range stands elsewhere: go on from there
    REASSIGNED = "reassigned"  #: the range is not this worker's any more
    LATE = "late"  #: the deadline is over
    CLOSED = "closed"  #: the round ended or is not known

    @property
    def goes_on(self) -> bool:
        """Whether the range is still this worker's to search."""
        return self in {Outcome.COMMITTED, Outcome.REPEATED, Outcome.GAP}


class CommitResult(NamedTuple):
    """What became of a batch."""

    outcome: Outcome
    done: int  #: first nonce index of the range that is not counted; 0 unless the range goes on


class BatchCommit(NamedTuple):
    """A computed batch of a range, as it is to be counted."""

    round_id: str
    range_id: int
    start: int  #: first nonce index
    stop: int  #: one past the last
    valid: Proofs  #: what the proof keeps of it
    num_broken: int = 0  #: indices whose value could not be computed


class SessionLimits(NamedTuple):
    """How many sessions there may be at a time."""

    in_all: int
    of_customer: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """Give so many nonces of a round to a GPU."""

    round_id: str
    queue: str
    worker: str
    num_nonces: int
    vtime_floor: float = 0.0  #: the round's virtual time is at least this before it is given, …
    vtime_per_nonce: float = 0.0  #: … and grows by this much for each nonce


class AssignedRange(NamedTuple):
    """A half-open run of nonce indices given to one GPU."""

    range_id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class OutstandingRange:
    """A range that is out on a GPU, as the store has it."""

    round_id: str
    range_id: int
    start: int
    stop: int
    done: int  #: first index that is not counted yet
    queue: str
    worker: str
    attempts: int  #: failures in a row on these nonces
    assigned_ms: int

    @property
    def left(self) -> int:
        return self.stop - self.done

    @property
    def key(self) -> str:
        """Name the range across rounds, as heartbeats do."""
        return f"{self.round_id}:{self.range_id}"

    @staticmethod
    # Asked of every range ten times a second; most have not moved since, as they wait.
    @functools.lru_cache(maxsize=8192)
    def parse(round_id: str, range_id: str, record: str) -> OutstandingRange:
        """Read a record as the store has it; the same text gives the same, immutable object."""
        start, stop, done, queue, worker, attempts, assigned_ms = record.split(" ")
        indices = int(start), int(stop), int(done)
        failed, sent = int(attempts), int(assigned_ms)
        return OutstandingRange(round_id, int(range_id), *indices, queue, worker, failed, sent)


@functools.lru_cache(maxsize=512)
def parse_spec(text: str) -> RoundSpec:
    """Read a specification as the store has it; the same text gives the same, immutable object."""
    return RoundSpec.model_validate_json(text)


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """A round as it stands."""

    round_id: str
    spec: RoundSpec
    state: RoundState
    reason: str
    created_ms: int
    deadline_ms: int
    ended_ms: int  #: when it ended; 0 while it is active
    now_ms: int  #: Redis's clock when this was read
    next_index: int  #: first nonce index that was never given to a GPU
    checked: int  #: nonce indices counted, each once
    valid: int  #: valid nonces, exactly those in the stream of proofs
    batches: int
    nonfinite: int  #: nonces whose distance was not a finite number; never valid
    late_batches: int  #: batches that came after the deadline and were dropped
    abandoned: int  #: nonce indices given up after MAX_ATTEMPTS failures in a row
    ranges_made: int
    ranges_returned: int
    #: GPU seconds given to the round over its share; None before the first range.
    vtime: float | None

    def seen_now(self) -> RoundStatus:
        """Return the round as expired if its deadline is over, whether the store says so yet or not."""
        if not self.state.is_active or self.now_ms < self.deadline_ms:
            return self
        return dataclasses.replace(self, state=RoundState.EXPIRED, ended_ms=self.deadline_ms)

    @property
    def remaining_s(self) -> float:
        """Seconds to the deadline; 0 if the round is over."""
        if not self.state.is_active:
            return 0.0
        return max(0.0, (self.deadline_ms - self.now_ms) / 1000)

    @property
    def elapsed_s(self) -> float:
        """Seconds the round ran, so far or in all."""
        end = self.ended_ms or min(self.now_ms, self.deadline_ms)
        return max(0.0, (min(end, self.deadline_ms) - self.created_ms) / 1000)

    @property
    def rate(self) -> float:
        """Nonces per second over the time the round ran."""
        return self.checked / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def valid_rate(self) -> float:
        """Share of the counted nonces that are valid."""
        return self.valid / self.checked if self.checked else 0.0

    @classmethod
    def parse(cls, round_id: str, fields: Mapping[str, str], now_ms: int) -> RoundStatus:
        return cls(
            round_id=round_id,
            spec=parse_spec(fields["spec"]),
            state=RoundState(fields["state"]),
            reason=fields["reason"],
            vtime=float(fields["vtime"]) if fields["vtime"] else None,
            now_ms=now_ms,
            **{name: int(fields[name]) for name in _NUMBERS},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form for `--json`."""
        return {
            "round_id": self.round_id,
            "state": self.state.value,
            "reason": self.reason,
            **{name: getattr(self, name) for name in _NUMBERS},
            "remaining_s": round(self.remaining_s, 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "rate": round(self.rate, 3),
            "valid_rate": round(self.valid_rate, 6),
            "spec": self.spec.model_dump(),
        }


class OpenedRange(NamedTuple):
    """A range and its round, as they were read before work on it."""

    status: RoundStatus
    out: OutstandingRange


#: What the store has of a round in whole numbers.
_NUMBERS = [f.name for f in dataclasses.fields(RoundStatus) if f.type == "int"]
_NUMBERS.remove("now_ms")


class ProofEntry(NamedTuple):
    """Valid nonces of one committed batch, and the cursor that stands behind them."""

    cursor: str
    queue: str
    proofs: Proofs
