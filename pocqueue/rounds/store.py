"""Everything of rounds that outlives a process, in Redis. Only this module knows the keys.

Promises:
- A batch counts exactly once: `commit_batch` is one atomic script that refuses what is late,
  repeated, of a closed round or of a range that another GPU has by now. Counters, the stream of
  proofs and the covered nonce indices change together or not at all.
- Whatever is asked twice (a lost reply, a redelivered task, two schedulers) does no harm.
- Everything of a round goes an hour after it ended.

The keys of one round share the hash tag `{ROUND}`; the scripts in `lua/` describe each of them.
Times are milliseconds of Redis's own clock, so that hosts need not agree on theirs.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from pocqueue.errors import SessionsFull, StoreReadOnly, UnknownRound
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.connection import Call, OnRedis
from pocqueue.rounds.records import (
    AssignedRange,
    Assignment,
    BatchCommit,
    CommitResult,
    OpenedRange,
    Outcome,
    OutstandingRange,
    ProofEntry,
    RoundStatus,
    SessionLimits,
)
from pocqueue.rounds.refusals import check_eviction
from pocqueue.rounds.spec import RoundSpec, RoundState

PREFIX = "pocqueue:2:"
KEEP_ENDED_MS = 3600 * 1000
#: Failures in a row on the same nonces before they are given up and reported.
MAX_ATTEMPTS = 5
#: Longest wait of one read; well below the client's own timeout, which would take it for an outage.
MAX_BLOCK_MS = 2000


class Keys:
    """Names of all Redis keys. Versioned: another layout is another number in the prefix."""

    ROUNDS = f"{PREFIX}rounds"
    ACTIVE = f"{PREFIX}active"
    WAKE = f"{PREFIX}wake"
    CALLBACKS = f"{PREFIX}callbacks"
    GPUS = f"{PREFIX}gpus"
    HEARTBEATS = f"{PREFIX}heartbeats"
    LEADER = f"{PREFIX}leader"
    SESSIONS = f"{PREFIX}sessions"
    AUTH_FAILURES = f"{PREFIX}auth_failures"
    METRICS = f"{PREFIX}metrics"
    #: Gateways of GPU hosts by when they last said that they are there, in ms; see `relays`.
    HOSTS_RELAYS = f"{PREFIX}hosts_relays"

    @staticmethod
    def of_round(round_id: str, part: str) -> str:
        """Name one of a round's keys, such as ``proofs``."""
        return f"{PREFIX}{{{round_id}}}:{part}"

    @classmethod
    def parts(cls, round_id: str, *parts: str) -> list[str]:
        """Name several of a round's keys."""
        return [cls.of_round(round_id, part) for part in parts]


#: Cursor before the first entry of every stream.
START = "0-0"


