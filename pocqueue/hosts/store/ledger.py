"""Money: what nodes earned, what was paid out, and the proof that both are right.

A row of the ledger is a fact that pays once: kind and `ref` are unique, a repeated one changes nothing, and no row
is ever changed or deleted (triggers see to it). Each row is of one node, so that a node's balance is the sum of its
rows, and a wallet's that of its nodes. A mistake is mended by a row of its own.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, String, and_, cast, except_, func, select, text

from pocqueue.hosts.errors import LedgerError, UnknownNode
from pocqueue.hosts.leases import Outcome
from pocqueue.hosts.pay import earned, most_paid_s
from pocqueue.hosts.records import Balance
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.log import note
from pocqueue.hosts.tables import attempt, job, ledger, node, payout, wallet


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the ledger."""

    id: int
    at_ms: int
    wallet: str
    node_id: str
    kind: str  #: ``job``, ``payout``, ``forfeit`` or ``correction``
    ref: str  #: the fact that it is for
    micro: int


@dataclass(frozen=True, slots=True)
class Payout:
    """What one wallet gets, to be sent by whoever has the key."""

    id: str
    batch: str  #: those that were made together
    wallet: str
    micro: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Payouts that were made together."""

    id: str
    at_ms: int
    num: int  #: of payouts, each of another wallet
    micro: int  #: of all of them


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger and the payouts."""

    _db: Database
    _now_ms: Callable[[], int]

    def balance(self, address: str) -> Balance:
        """Return what a wallet has earned; all 0 if it is not known."""
        columns = node.c.proven, node.c.state, ledger.c.kind
        query = (
            select(*columns, func.sum(ledger.c.micro))
            .join(node, node.c.id == ledger.c.node_id)
            .where(ledger.c.wallet == address)
            .group_by(*columns)
        )
        earned = held = paid = payable = 0
        with self._db.read() as connection:
            for is_proven, state, kind, micro in connection.execute(query):
                if not is_proven:
                    held += int(micro)
                elif kind == "payout":
                    paid -= int(micro)
                else:
                    earned += int(micro)
                # As `_payable` has it: what a banned node brought after its ban is nobody's.
                payable += int(micro) if is_proven and state != "banned" else 0
        return Balance(earned, held, paid, payable)

    def earned_by_node(self, address: str) -> dict[str, int]:
        """Return what each node of a wallet has earned, paid out or not; without those that have no row."""
        with self._db.read() as connection:
            rows = connection.execute(
                select(ledger.c.node_id, func.sum(ledger.c.micro))
                .where(ledger.c.wallet == address, ledger.c.kind != "payout")
                .group_by(ledger.c.node_id)
            ).all()
        return {node_id: int(micro) for node_id, micro in rows}

    def correct(self, node_id: str, micro: int, ref: str) -> bool:
        """Add a row that mends a mistake; return False if one with this `ref` is there already.

        Args:
            micro: below 0 to take away.
            ref: of what it mends, in the operator's words; once.

        Raises:
            UnknownNode: there is no such node.
            LedgerError: it is about nothing.
        """
        if micro == 0 or not ref:
            raise LedgerError("A correction has an amount, and words for what it mends.")
        with self._db.write() as connection:
            owner = connection.execute(select(node.c.wallet).where(node.c.id == node_id)).scalar()
            if owner is None:
                raise UnknownNode
            is_new = add(
                self._db, connection, self._now_ms(), owner, node_id, "correction", ref, micro
            )
            if is_new:
                note(connection, self._now_ms(), "admin", "ledger.correct", f"{node_id} {ref}")
            return is_new

    def payable(self) -> list[Payout]:
        """Return what could be paid out now, by wallet; nothing is changed. `id` and `batch` are empty."""
        with self._db.read() as connection:
            sums = _payable(connection)
        wallets: dict[str, int] = {}
        for row in sums:
            wallets[row.wallet] = wallets.get(row.wallet, 0) + int(row.micro)
        now_ms = self._now_ms()
        return [
            Payout("", "", owner, micro, now_ms)
            for owner, micro in sorted(wallets.items())
            if micro > 0
        ]

    def pay_out(self, *, at_least: int = 1) -> list[Payout]:
        """Take what is payable out of the ledger, to be sent by whoever has the key.

        Of proven wallets' nodes that are not banned. Two at a time are one after the other, and the second
        finds nothing left.

        Args:
            at_least: of a wallet, micro-HYPER; one with less waits.
        """
        batch, now_ms, made = str(uuid.uuid4()), self._now_ms(), []
        with self._db.write() as connection:
            _hold(self._db, connection)
            by_wallet: dict[str, list[Any]] = {}
            for row in _payable(connection):
                by_wallet.setdefault(row.wallet, []).append(row)
            for owner, rows in sorted(by_wallet.items()):
                total = sum(int(row.micro) for row in rows)
                if total < max(1, at_least):
                    continue
                one = Payout(str(uuid.uuid4()), batch, owner, total, now_ms)
                values = {"id": one.id, "batch": batch, "wallet": owner, "micro": total}
                connection.execute(payout.insert().values(**values, at_ms=now_ms))
                for row in rows:
                    ref = f"payout:{one.id}:{row.node_id}"
                    add(
                        *(self._db, connection, now_ms, owner, row.node_id, "payout", ref),
                        -int(row.micro),
                    )
                made.append(one)
            if made:
                note(connection, now_ms, "admin", "payout", batch)
        return made

    def payouts(self, batch: str) -> list[Payout]:
        """Return all payouts of a batch, by wallet; none: there is no such batch."""
        with self._db.read() as connection:
            rows = connection.execute(select(payout).where(payout.c.batch == batch))
            # Databases have their own order of letters.
            return sorted((Payout(**row) for row in rows.mappings()), key=attrgetter("wallet"))

    def batches(self) -> list[Batch]:
        """Return the batches of payouts that were made, newest first."""
        at_ms = func.min(payout.c.at_ms)
        query = select(payout.c.batch, at_ms, func.count(), func.sum(payout.c.micro))
        query = query.group_by(payout.c.batch).order_by(at_ms.desc(), payout.c.batch)
        with self._db.read() as connection:
            rows = connection.execute(query).all()
        return [Batch(name, at, num, int(micro)) for name, at, num, micro in rows]

    def differences(self) -> list[str]:
        """Compare the ledger with what it is about, in one moment; return a sentence for each difference.

        Each attempt's pay is worked out again from its times, and stands in the ledger; each row of the ledger
        has its attempt; payouts are what was taken out for them.
        """
        with self._db.read() as connection:
            return [*_of_attempts(connection), *_of_payouts(connection)]


