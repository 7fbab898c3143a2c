"""Money after ten thousand failures: whatever ends, is repeated or comes late, each attempt is paid once.

A run is a list of steps, each of them a call of the store by one of two gateways, an agent, an owner, an admin or a
sweep. Before any statement of it, or before the commit, the process may be killed (its transaction is then undone),
and the call is repeated by whoever waits for its answer, or not; an answer may be lost after the commit, so that the
call comes twice. The clock goes on, and now and then back by a day.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy import event, func, select, text
from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.hosts.errors import HostError, NodeDrained, UnknownNode
from pocqueue.hosts.leases import JobState, Outcome
from pocqueue.hosts.records import Attempt, Beat, Report
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.database import Database, file_url
from pocqueue.hosts.tables import attempt, job, ledger, metadata, node, payout
from pocqueue.settings import HostsSettings
from tests.hosts.parts import Wallet, gpus, joined, sleep
from tests.support.waiting import Clock

NUM_NODES = 4
NUM_STEPS = 100


class Killed(Exception):
    """The process has ended here."""


class World(Closing):
    """A store that begins empty, the nodes and jobs in it, and the failures that came to pass."""

    def __init__(self, database: Database) -> None:
        _empty(database)
        self.clock = Clock()
        self.store = HostStore(database, HostsSettings(), clock=self.clock)
        self.failures: Counter[str] = Counter()
        self.jobs: list[str] = []
        self.left: int | None = None
        self._engine = database.engine
        event.listen(self._engine, "before_cursor_execute", self._statement)
        event.listen(self._engine, "commit", self._commit)
        # The first node was planted under the wallet of the third one.
        self.wallets = [Wallet() for _ in range(NUM_NODES - 1)]
        self.owners = [self.wallets[n] for n in (0, 1, 0, 2)]
        self.nodes = [
            joined(
                self.store,
                wallet=self.owners[n].address,
                proven=n > 0,
                gpus=gpus(1 + n % 2),
                protocol=1 + (n != 1),
            ).id
            for n in range(NUM_NODES)
        ]

    @override
    def close(self) -> None:
        """Let nobody be killed any more."""
        event.remove(self._engine, "before_cursor_execute", self._statement)
        event.remove(self._engine, "commit", self._commit)

    def _statement(self, *_: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    def _commit(self, *_: Any) -> None:
        self._statement()

    def call(self, failure: int, act: Callable[[], object]) -> None:
        """Do something that may fail in one of several ways."""
        if failure >= 2:
            # Killed before a statement or the commit; by some before the next one, too, and so on.
            for left in itertools.count((failure - 2) // 2):
                if not self._killed(left, act) or failure % 2:
                    break
        if failure % 2 == 0:
            self._try(act)
        if failure == 1:
            self.failures["answer lost"] += 1
            self._try(act)
            self._try(act)

    def _killed(self, left: int, act: Callable[[], object]) -> bool:
        """Do something with so many statements left to live; return whether that was not enough."""
        self.left = left
        try:
            if left % 2:
                self._try(act)
            else:
                with suppress(HostError):
                    act()
        except Killed:
            self.failures["killed"] += 1
            return True
        finally:
            self.left = None
        return False

    def _try(self, act: Callable[[], object]) -> None:
        # As a gateway calls it: what `act` does is kept when the group ends, whatever it has raised.
        with self.store.database.group(), suppress(HostError):
            act()

    def step(self, action: int, a: int, b: int, failure: int) -> None:
        """Do one of the things that happen."""
        store = self.store
        node_id, relay = self.nodes[a % NUM_NODES], ("here", "there")[b % 2]
        job_id = self.jobs[b % len(self.jobs)] if self.jobs else "none yet"
        n = 1 + a % 3
        socket = f"socket {b}"
        acts: list[Callable[[], object]] = [
            lambda: self._submit(a, b),
            lambda: self._place(job_id),
            lambda: (
                store.leases.started(job_id, n, node_id) if a % 2 else store.leases.sent(job_id, n)
            ),
            lambda: self._run(job_id, relay),
            lambda: self._finish(job_id, a, b, None),
            lambda: self._finish(job_id, a, b, n),
            lambda: self._late(job_id, a),
            lambda: store.leases.sweep(),
            lambda: store.leases.refuse(job_id, n, node_id, "no"),
            lambda: store.leases.cancel(job_id, actor="admin"),
            lambda: store.presence.connected(node_id, relay, socket),
            lambda: store.presence.disconnected(node_id, socket),
            lambda: store.presence.heard([Beat(node_id, socket, store.now_ms(), tuple(self.jobs))]),
            lambda: store.ledger.pay_out(),
            lambda: store.presence.relay_started(relay),
            lambda: self._decide(a, b),
            lambda: self._decide(a, b),
        ]
        self.clock.now_s += (0.3, 1.7, 5.0, 20.0, 65.0, 700.0, 4000.0, 1.0)[b % 8]
        if action >= 15 and b == 7:
            self.failures["clock"] += 1
            self.clock.now_s += 86_400 * (1 if a % 2 else -1)
        self.call(failure, acts[action])

    def _submit(self, a: int, b: int) -> None:
        # With an id of the caller's own: it may be asked for again.
        job_id = f"job {len(self.jobs)}"
        new = sleep(5, gpus=a % 3, timeout_s=(1, 10, 600)[b % 3], max_attempts=1 + b % 3)
        if a == 7:
            # The only kind that a node of nobody's is given.
            new = sleep(5, kind="test", only_node=self.nodes[b % NUM_NODES])
        self.store.jobs.submit(new, job_id=job_id)
        self.jobs.append(job_id)

    def _place(self, job_id: str) -> Attempt | None:
        turn = self.store.places.place(job_id)
        if not isinstance(turn, Attempt):
            return None
        node = self.store.nodes.get(turn.node_id)
        assert node.state == "active"
        assert node.proven or self.store.jobs.get(job_id).kind == "test"
        return turn

    def _run(self, job_id: str, relay: str) -> None:
        for one in self.nodes:
            self.store.presence.connected(one, relay, "s")
        turn = self._place(job_id)
        if turn is not None:
            self.store.leases.sent(job_id, turn.n)
            if turn.n % 2:
                self.store.leases.started(job_id, turn.n, turn.node_id)

    def _finish(self, job_id: str, a: int, b: int, n: int | None) -> None:
        statuses = ("completed", "completed", "failed", "timeout", "cancelled")
        claimed_ms = (None, 1500, 10**9, -5)[b % 4]
        report = Report(statuses[a % 5], log=f"{b}", claimed_ms=claimed_ms, n=n)  # type: ignore[arg-type]
        turns = self.store.jobs.attempts(job_id)
        if turns and n is None:
            # Whoever has it.
            self.store.leases.finish(job_id, turns[-1].node_id, report)
        else:
            self.store.leases.finish(job_id, self.nodes[a % NUM_NODES], report)

    def _late(self, job_id: str, a: int) -> None:
        turns = self.store.jobs.attempts(job_id)
        if turns:
            self.failures["late"] += 1
            turn = turns[a % len(turns)]
            self.store.leases.finish(job_id, turn.node_id, Report("completed", n=turn.n))

    def _decide(self, a: int, b: int) -> None:
        store, node_id, owner = self.store, self.nodes[a % NUM_NODES], self.owners[a % NUM_NODES]
        mine = {"actor": owner.address, "wallet": owner.address}
        match b:
            case 0 if a < NUM_NODES:
                store.nodes.set_state(node_id, "banned", actor="admin")
            case 0:
                store.owners.ban(owner.address, actor="admin")
            case 1:
                store.nodes.set_state(node_id, "draining", **mine)
            case 2:
                store.nodes.adopt(node_id, **mine)
            case 3:
                store.nodes.set_state(node_id, "draining", actor="admin")
            case 4:
                asked = store.owners.challenge(owner.address, "https://hosts.example.com")
                store.owners.prove(owner.address, asked.nonce, owner.sign(asked.text))
            case 5:
                before = store.nodes.get(node_id)
                with suppress(NodeDrained):
                    store.nodes.set_state(node_id, "active", **mine)
                if before.drained_by == "admin":
                    assert store.nodes.get(node_id).state == "draining"
            case _:
                store.nodes.set_state(node_id, "active", actor="admin")

    def check(self) -> None:
        """See that all of it agrees."""
        check(self.store)


def check(store: HostStore) -> None:
    """See that attempts, jobs, GPUs, the ledger and payouts agree."""
    assert store.ledger.differences() == []
    with store.database.read() as connection:
        rows = connection.execute(select(attempt)).all()
        jobs = {row.id: row for row in connection.execute(select(job))}
        entries = connection.execute(select(ledger)).all()
        paid_out = connection.execute(select(func.coalesce(func.sum(payout.c.micro), 0))).scalar()
        proven = {
            row.id: row.proven for row in connection.execute(select(node.c.id, node.c.proven))
        }
    by_kind = Counter[str]()
    balances = Counter[str]()
    for entry in entries:
        by_kind[entry.kind] += entry.micro
        balances[entry.node_id] += entry.micro
        # What is held is not paid out, whatever else its wallet has.
        assert entry.kind != "payout" or proven[entry.node_id]
    assert by_kind["job"] == sum(row.micro for row in rows)
    assert by_kind["payout"] == -(paid_out or 0)
    assert min(balances.values(), default=0) >= 0
    done = Counter(row.job_id for row in rows if row.outcome == Outcome.COMPLETED)
    assert set(done.values()) <= {1}
    taken: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        assert 0 <= row.micro <= 10_000 * jobs[row.job_id].timeout_s
        is_open = jobs[row.job_id].state in {JobState.LEASED, JobState.RUNNING}
        is_newest = row.n == jobs[row.job_id].attempts
        assert (row.outcome is None) == (is_open and is_newest)
        if row.outcome is None:
            assert not taken[row.node_id] & set(row.gpu_uuids)
            taken[row.node_id] |= set(row.gpu_uuids)
    for job_id, row in jobs.items():
        assert (row.state == JobState.COMPLETED) == (done[job_id] == 1)


STEPS = st.lists(
    st.tuples(st.integers(0, 16), st.integers(0, 7), st.integers(0, 7), st.integers(0, 14)),
    min_size=NUM_STEPS,
    max_size=NUM_STEPS,
)


def _empty(database: Database) -> None:
    """Delete everything, the ledger included, which takes its triggers away."""
    with database.write() as connection:
        if database.is_sqlite:
            connection.execute(text("DROP TRIGGER IF EXISTS ledger_no_DELETE"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())


def play(world: World, steps: list[tuple[int, int, int, int]]) -> Counter[str]:
    """Do the steps, then let everything come to its end, and look."""
    for step in steps:
        world.step(*step)
    world.check()
    world.clock.now_s += 5000
    store = world.store
    store.leases.sweep()
    for node_id in world.nodes:
        with suppress(UnknownNode):
            store.nodes.adopt(node_id, actor="admin")
    store.ledger.pay_out()
    world.check()
    # Nothing is held any more, and nothing is left of it but what banned nodes brought after their ban.
    for wallet in world.wallets:
        earned, balance = (
            store.ledger.earned_by_node(wallet.address),
            store.ledger.balance(wallet.address),
        )
        owed = [n for n in earned if store.nodes.get(n).state != "banned"]
        assert balance.paid >= sum(earned[node_id] for node_id in owed)
    assert store.ledger.pay_out() == []
    return world.failures


@pytest.mark.long
@pytest.mark.parametrize(("kind", "num_runs"), [("sqlite", 46), ("postgresql", 3)])
def test_ten_thousand_failures_and_every_attempt_is_paid_once(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, num_runs: int
) -> None:
    """The ledger's sum is that over the attempts, and no GPU ever had two jobs; on PostgreSQL a part of it."""
    failures: Counter[str] = Counter()
    url = file_url(tmp_path / "hosts.sqlite3")
    with Database(url if kind == "sqlite" else request.getfixturevalue("postgres_url")) as database:
        if kind == "sqlite":
            # Nothing of it has to outlive the machine.
            event.listen(database.engine, "connect", _hurry)
        database.check()

        @settings(max_examples=num_runs, suppress_health_check=list(HealthCheck))
        @given(STEPS)
        def run(steps: list[tuple[int, int, int, int]]) -> None:
            with World(database) as world:
                failures.update(play(world, steps))

        run()
    assert sum(failures.values()) >= (10_000 if kind == "sqlite" else 100), failures
    assert min(failures[kind] for kind in ("killed", "answer lost", "late", "clock")) > 0, failures


def _hurry(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


@pytest.mark.parametrize("left", range(12))
def test_a_result_that_dies_at_any_statement_is_paid_by_its_repetition(
    database_url: str, left: int
) -> None:
    """Before each statement of it, and before the commit; the agent brings it again."""
    with Database(database_url) as database, World(database) as world:
        world.step(0, 0, 1, 0)
        world.step(3, 0, 0, 0)
        [turn] = world.store.jobs.attempts("job 0")
        world.clock.now_s += 5
        world.left = left
        with suppress(Killed):
            world.store.leases.finish("job 0", turn.node_id, Report("completed"))
        world.left = None
        world.store.leases.finish("job 0", turn.node_id, Report("completed"))
        world.check()
        assert world.store.jobs.attempts("job 0")[0].micro == 50_000