class RoundStore(OnRedis):
    """Rounds, ranges and proofs. Safe to share between threads."""

    # Rounds

    def create(
        self,
        spec: RoundSpec,
        round_id: str | None = None,
        *,
        limits: SessionLimits | None = None,
        first_index: int = 0,
    ) -> str:
        """Make a round that is active from now on; return its id.

        Args:
            spec: what to search; a session if it names a customer.
            limits: how many sessions there may be with this one; None: any number.
            first_index: of the nonces to search; those before it are left out.

        Raises:
            SessionsFull: there are that many.
            StoreUnfit: Redis may forget the round while it runs.
        """
        check_eviction(self.client, self.url)
        round_id = round_id or str(uuid.uuid4())
        of_all = [Keys.ROUNDS, Keys.ACTIVE, Keys.WAKE, Keys.CALLBACKS, Keys.SESSIONS]
        reply = self._run(
            "create_round",
            [Keys.of_round(round_id, "round"), *of_all],
            [
                round_id,
                spec.model_dump_json(),
                round(spec.window_s * 1000),
                "" if spec.max_nonces is None else max(0, spec.max_nonces - first_index),
                KEEP_ENDED_MS,
                int(spec.callback_url is not None),
                spec.customer or "",
                *(limits or ("", "")),
                first_index,
                "" if spec.max_nonces is None else spec.max_nonces,
            ],
        )
        if reply[0] == "full":
            raise SessionsFull(int(reply[1]), int(reply[2]) / 1000)
        return round_id

    def status(self, round_id: str) -> RoundStatus:
        """Return a round as it stands, closed first if its deadline is over.

        Raises:
            UnknownRound: there is none with this id.
        """
        found = self.statuses([round_id])
        if not found:
            raise UnknownRound(round_id)
        return found[0]

    def statuses(self, round_ids: Sequence[str]) -> list[RoundStatus]:
        """Return those of these rounds that exist, in the given order."""
        read = self._read(round_ids)
        due = [s.round_id for s in read if s.state.is_active and s.now_ms >= s.deadline_ms]
        if not due:
            return read
        with contextlib.suppress(StoreReadOnly):
            for round_id in due:
                self.expire(round_id)
        # On a full Redis it cannot be written down that they are over, but over they are.
        return [status.seen_now() for status in self._read(round_ids)]

    def list_ids(self) -> list[str]:
        """Return the ids of all kept rounds, oldest first, and forget those that expired."""
        ids = self._kept_ids()
        exists = self._each("EXISTS", [Keys.of_round(round_id, "round") for round_id in ids])
        if gone := [i for i, there in zip(ids, exists, strict=True) if not there]:
            with self._errors():
                self.client.zrem(Keys.ROUNDS, *gone)
        return [i for i, there in zip(ids, exists, strict=True) if there]

    def active_ids(self) -> list[str]:
        """Return the ids of rounds that nobody has closed yet."""
        with self._errors():
            ids: Any = self.client.smembers(Keys.ACTIVE)
        return sorted(ids)

    def close(self, round_id: str, state: RoundState, reason: str) -> RoundState:
        """End a round, once; return the state it is in afterwards.

        Raises:
            UnknownRound: there is none with this id.
        """
        assert not state.is_active
        result = self._close(round_id, state, reason, only_if_due=False)
        if result is None:
            raise UnknownRound(round_id)
        return result

    def expire(self, round_id: str) -> None:
        """End a round if its deadline is over."""
        self._close(round_id, RoundState.EXPIRED, "", only_if_due=True)

    # Ranges

    def assign_ranges(self, wanted: Sequence[Assignment]) -> list[AssignedRange | None]:
        """Take nonce indices for GPUs, in order and in one round trip; None for a round that has none left."""
        if not wanted:
            return []
        calls = [
            (
                Keys.parts(one.round_id, "round", "ranges", "returned"),
                [
                    one.num_nonces,
                    one.queue,
                    one.worker,
                    repr(one.vtime_floor),
                    repr(one.vtime_per_nonce),
                ],
            )
            for one in wanted
        ]
        replies = self._run_many("assign_range", calls)
        return [
            AssignedRange(*(int(number) for number in reply)) if reply else None
            for reply in replies
        ]

    def release_range(self, round_id: str, range_id: int, *, failed: bool) -> int:
        """Put what is left of a range back in front of the line; return how many nonces.

        Args:
            failed: the GPU could not do it or died on it; after MAX_ATTEMPTS such in a row without
                a batch in between, the rest of the range is abandoned instead.
        """
        call = release_range_call(round_id, range_id, failed=failed)
        left, verdict = self._run("release_range", *call)
        if verdict == "hopeless":
            reason = (
                f"GPUs failed {MAX_ATTEMPTS} times in a row on its first nonces; their logs say why"
            )
            self._close(round_id, RoundState.FAILED, reason, only_if_due=False)
        elif verdict == "settled":
            self._close(round_id, RoundState.COMPLETED, "", only_if_due=False)
        return int(left)

    def open_range(self, round_id: str, range_id: int) -> OpenedRange | None:
        """Read a range and its round before work on it; None if there is nothing to do."""
        with self._pipeline() as pipe:
            pipe.hgetall(Keys.of_round(round_id, "round"))
            pipe.hget(Keys.of_round(round_id, "ranges"), str(range_id))
            pipe.time()
            fields, record, time = pipe.execute()
        if not fields or not record:
            return None
        status = RoundStatus.parse(round_id, fields, _ms(time))
        if status.remaining_s <= 0:
            return None
        return OpenedRange(status, OutstandingRange.parse(round_id, str(range_id), record))

    def commit_batch(self, batch: BatchCommit) -> CommitResult:
        """Count the nonce indices of a batch and keep its valid nonces, exactly once."""
        outcome, done = self._run("commit_batch", *commit_batch_call(batch))
        return CommitResult(Outcome(outcome), int(done))

    def outstanding(self, round_ids: Sequence[str]) -> list[OutstandingRange]:
        """Return the ranges of these rounds that are out on GPUs."""
        found = self._each("HGETALL", [Keys.of_round(i, "ranges") for i in round_ids])
        return [
            OutstandingRange.parse(round_id, range_id, record)
            for round_id, records in zip(round_ids, found, strict=True)
            for range_id, record in records.items()
        ]

    def coverage(self, round_id: str) -> list[tuple[int, int]]:
        """Return the counted nonce indices as disjoint half-open runs, in order."""
        with self._errors():
            runs: Any = self.client.hgetall(Keys.of_round(round_id, "cover_starts"))
        return sorted((int(start), int(stop)) for start, stop in runs.items())

    # Proofs

    def read_proofs(
        self,
        status: RoundStatus,
        cursor: str = START,
        *,
        count: int = 1000,
        block_ms: int | None = None,
    ) -> list[ProofEntry]:
        """Return the next proofs after a cursor, oldest first.

        Args:
            status: the round.
            cursor: `START` or the cursor of an entry read before.
            count: most entries to return.
            block_ms: wait up to this long for the first new entry, though never longer than
                MAX_BLOCK_MS; None: do not wait.
        """
        key = Keys.of_round(status.round_id, "proofs")
        if block_ms is not None:
            block_ms = max(1, min(block_ms, MAX_BLOCK_MS))
        with self._errors():
            reply: Any = self.client.xread({key: cursor}, count=count, block=block_ms)
        return [_entry(*entry) for _, entries in reply for entry in entries]

    def proofs_at(self, status: RoundStatus, cursors: Sequence[str]) -> list[ProofEntry]:
        """Return the proofs of these cursors, as far as they are kept."""
        key = Keys.of_round(status.round_id, "proofs")
        with self._pipeline() as pipe:
            for cursor in cursors:
                pipe.xrange(key, cursor, cursor)
            found = pipe.execute()
        return [_entry(*entry) for entries in found for entry in entries]

    def iter_proofs(self, status: RoundStatus, cursor: str = START) -> Iterator[ProofEntry]:
        """Yield every proof after a cursor that is there by now."""
        while entries := self.read_proofs(status, cursor):
            yield from entries
            cursor = entries[-1].cursor

    # Totals

    def totals(self) -> dict[str, int]:
        """Return the counters over all rounds since ever, by name; see `lua/commit_batch.lua`."""
        with self._errors():
            found: Any = self.client.hgetall(Keys.METRICS)
        return {name: int(value) for name, value in found.items()}

    def snapshot(self) -> list[RoundStatus]:
        """Return every kept round as it stands; unlike `statuses`, nothing is written."""
        return [status.seen_now() for status in self._read(self._kept_ids())]

    def num_proofs(self, round_ids: Sequence[str]) -> list[int]:
        """Return how many entries the stream of each of these rounds has."""
        return self._each("XLEN", [Keys.of_round(i, "proofs") for i in round_ids])

    # Schedulers

    def lead(self, scheduler: str, lease_s: float) -> bool:
        """Take the lead among schedulers, or renew it, for so many seconds; say whether this one has it."""
        return bool(self._run("lead", [Keys.LEADER], [scheduler, round(1000 * lease_s)]))

    def wait_for_work(self, timeout_s: float) -> bool:
        """Wait until a round is made or the time is up; say whether one was."""
        with self._errors():
            return self.client.blpop([Keys.WAKE], timeout=timeout_s) is not None

    # Helpers

    def _kept_ids(self) -> list[str]:
        with self._errors():
            ids: Any = self.client.zrange(Keys.ROUNDS, 0, -1)
        return list(ids)

    def _read(self, round_ids: Sequence[str]) -> list[RoundStatus]:
        with self._pipeline() as pipe:
            for round_id in round_ids:
                pipe.hgetall(Keys.of_round(round_id, "round"))
            pipe.time()
            *found, time = pipe.execute()
        return [
            RoundStatus.parse(round_id, fields, _ms(time))
            for round_id, fields in zip(round_ids, found, strict=True)
            if fields
        ]

    def _close(
        self, round_id: str, state: RoundState, reason: str, *, only_if_due: bool
    ) -> RoundState | None:
        call = close_round_call(round_id, state, reason, only_if_due=only_if_due)
        reply = self._run("close_round", *call)
        return RoundState(reply) if reply else None


