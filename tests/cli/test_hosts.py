"""`pocqueue hosts`: tokens, nodes, jobs, the audit and payouts, on a database that a gateway may be using."""

from __future__ import annotations

import csv
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import update
from typer.testing import CliRunner, Result

from pocqueue.cli import app, host_store
from pocqueue.errors import PocqueueError, SettingsError
from pocqueue.hosts.errors import JobOver, JobRefused
from pocqueue.hosts.migrations import HEAD
from pocqueue.hosts.records import Node, Report
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.tables import attempt
from pocqueue.settings import HostsSettings
from tests.hosts.parts import facts, joined, new_wallet, running, sleep
from tests.support.commands import pocqueue
from tests.support.postgresql import PostgresServer


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["hosts", *arguments])


def refused(*arguments: str) -> str:
    """Return the sentence with which a command is refused; `main` prints it and leaves with code 2."""
    result = run(*arguments)
    assert isinstance(result.exception, PocqueueError), result.output
    return str(result.exception)


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder."""
    monkeypatch.setenv("POCQUEUE_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(state_dir: Path) -> Iterator[HostStore]:
    """The store that the commands use, beside them."""
    database = Database(f"sqlite:///{state_dir}/hosts.sqlite3")
    database.check()
    with HostStore(database, HostsSettings()) as store:
        yield store


@pytest.fixture
def node(store: HostStore) -> Node:
    """A node that has joined and is not connected."""
    return joined(store, connect=False)


def earn(store: HostStore, node: Node, micro: int = 50_000) -> None:
    """Let a node earn something."""
    assert store.ledger.correct(node.id, micro, str(uuid.uuid4()))


def test_a_token_lets_a_machine_of_the_wallet_in(store: HostStore) -> None:
    """It alone goes to standard output; the operator says whose it is."""
    wallet = new_wallet()
    result = run("token", "issue", "--wallet", wallet)
    token = result.stdout.strip()
    joined_node = store.nodes.register(token, facts(), address="")
    assert (joined_node.wallet, joined_node.proven) == (wallet, True)
    assert "base58 of 32 bytes" in refused("token", "issue", "--wallet", "x")


def test_nodes_are_listed(store: HostStore, node: Node) -> None:
    """For people and as JSON; of one wallet alone as well."""
    other = joined(store, connect=False, hostname="[red]rig[/]")
    shown = run("node", "list").output
    assert node.id in shown
    assert "[red]rig[/]" in shown
    assert "2 nodes." in shown
    [mine] = json.loads(run("node", "list", "--json", "--wallet", other.wallet).stdout)
    assert (mine["id"], mine["status"]) == (other.id, "offline")
    assert "No nodes." in run("node", "list", "--wallet", new_wallet()).output


def test_draining_and_banning(store: HostStore, node: Node) -> None:
    """A drained node can be taken back; a ban is for good."""
    run("node", "drain", node.id)
    assert store.nodes.get(node.id).state == "draining"
    run("node", "drain", node.id, "--undo")
    assert store.nodes.get(node.id).state == "active"
    earn(store, node)
    assert "is banned." in run("node", "ban", node.id).output
    assert store.nodes.get(node.id).state == "banned"
    assert "There is no such node" in refused("node", "drain", node.id)
    assert "There is no such node" in refused("node", "ban", "x")
    for both in ([], [node.id, "--wallet", node.wallet]):
        assert "name one node, or a wallet" in refused("node", "ban", *both)
    for command in ("ban", "list"):
        slip = refused("node", command, "--wallet", f"{node.wallet}0")
        assert "allowed: the address of a Solana wallet" in slip
    other = joined(store, connect=False)
    assert "with 1 node." in run("node", "ban", "--wallet", other.wallet).output
    assert store.nodes.get(other.id).state == "banned"


def test_a_node_that_is_held_is_adopted(store: HostStore) -> None:
    """The list says which; what it has earned can be paid out then."""
    node = joined(store, connect=False, proven=False)
    earn(store, node)
    assert "pay is held" in run("node", "list").output.replace("\n", " ")
    assert "0 HYPER for 0 wallets" in run("payout").output
    done = run("node", "adopt", node.id)
    assert "0.05 HYPER" in done.output.replace("\n", " ")
    assert "pay is held" not in run("node", "list").output.replace("\n", " ")
    assert "0.05 HYPER for 1 wallet" in run("payout").output
    assert "There is no such node" in refused("node", "adopt", "x")


def test_a_job_from_submission_to_its_log(store: HostStore, node: Node) -> None:
    """Its id goes to standard output; what a stranger's machine wrote cannot steer the terminal."""
    # For this node alone: another job that a stranger's node fails would go to another one.
    alone = ("--node", node.id)
    result = run(
        "job", "submit", "sleep", "seconds=5", "--timeout", "60", "--priority", "3", *alone
    )
    job_id = result.stdout.strip()
    assert "No gateway could be told" in result.stderr
    job = store.jobs.get(job_id)
    assert (job.spec["argv"], job.timeout_s, job.priority) == (["sleep", "5"], 60, 3)
    store.presence.connected(node.id, "here", "s")
    running(store, job_id)
    store.leases.finish(job_id, node.id, Report("failed", log="a\n\x1b[2Jb", exit_code=3))
    assert "sleep 5" in run("job", "list", "--state", "failed").output
    assert "No jobs." in run("job", "list", "--state", "queued").output
    assert [one["id"] for one in json.loads(run("job", "list", "--json").stdout)] == [job_id]
    shown = run("job", "show", job_id).output
    assert f"failed on {node.id}, exit code 3, 0 HYPER" in shown
    assert json.loads(run("job", "show", job_id, "--json").stdout)["attempts"][0]["exit_code"] == 3
    assert run("job", "log", job_id).output == "a\n·[2Jb"
    assert isinstance(run("job", "cancel", job_id).exception, JobOver)
    waiting = run("job", "submit", "sleep", "seconds=5").stdout.strip()
    assert "is cancelled" in run("job", "cancel", waiting).output
    for command in ("show", "log", "cancel"):
        assert "There is no such job" in refused("job", command, "x")