def add(
    db: Database,
    connection: Connection,
    at_ms: int,
    owner: str,
    node_id: str,
    kind: str,
    ref: str,
    micro: int,
) -> bool:
    """Add a row within a transaction; return False if the fact was there already. 0 is no row."""
    if micro == 0:
        return False
    row = {"at_ms": at_ms, "wallet": owner, "node_id": node_id, "kind": kind, "ref": ref}
    new = db.insert(ledger).values(**row, micro=micro).on_conflict_do_nothing()
    return connection.execute(new.returning(ledger.c.id)).first() is not None


def forfeit(db: Database, connection: Connection, at_ms: int, owner: str, node_id: str) -> int:
    """Take away within a transaction what a node has not been paid yet; return how much."""
    _hold(db, connection)
    total = select(func.sum(ledger.c.micro)).where(ledger.c.node_id == node_id)
    left = int(connection.execute(total).scalar() or 0)
    if left > 0:
        add(db, connection, at_ms, owner, node_id, "forfeit", f"node:{node_id}:{at_ms}", -left)
    return max(0, left)


def _hold(db: Database, connection: Connection) -> None:
    """Wait until all rows that others add are there, and let nobody add one before this transaction ends.

    So what a payout or a forfeit takes out is just what has a lower id. Whoever holds nodes and the ledger takes the
    nodes first. On SQLite all that write are one after the other anyway.
    """
    if not db.is_sqlite:
        connection.execute(text("LOCK TABLE ledger IN SHARE ROW EXCLUSIVE MODE"))


def _payable(connection: Connection) -> Sequence[Any]:
    """Return the balance of each node that may be paid out, with its wallet."""
    return connection.execute(
        select(ledger.c.wallet, ledger.c.node_id, func.sum(ledger.c.micro).label("micro"))
        .join(node, node.c.id == ledger.c.node_id)
        .join(wallet, wallet.c.address == ledger.c.wallet)
        .where(node.c.proven, node.c.state != "banned", wallet.c.banned_ms.is_(None))
        .group_by(ledger.c.wallet, ledger.c.node_id)
        .having(func.sum(ledger.c.micro) != 0)
    ).all()


def _of_attempts(connection: Connection) -> list[str]:
    ref = "attempt:" + attempt.c.job_id + ":" + cast(attempt.c.n, String)
    # By nothing but what is unique: with the node in it, too, SQLite would go through all rows of that for each.
    same = and_(ledger.c.kind == "job", ledger.c.ref == ref)
    paid = ledger.c.node_id.label("paid_node"), ledger.c.micro.label("paid")
    rows = connection.execute(
        select(attempt, job.c.timeout_s, job.c.spec, job.c.rate_micro, *paid)
        .join(job, job.c.id == attempt.c.job_id)
        .outerjoin(ledger, same),
        # They may be more than there is memory for.
        execution_options={"yield_per": 1000},
    )
    found = []
    for row in rows:
        due = earned(
            None if row.outcome is None else Outcome(row.outcome),
            sent_ms=row.sent_ms,
            ended_ms=row.ended_ms,
            most_s=most_paid_s(row.spec, row.timeout_s),
            claimed_ms=row.claimed_ms,
            rate_micro=row.rate_micro,
        )
        got = row.paid if row.paid_node == row.node_id else 0
        if not row.micro == due == got:
            found.append(
                f"Attempt {row.n} of job {row.job_id}: its times say {due} micro-HYPER, its row has {row.micro}, "
                f"the ledger {got} for its node."
            )
    of_jobs = ledger.c.kind == "job"
    strays = except_(select(ledger.c.ref).where(of_jobs), select(ref)).order_by("ref")
    return found + [
        f"The ledger has a row for {stray}, which is not."
        for stray in connection.execute(strays).scalars()
    ]


def _of_payouts(connection: Connection) -> list[str]:
    taken = Counter[str]()
    rows = select(ledger.c.ref, ledger.c.micro).where(ledger.c.kind == "payout")
    for ref, micro in connection.execute(rows):
        taken[ref.split(":")[1]] -= micro
    made = {row.id: row.micro for row in connection.execute(select(payout.c.id, payout.c.micro))}
    return [
        f"Payout {one}: {made.get(one, 0)} micro-HYPER, and the ledger has {taken[one]} for it."
        for one in sorted(made.keys() | taken.keys())
        if made.get(one, 0) != taken[one]
    ]
