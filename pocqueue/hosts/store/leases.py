"""Leases: which node has which job, and what came of it. Here attempts end; `places` begins them.

Each change holds the job's row, so that one of two that come at a time is first; what an attempt's end means (the
job's next state, its pay, the node's reputation) is written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, and_, bindparam, func, select, true, update

from pocqueue.hosts.errors import JobOver, LeaseLost, UnknownJob
from pocqueue.hosts.leases import (
    HELD_AGAINST,
    LEASE_MS,
    POLL_LEASE_MS,
    JobState,
    Outcome,
    Verdict,
    hard_until,
    job_after,
    judge,
    lost_how,
    outcome_of,
)
from pocqueue.hosts.pay import earned, most_paid_s
from pocqueue.hosts.records import POLLS, Attempt, Job, Report
from pocqueue.hosts.reputation import HOUR_MS, KNOWN_STREAK, Reputation, paused_until
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.ledger import add
from pocqueue.hosts.store.log import note
from pocqueue.hosts.store.rows import as_attempt, as_reputation, one_attempt, one_job
from pocqueue.hosts.tables import attempt, job, job_log, node, reputation

#: Characters that are kept of a log: the first and the last half of them.
MAX_LOG: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a result, a refusal or a cancellation."""

    verdict: Verdict
    job: Job
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Leases:
    """The attempts."""

    _db: Database
    _now_ms: Callable[[], int]

    def sent(self, job_id: str, n: int) -> tuple[Job, Attempt]:
        """Note that a job goes to its node now; its time counts from here on, until `started`. May be repeated.

        It runs with that on an agent without a key, which says nothing of it until its result.

        Returns:
            The job, and the attempt as it is now.

        Raises:
            UnknownJob: there is no such job.
            LeaseLost: the attempt has ended, so that the node must not get it.
        """
        now_ms = self._now_ms()
        with self._db.write() as connection:
            found = one_job(connection, job_id, lock=True)
            turn = one_attempt(connection, job_id, n)
            if turn is None or turn.ended_ms is not None:
                raise LeaseLost(f"Attempt {n} of job {job_id} has ended; it is not sent any more.")
            if turn.sent_ms is not None:
                return found, turn
            until_ms = hard_until(now_ms, found.timeout_s)
            protocol = select(node.c.protocol).where(node.c.id == turn.node_id)
            speaks = connection.execute(protocol).scalar_one()
            for_ms = POLL_LEASE_MS if speaks == POLLS else LEASE_MS
            lease_ms = until_ms if speaks == 1 else min(until_ms, now_ms + for_ms)
            values: dict[str, Any] = {
                "sent_ms": now_ms,
                "hard_until_ms": until_ms,
                "lease_until_ms": lease_ms,
            }
            _set_attempt(connection, turn, values)
            if speaks < 2:
                _set_running(connection, job_id)
                found = replace(found, state=JobState.RUNNING)
            return found, replace(turn, **values)

    def started(self, job_id: str, n: int, node_id: str) -> Attempt:
        """Note that a node has begun with a job: its time counts from here on. Only the first time changes anything.

        A node that had to fetch an image has its time-out for the work. One that says it late is paid for less.

        Raises:
            UnknownJob: this node was never sent that attempt.
            LeaseLost: the attempt has ended; the node is to stop.
        """
        now_ms = self._now_ms()
        with self._db.write() as connection:
            found = one_job(connection, job_id, lock=True)
            turn = one_attempt(connection, job_id, n)
            if turn is None or turn.node_id != node_id or turn.sent_ms is None:
                raise UnknownJob
            if turn.ended_ms is not None:
                raise LeaseLost(f"Attempt {n} of job {job_id} has ended.")
            if found.state is JobState.RUNNING:
                return turn
            until_ms = hard_until(now_ms, found.timeout_s)
            lease_ms = min(until_ms, now_ms + LEASE_MS)
            values = {"sent_ms": now_ms, "hard_until_ms": until_ms, "lease_until_ms": lease_ms}
            _set_attempt(connection, turn, values)
            _set_running(connection, job_id)
            return one_attempt(connection, job_id, n) or turn

    def add_log(self, job_id: str, node_id: str, text: str) -> None:
        """Add to the log of a node's open attempt; of one that has ended nothing is added."""
        mine = and_(attempt.c.job_id == job_id, attempt.c.node_id == node_id)
        with self._db.write() as connection:
            query = select(attempt.c.n).where(mine, attempt.c.ended_ms.is_(None))
            n = connection.execute(query.with_for_update(key_share=True)).scalar()
            if n is None:
                return
            known = and_(job_log.c.job_id == job_id, job_log.c.n == n)
            old = connection.execute(
                select(job_log.c.text, job_log.c.truncated).where(known)
            ).first()
            before, cut = ("", False) if old is None else (old.text, old.truncated)
            self._set_log(connection, job_id, n, before + text, cut)

    def finish(self, job_id: str, node_id: str, report: Report) -> Finished:
        """Take a node's result of a job. Whatever it is worth, it is to be acknowledged.

        Raises:
            UnknownJob: there is no such job, or this node never had it.
        """
        now_ms = self._now_ms()
        with self._db.write() as connection:
            found = one_job(connection, job_id, lock=True)
            mine = and_(attempt.c.job_id == job_id, attempt.c.node_id == node_id)
            which = true() if report.n is None else attempt.c.n == report.n
            newest = select(attempt).where(mine, which).order_by(attempt.c.n.desc()).limit(1)
            row = connection.execute(newest).mappings().first()
            if row is None:
                raise UnknownJob
            turn = as_attempt(row)
            verdict = judge(
                job_state=found.state,
                newest=found.attempts,
                n=turn.n,
                outcome=turn.outcome,
                reported=turn.reported_ms is not None,
            )
            if verdict is Verdict.REPEATED:
                return Finished(verdict, found, turn)
            if verdict is Verdict.COUNTS and _is_out(connection, node_id):
                # Its lease runs out with the next sweep, and the job goes to another node.
                verdict = Verdict.LATE
            self._set_log(connection, job_id, turn.n, report.log, report.truncated)
            if verdict is Verdict.LATE:
                _set_attempt(connection, turn, {"reported_ms": now_ms})
            else:
                said = replace(
                    turn,
                    reported_ms=now_ms,
                    exit_code=report.exit_code,
                    claimed_ms=report.claimed_ms,
                )
                self._end(connection, found, said, outcome_of(report.status), now_ms)
                if report.status == "timeout":
                    mine = job.c.id == job_id
                    connection.execute(update(job).where(mine).values(reason="timeout"))
            changed = one_attempt(connection, job_id, turn.n) or turn
            return Finished(verdict, one_job(connection, job_id), changed)

    def refuse(self, job_id: str, n: int, node_id: str, reason: str) -> Finished:
        """Note that a node does not want a job: another one gets it. May be repeated; it counts once.

        Args:
            reason: in the node's words.

        Raises:
            UnknownJob: this node never had that attempt.
        """
        with self._db.write() as connection:
            found = one_job(connection, job_id, lock=True)
            turn = one_attempt(connection, job_id, n)
            if turn is None or turn.node_id != node_id:
                raise UnknownJob
            if turn.ended_ms is not None:
                return Finished(Verdict.REPEATED, found, turn)
            self._set_log(connection, job_id, n, reason, False)
            return self._ended(connection, found, turn, Outcome.REFUSED)

    def cancel(self, job_id: str, *, actor: str, submitter: str | None = None) -> Finished | None:
        """Cancel a job; return the attempt that has to be stopped on its node, None if there is none.

        May be repeated; it counts once.

        Args:
            actor: a wallet or ``admin``.
            submitter: whose job it has to be; None: anybody's.

        Raises:
            UnknownJob: there is none of that submitter.
            JobOver: it is over.
        """
        now_ms = self._now_ms()
        with self._db.write() as connection:
            found = one_job(connection, job_id, lock=True)
            if submitter not in {None, found.submitter}:
                raise UnknownJob
            turn = one_attempt(connection, job_id, found.attempts)
            if found.state is JobState.CANCELLED:
                return None if turn is None else Finished(Verdict.REPEATED, found, turn)
            if found.state.is_over:
                raise JobOver(f"Job {job_id} is {found.state} and cannot be cancelled any more.")
            note(connection, now_ms, actor, "job.cancel", job_id)
            if turn is not None and turn.ended_ms is None:
                return self._ended(connection, found, turn, Outcome.CANCELLED)
            values = {"state": JobState.CANCELLED, "reason": None, "ended_ms": now_ms}
            connection.execute(update(job).where(job.c.id == job_id).values(values))
            return None

    def open_on(self, node_id: str) -> list[tuple[Job, Attempt]]:
        """Return the open attempts of a node with their jobs: what it has to go on with when it is back."""
        with self._db.read() as connection:
            rows = connection.execute(_OPEN_ON, {"b_id": node_id}).mappings()
            turns = [as_attempt(row) for row in rows]
            return [(one_job(connection, turn.job_id), turn) for turn in turns]

    def sweep(self) -> list[Finished]:
        """End the leases that have run out, each in a transaction of its own; return what became of these attempts."""
        expired = and_(attempt.c.ended_ms.is_(None), attempt.c.lease_until_ms <= self._now_ms())
        with self._db.read() as connection:
            due = connection.execute(select(attempt.c.job_id, attempt.c.n).where(expired)).all()
        return [lost for job_id, n in due if (lost := self._expire(job_id, n)) is not None]

    def _expire(self, job_id: str, n: int) -> Finished | None:
        now_ms = self._now_ms()
        with self._db.write() as connection:
            found = one_job(connection, job_id, lock=True)
            turn = one_attempt(connection, job_id, n)
            # Somebody may have renewed or ended it since.
            if turn is None or turn.ended_ms is not None or turn.lease_until_ms > now_ms:
                return None
            how = lost_how(sent_ms=turn.sent_ms, hard_until_ms=turn.hard_until_ms, now_ms=now_ms)
            return self._ended(connection, found, turn, how)

    def _ended(
        self, connection: Connection, found: Job, turn: Attempt, outcome: Outcome
    ) -> Finished:
        """End an attempt, and return what became of it."""
        self._end(connection, found, turn, outcome, self._now_ms())
        changed = one_attempt(connection, found.id, turn.n) or turn
        return Finished(Verdict.COUNTS, one_job(connection, found.id), changed)

    def _end(
        self, connection: Connection, found: Job, turn: Attempt, outcome: Outcome, now_ms: int
    ) -> None:
        """End an attempt, and write all that follows from it."""
        # Its owner's name, and its row held: all that change nodes and attempts take the node first.
        mine = select(node.c.wallet).where(node.c.id == turn.node_id)
        owner = connection.execute(mine.with_for_update(key_share=True)).scalar_one()
        micro = earned(
            outcome,
            sent_ms=turn.sent_ms,
            ended_ms=now_ms,
            most_s=most_paid_s(found.spec, found.timeout_s),
            claimed_ms=turn.claimed_ms,
            rate_micro=found.rate_micro,
        )
        values = {
            "outcome": outcome,
            "ended_ms": now_ms,
            "micro": micro,
            "reported_ms": turn.reported_ms,
            "exit_code": turn.exit_code,
            "claimed_ms": turn.claimed_ms,
        }
        _set_attempt(connection, turn, values)
        not_tried = [Outcome.REFUSED, Outcome.RELAY_LOST]
        tried = and_(attempt.c.job_id == found.id, attempt.c.outcome.not_in(not_tried))
        num_tried = connection.execute(select(func.count()).where(tried)).scalar() or 0
        state = job_after(
            outcome,
            num_tried=num_tried,
            max_attempts=found.max_attempts,
            is_believed=outcome is not Outcome.FAILED
            or self._is_believed(connection, found, turn, owner),
        )
        why = None if state in {JobState.COMPLETED, JobState.CANCELLED} else str(outcome)
        changes = {"state": state, "reason": why, "ended_ms": now_ms if state.is_over else None}
        connection.execute(update(job).where(job.c.id == found.id).values(changes))
        ref = f"attempt:{found.id}:{turn.n}"
        add(self._db, connection, now_ms, owner, turn.node_id, "job", ref, micro)
        if outcome is Outcome.COMPLETED:
            self._remember(connection, turn.node_id, found.kind, "good", now_ms)
        elif outcome is Outcome.FAILED or outcome in HELD_AGAINST:
            self._remember(connection, turn.node_id, found.kind, "bad", now_ms)
        if outcome in HELD_AGAINST:
            _pause(connection, turn.node_id, now_ms)

    def _is_believed(self, connection: Connection, found: Job, turn: Attempt, owner: str) -> bool:
        """Say whether a job has failed if this attempt has: its node is known, or a node of somebody else agrees.

        A job for one node alone has nobody else to ask.
        """
        if found.only_node is not None:
            return True
        streak = select(reputation.c.streak).where(
            reputation.c.node_id == turn.node_id, reputation.c.kind == found.kind
        )
        if (connection.execute(streak).scalar() or 0) >= KNOWN_STREAK:
            return True
        others = (
            select(attempt.c.n)
            .join(node, node.c.id == attempt.c.node_id)
            .where(
                attempt.c.job_id == found.id,
                attempt.c.outcome == Outcome.FAILED,
                node.c.wallet != owner,
            )
        )
        return connection.execute(others.limit(1)).first() is not None

    def _remember(
        self,
        connection: Connection,
        node_id: str,
        kind: str,
        event: Literal["good", "bad"],
        now_ms: int,
    ) -> None:
        known = and_(reputation.c.node_id == node_id, reputation.c.kind == kind)
        row = connection.execute(
            select(reputation).where(known).with_for_update(key_share=True)
        ).first()
        before = Reputation(0.0, 0.0, 0, now_ms) if row is None else as_reputation(row)
        after = before.after(event, now_ms)
        values = {name: getattr(after, name) for name in Reputation.__slots__}
        of = {"node_id": node_id, "kind": kind}
        connection.execute(self._db.upsert(reputation), of | values)

    def _set_log(
        self, connection: Connection, job_id: str, n: int, text: str, truncated: bool
    ) -> None:
        if len(text) > MAX_LOG:
            half = MAX_LOG // 2
            text, truncated = f"{text[:half]}\n… cut …\n{text[-half:]}", True
        row = {"job_id": job_id, "n": n, "text": text, "truncated": truncated}
        connection.execute(self._db.upsert(job_log), row)