def test_a_database_that_is_always_written_to_is_waited_for(store: HostStore) -> None:
    """As by a gateway whose nodes all come back: whoever waits for SQLite has to look at the right moment."""
    with host_store.open_store() as opened, opened.database.read() as connection:
        patience_ms = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    assert patience_ms >= 60_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sleep"], "parameters.seconds is missing"),
        (["sleep", "5"], "'5' is no parameter; allowed: such as seconds=5"),
        (["sleep", "seconds=five"], "parameters.seconds is 'five'"),
        (["sleep", "seconds=-1"], "allowed: a whole number from 0 to 3600"),
        (["rm", "path=/"], "is no command of the list; allowed: sleep, gpus"),
        (["trainer", "--kind", "container"], "the operator's list has no image"),
        (["sleep", "seconds=5", "--node", "x"], "There is no such node"),
        (["x" * 101, "--kind", "container"], "name is not allowed"),
    ],
)
def test_jobs_that_are_refused(store: HostStore, words: list[str], said: str) -> None:
    """With what would have been taken; nothing is queued."""
    assert said in refused("job", "submit", *words)
    assert not any(store.jobs.counts().values())


def test_a_list_of_ones_own(
    store: HostStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands with numbers, and containers with their words behind `--`."""
    path = tmp_path / "commands.toml"
    digest = "ab" * 32
    path.write_text(
        '[command.gain]\nargv = ["gain", "{by}"]\n'
        'parameters.by = {type = "number", min = 0, max = 2}\n'
        f'[image]\ntrainer = "lab/trainer@sha256:{digest}"\n'
    )
    monkeypatch.setenv("POCQUEUE_HOSTS_COMMANDS_FILE", str(path))
    job_id = run("job", "submit", "gain", "by=1.5").stdout.strip()
    assert store.jobs.get(job_id).spec["argv"] == ["gain", "1.5"]
    words = ("trainer", "--kind", "container", "--gpus", "1", "--", "train", "--fast")
    job = store.jobs.get(run("job", "submit", *words).stdout.strip())
    assert job.spec["argv"] == ["train", "--fast"]
    assert job.spec["image"] == f"lab/trainer@sha256:{digest}"
    assert isinstance(run("job", "submit", "sleep", "seconds=1").exception, JobRefused)


def test_the_audit_fails_on_a_difference(store: HostStore, node: Node) -> None:
    """Exit code 1, and a sentence for each."""
    job = store.jobs.submit(sleep())
    store.presence.connected(node.id, "here", "s")
    running(store, job.id)
    store.leases.finish(job.id, node.id, Report("completed"))
    assert run("audit").exit_code == 0
    [turn] = store.jobs.attempts(job.id)  # a second or more on a machine that is busy
    with store.database.write() as connection:
        connection.execute(update(attempt).values(micro=7))
    result = run("audit")
    assert result.exit_code == 1
    assert (
        f"Attempt 1 of job {job.id}: its times say {turn.micro} micro-HYPER, its row has 7"
        in result.output
    )
    assert len(json.loads(run("audit", "--json").stdout)) == 1


def test_payouts_go_to_a_file_once(store: HostStore, node: Node, tmp_path: Path) -> None:
    """Looking changes nothing; a batch can be written again, and its wallets are not paid twice."""
    earn(store, node)
    poor = joined(store, connect=False)
    earn(store, poor, 9_999)
    shown = run("payout").output
    assert "0.05 HYPER for 1 wallet; nothing was changed." in shown
    path = tmp_path / "payouts.csv"
    result = run("payout", "--csv", str(path))
    assert "0.05 HYPER for 1 wallet, batch " in result.stderr
    batch = result.stderr.strip().rstrip(".").rpartition(" ")[2]
    with path.open() as file:
        [row] = csv.DictReader(file)
    assert (row["wallet"], row["hyper"]) == (node.wallet, "0.05")
    assert "is there already: name a new file" in refused("payout", "--csv", str(path))
    for words in (["--csv", "-"], []):
        assert run("payout", *words, "--batch", batch).stdout == path.read_text()
    listed = run("payout", "--list").output
    assert batch in listed
    assert "0.05" in listed
    assert run("payout", "--csv", "-").stdout == "payout,wallet,hyper\n"
    shown = run("payout", "--at-least", "0.000001").output
    assert "0.009999 HYPER for 1 wallet" in shown
    for bad, said in (
        (["--list", "--batch", batch], "--list changes nothing"),
        (["--csv", "-", "--batch", "x"], "no payouts of that name"),
        (["--csv", "/none/payouts.csv"], "cannot be written"),
    ):
        assert said in refused("payout", *bad)
    for least in ("nan", "inf", "0"):
        assert run("payout", "--csv", "-", "--at-least", least).exit_code == 2
    assert store.ledger.balance(node.wallet).payable == 0
    assert store.ledger.differences() == []


def test_whoever_is_killed_while_the_file_is_written_knows_its_batch(
    store: HostStore, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said before; without that, the list has it."""
    assert "Nothing was paid out yet" in run("payout", "--list").output
    earn(store, node)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", die)
    result = run("payout", "--csv", str(tmp_path / "payouts.csv"))
    [batch] = store.ledger.batches()
    assert f"0.05 HYPER for 1 wallet, batch {batch.id}" in result.stderr.replace("\n", " ")
    assert node.wallet in run("payout", "--batch", batch.id).stdout


def test_migrating(store: HostStore, postgres_server: PostgresServer, tmp_path: Path) -> None:
    """PostgreSQL is refused until it is done; then everything else works there as well."""
    assert f"has version {HEAD} already." in run("migrate").output
    url = {"POCQUEUE_HOSTS_DATABASE_URL": postgres_server.url(postgres_server.create())}
    listed = pocqueue(tmp_path, "hosts", "node", "list", **url)
    assert listed.returncode == 2
    assert "run `pocqueue hosts migrate` once" in listed.stderr
    done = pocqueue(tmp_path, "hosts", "migrate", **url)
    assert f"has version {HEAD} now (before: none)." in done.stdout
    assert pocqueue(tmp_path, "hosts", "audit", **url).returncode == 0


def test_gateways_are_told(
    store: HostStore, node: Node, child_env: dict[str, str], tmp_path: Path
) -> None:
    """A job is placed and a banned node is put out by the gateway at once, not by its next look."""
    url = {"POCQUEUE_REDIS_URL": child_env["POCQUEUE_REDIS_URL"]}
    with redis.Redis.from_url(url["POCQUEUE_REDIS_URL"]) as client:
        client.flushall()
        done = pocqueue(tmp_path, "hosts", "job", "submit", "sleep", "seconds=5", **url)
        assert (done.returncode, done.stderr) == (0, "")
        [message] = client.lrange("hosts", 0, -1)
        assert json.loads(message)["headers"]["task"] == "hosts.place_v1"
        store.presence.connected(node.id, "here", "s")
        assert pocqueue(tmp_path, "hosts", "node", "ban", node.id, **url).returncode == 0
        [message] = client.lrange("relay.here", 0, -1)
        assert json.loads(message)["headers"]["task"] == "hosts.deliver_v1"


def test_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that only serve GPUs have none of them."""
    import sys

    for name in [name for name in sys.modules if name.startswith("pocqueue.hosts")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    for words in (("node", "list"), ("migrate",)):
        assert isinstance(run(*words).exception, SettingsError)
        assert "pip install 'pocqueue[hosts]'" in refused(*words)
