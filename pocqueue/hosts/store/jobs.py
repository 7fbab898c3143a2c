"""Jobs: what was asked for, and how it stands."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from sqlalchemy import ColumnElement, bindparam, func, select, true, tuple_

from pocqueue.hosts.leases import JobState
from pocqueue.hosts.records import Attempt, Job, JobKind, NewJob
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.log import note
from pocqueue.hosts.store.rows import as_attempt, as_job, one_job
from pocqueue.hosts.tables import attempt, job, job_log, node


@dataclass(frozen=True, slots=True)
class Turn:
    """An attempt of a wallet's node, with its job."""

    job: Job
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Log:
    """What a job has said."""

    text: str
    truncated: bool  #: a part in the middle is missing


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs, as they were submitted and as they stand; `Leases` changes them."""

    _db: Database
    _now_ms: Callable[[], int]
    rate_micro: int  #: pay for a second of a job that comes in

    def submit(self, new: NewJob, *, job_id: str | None = None) -> Job:
        """Queue a job; one with this id that is there already is returned as it is.

        Args:
            new: what is to be done, within its bounds.
            job_id: a UUID of the caller's, which makes it safe to ask again; None: a new one.
        """
        now_ms = self._now_ms()
        row = asdict(new) | {
            "id": job_id or str(uuid.uuid4()),
            "state": JobState.QUEUED,
            "rate_micro": self.rate_micro,
            "attempts": 0,
            "created_ms": now_ms,
        }
        with self._db.write() as connection:
            query = self._db.insert(job).values(row).on_conflict_do_nothing()
            made = connection.execute(query.returning(job.c.id)).first()
            if made and new.submitter != "server":
                note(connection, now_ms, new.submitter, "job.submit", row["id"])
            return one_job(connection, row["id"])

    def submit_test(self, new: NewJob) -> Job | None:
        """Queue the test job of a node, unless one of it waits, runs or was completed (None).

        Args:
            new: of kind `test`, for one node (`only_node`).
        """
        with self._db.read() as connection:
            if connection.execute(_TEST_OF, {"b_node": new.only_node}).first():
                return None
        return self.submit(new)

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            UnknownJob: there is none.
        """
        with self._db.read() as connection:
            return one_job(connection, job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        """Return a job's attempts, in order."""
        query = select(attempt).where(attempt.c.job_id == job_id).order_by(attempt.c.n)
        with self._db.read() as connection:
            return [as_attempt(row) for row in connection.execute(query).mappings()]

    def log(self, job_id: str, n: int | None = None) -> Log:
        """Return the log of an attempt, or (None) of the newest one that has one; empty if none has.

        Raises:
            UnknownJob: there is no such job.
        """
        which = true() if n is None else job_log.c.n == n
        query = select(job_log.c.text, job_log.c.truncated).where(job_log.c.job_id == job_id, which)
        with self._db.read() as connection:
            one_job(connection, job_id)
            row = connection.execute(query.order_by(job_log.c.n.desc()).limit(1)).first()
        return Log("", False) if row is None else Log(*row)

    def listed(
        self, states: Collection[str] = (), *, cursor: str | None = None, limit: int = 100
    ) -> tuple[list[Job], str | None]:
        """Return jobs, newest first, and the cursor of the next page; None: this was the last.

        Args:
            states: of these; none: of all.
            cursor: of a page, from the page before it; one that is none stands for the first.
        """
        which = job.c.state.in_(states) if states else true()
        older: ColumnElement[bool] = true()
        if (at := _position(cursor)) is not None:
            older = tuple_(job.c.created_ms, job.c.id) < tuple_(*at)
        query = select(job).where(which, older).order_by(job.c.created_ms.desc(), job.c.id.desc())
        with self._db.read() as connection:
            rows = connection.execute(query.limit(limit)).mappings().all()
        jobs = [as_job(row) for row in rows]
        more = len(jobs) == limit
        return jobs, f"{jobs[-1].created_ms}.{jobs[-1].id}" if more else None

    def of_wallet(
        self, address: str, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[Turn], str | None]:
        """Return what a wallet's nodes did and do, newest first, and the cursor of the next page.

        Args:
            cursor: as for `listed`.
        """
        older: ColumnElement[bool] = true()
        at = _position(cursor)
        if at is not None:
            older = tuple_(attempt.c.leased_ms, attempt.c.job_id) < tuple_(*at)
        jobs = [column.label(f"its_{column.name}") for column in job.c]
        query = (
            select(*attempt.c, *jobs)
            .join(job, job.c.id == attempt.c.job_id)
            .join(node, node.c.id == attempt.c.node_id)
            .where(node.c.wallet == address, older)
            .order_by(attempt.c.leased_ms.desc(), attempt.c.job_id.desc())
        )
        # Found by an index alone: to sort whole rows takes half a second where there are a hundred thousand.
        moments = (
            select(attempt.c.leased_ms)
            .join(node, node.c.id == attempt.c.node_id)
            .where(node.c.wallet == address, true() if at is None else attempt.c.leased_ms < at[0])
            .order_by(attempt.c.leased_ms.desc())
        )
        with self._db.read() as connection:
            oldest = connection.execute(moments.limit(1).offset(limit - 1)).scalar()
            if oldest is not None:
                query = query.where(attempt.c.leased_ms >= oldest)
            rows = connection.execute(query.limit(limit)).mappings().all()
        turns = [_turn(row) for row in rows]
        last = turns[-1].attempt if len(turns) == limit else None
        return turns, None if last is None else f"{last.leased_ms}.{last.job_id}"

    def counts(self) -> dict[tuple[str, str], int]:
        """Count the jobs by (kind, state), with 0 for those that there are none of."""
        query = select(job.c.kind, job.c.state, func.count()).group_by(job.c.kind, job.c.state)
        with self._db.read() as connection:
            found = {(kind, state): num for kind, state, num in connection.execute(query)}
        return {(kind, str(state)): 0 for kind in get_args(JobKind) for state in JobState} | found


# Made once: each node that comes back asks for it.
_TEST_OF = (
    select(job.c.id)
    .where(
        job.c.only_node == bindparam("b_node"),
        job.c.kind == "test",
        job.c.state != JobState.FAILED,
        job.c.state != JobState.CANCELLED,
    )
    .limit(1)
)


def _turn(row: Mapping[Any, Any]) -> Turn:
    return Turn(as_job({name: row[f"its_{name}"] for name in Job.__slots__}), as_attempt(row))


def _position(cursor: str | None) -> tuple[int, str] | None:
    at, _, row_id = (cursor or "").partition(".")
    return (int(at), row_id) if at.isascii() and at.isdigit() and len(at) < 16 else None