_OPEN_ON = (
    select(attempt)
    .where(attempt.c.node_id == bindparam("b_id"), attempt.c.ended_ms.is_(None))
    .order_by(attempt.c.leased_ms, attempt.c.job_id)
)


def _set_running(connection: Connection, job_id: str) -> None:
    connection.execute(update(job).where(job.c.id == job_id).values(state=JobState.RUNNING))


def _set_attempt(connection: Connection, turn: Attempt, values: Mapping[str, Any]) -> None:
    mine = and_(attempt.c.job_id == turn.job_id, attempt.c.n == turn.n)
    connection.execute(update(attempt).where(mine).values(values))


def _is_out(connection: Connection, node_id: str) -> bool:
    state = select(node.c.state).where(node.c.id == node_id).with_for_update(key_share=True)
    return connection.execute(state).scalar() in {"revoked", "banned"}


def _pause(connection: Connection, node_id: str, now_ms: int) -> None:
    """Pause a node that has lost too much lately."""
    lately = and_(attempt.c.node_id == node_id, attempt.c.ended_ms > now_ms - HOUR_MS)
    query = select(attempt.c.ended_ms).where(lately, attempt.c.outcome.in_(list(HELD_AGAINST)))
    until_ms = paused_until(list(connection.execute(query).scalars()), now_ms)
    if until_ms is not None:
        connection.execute(
            update(node).where(node.c.id == node_id).values(paused_until_ms=until_ms)
        )