def commit_batch_call(batch: BatchCommit) -> Call:
    """Return keys and arguments of `lua/commit_batch.lua`; see `RoundStore.commit_batch`."""
    before = Keys.parts(batch.round_id, "round", "ranges", "proofs", "cover_starts", "cover_stops")
    behind = [Keys.of_round(batch.round_id, "abandoned"), Keys.METRICS]
    return [*before, Keys.ACTIVE, *behind], [
        batch.round_id,
        batch.range_id,
        batch.start,
        batch.stop,
        len(batch.valid),
        batch.num_broken,
        json.dumps(batch.valid.nonces, separators=(",", ":")),
        json.dumps(batch.valid.values, separators=(",", ":"), allow_nan=False),
        KEEP_ENDED_MS,
    ]


def release_range_call(round_id: str, range_id: int, *, failed: bool) -> Call:
    """Return keys and arguments of `lua/release_range.lua`; see `RoundStore.release_range`."""
    keys = Keys.parts(round_id, "round", "ranges", "returned", "abandoned")
    return [*keys, Keys.METRICS], [range_id, int(failed), MAX_ATTEMPTS]


def close_round_call(round_id: str, state: RoundState, reason: str, *, only_if_due: bool) -> Call:
    """Return keys and arguments of `lua/close_round.lua`."""
    parts = ("round", "ranges", "proofs", "cover_starts", "cover_stops", "returned", "abandoned")
    keys = [*Keys.parts(round_id, *parts), Keys.ACTIVE, Keys.SESSIONS]
    return keys, [round_id, state.value, reason, KEEP_ENDED_MS, int(only_if_due)]


def _entry(entry_id: str, fields: dict[str, str]) -> ProofEntry:
    proofs = Proofs(json.loads(fields["nonces"]), json.loads(fields["values"]))
    return ProofEntry(cursor=entry_id, queue=fields["queue"], proofs=proofs)


def _ms(time: tuple[int, int]) -> int:
    return time[0] * 1000 + time[1] // 1000
