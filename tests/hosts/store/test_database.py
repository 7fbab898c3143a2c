"""The database: its versions, its transactions, and what is wrong with it in one sentence."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import exc, select, text

from pocqueue.hosts.errors import DatabaseUnavailable, DatabaseUnfit
from pocqueue.hosts.migrations import HEAD, config
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.database import FILE_NAME, Database, file_url
from pocqueue.hosts.tables import announcement, audit, ledger
from pocqueue.settings import HostsSettings
from tests.hosts.parts import joined
from tests.support.fixtures import SettingsFactory
from tests.support.postgresql import PostgresServer
from tests.support.small_disk import fill, small_disk
from tests.support.waiting import Clock


def test_versions_make_the_tables(database_url: str) -> None:
    """Applying all of them gives what `tables.py` says, and `HEAD` is the newest."""
    with Database(database_url) as database, database.write() as connection:
        found = config(connection)
        command.check(found)
        assert ScriptDirectory.from_config(found).get_current_head() == HEAD


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_newer_version_keeps_what_was_there(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, kind: str
) -> None:
    """Drains are whose they were, by the audit; GPUs are new to the pool of rounds."""
    url = file_url(tmp_path / "hosts.sqlite3")
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.url(server.create())
    with Database(url) as database:
        with database.write() as connection:
            command.upgrade(config(connection), "0001")
            connection.execute(text("INSERT INTO wallet (address) VALUES ('w')"))
            for node_id, state in (("a", "draining"), ("o", "draining"), ("i", "active")):
                connection.execute(
                    text(
                        "INSERT INTO node (id, wallet, proven, state, hostname, os, protocol, isolation, kinds, "
                        "address, first_ms, last_ms) VALUES (:id, 'w', :yes, :state, 'h', 'o', 1, 'none', '[]', '', 1, 1)"
                    ),
                    {"id": node_id, "state": state, "yes": True},
                )
            for actor, node_id in (("w", "a"), ("admin", "a"), ("admin", "i"), ("w", "o")):
                row = {"actor": actor, "subject": node_id, "at_ms": 1, "action": "node.draining"}
                connection.execute(audit.insert().values(row))
            connection.execute(
                text(
                    "INSERT INTO node_gpu (node_id, uuid, position, name, healthy) VALUES ('a', 'u', 0, 'n', :yes)"
                ),
                {"yes": True},
            )
        if kind == "postgresql":
            with pytest.raises(DatabaseUnfit, match="has tables of version 0001"):
                database.check()
            assert database.migrate() == "0001"
        database.check()
        with HostStore(database, HostsSettings(), clock=clock) as store:
            found = {node_id: store.nodes.get(node_id) for node_id in "aoi"}
        assert {one.id: one.drained_by for one in found.values()} == {
            "a": "admin",
            "o": "w",
            "i": None,
        }
        [gpu] = found["a"].gpus
        assert (gpu.route, gpu.tier) == (None, "new")


def test_rows_of_the_ledger_stay_as_they_are(store: HostStore) -> None:
    """Whatever program tries, the database refuses."""
    node = joined(store)
    assert store.ledger.correct(node.id, 5, "a gift")
    for statement in ("UPDATE ledger SET micro = 7", "DELETE FROM ledger"):
        with (
            pytest.raises(exc.DBAPIError, match="append-only"),
            store.database.write() as connection,
        ):
            connection.execute(text(statement))
    with store.database.read() as connection:
        assert connection.execute(select(ledger.c.micro)).scalars().all() == [5]


def test_a_transaction_is_all_or_nothing(store: HostStore) -> None:
    """What raises within it leaves nothing behind."""
    row = {"wallet": "w", "hostname": "h", "gpus": [], "os": "o", "at_ms": 1}

    def fail() -> None:
        with store.database.write() as connection:
            connection.execute(announcement.insert().values(row))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with store.database.read() as connection:
        assert connection.execute(select(announcement)).first() is None


@pytest.mark.parametrize("said", ["a\0b", "half \ud83d pair", "whole \U0001f600", "ü"])
def test_texts_of_strangers_are_taken(store: HostStore, said: str) -> None:
    """NUL and half surrogate pairs, which neither database takes, become a mark."""
    row = {"wallet": said, "hostname": "h", "gpus": [said], "os": "o", "at_ms": 1}
    with store.database.write() as connection:
        connection.execute(announcement.insert().values(row))
        [found] = connection.execute(select(announcement)).all()
    assert found.wallet == said.replace("\0", "\ufffd").replace("\ud83d", "\ufffd")
    assert found.gpus == [said]


def test_sqlite_brings_its_tables_by_itself(settings_for: SettingsFactory, tmp_path: Path) -> None:
    """In a file of the state folder that only its owner can read; a second time nothing is to be done."""
    for _ in range(2):
        with HostStore.open(settings_for(), HostsSettings()) as store:
            assert store.nodes.listed() == []
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_two_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """One makes the tables, the other waits."""
    code = (
        "from pocqueue.hosts.store.database import Database\n"
        f"Database({file_url(tmp_path / 'new.sqlite3')!r}, busy_timeout_s=120).check()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]


def test_postgresql_is_migrated_by_a_person(postgres_server: PostgresServer) -> None:
    """A service refuses, and says what to do; the command does it, once."""
    with Database(postgres_server.url(postgres_server.create())) as database:
        with pytest.raises(DatabaseUnfit, match=r"has no tables yet.*`pocqueue hosts migrate`"):
            database.check()
        assert database.migrate() is None
        database.check()
        assert database.migrate() == HEAD


def test_tables_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    """The newer program that wrote them is to be used."""
    with Database(file_url(tmp_path / "hosts.sqlite3")) as database:
        database.check()
        with database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        for refuse in (database.check, database.migrate):
            with pytest.raises(DatabaseUnfit, match="tables of version 9999"):
                refuse()


def test_another_programs_database_is_left_alone(postgres_server: PostgresServer) -> None:
    """One that has tables, and not ours."""
    with Database(postgres_server.url(postgres_server.create())) as database:
        with database.write() as connection:
            connection.execute(text("CREATE TABLE theirs (n integer)"))
        with pytest.raises(DatabaseUnfit, match="is the database of another program"):
            database.migrate()


def test_a_locked_file_is_waited_for_and_then_named(tmp_path: Path) -> None:
    """Another program holds it; nothing is written, and the next try goes on."""
    path = tmp_path / "hosts.sqlite3"
    with Database(file_url(path), busy_timeout_s=0.05) as database:
        database.check()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with (
            pytest.raises(DatabaseUnavailable, match=r"database is locked\. Another program holds"),
            database.write() as connection,
        ):
            connection.execute(text("DELETE FROM announcement"))
        other.close()
        with database.write() as connection:
            connection.execute(text("DELETE FROM announcement"))


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, clock: Clock) -> None:
    """What was there can be read, and written to again once there is room."""
    with small_disk(tmp_path / "disk") as disk:
        database = Database(file_url(disk / "hosts.sqlite3"))
        database.check()
        with HostStore(database, HostsSettings(), clock=clock) as store:
            node = joined(store)
            filled = fill(disk)

            def write() -> None:
                for n in range(1000):
                    store.ledger.correct(node.id, 1, f"{n} {'x' * 4000}")

            with pytest.raises(DatabaseUnavailable, match=r"full\. Make room on its disk"):
                write()
            kept = len(store.overview.earnings(node.wallet, limit=2000))
            assert store.nodes.get(node.id) == node
            filled.unlink()
            assert store.ledger.correct(node.id, 1, "room again")
            assert len(store.overview.earnings(node.wallet, limit=2000)) == kept + 1
            assert store.ledger.differences() == []


def test_a_server_that_restarts_is_waited_for(clock: Clock) -> None:
    """While it is away there is a sentence without a password; then the same store goes on."""
    with PostgresServer() as server:
        database = Database(server.url(server.create()).replace("postgres@", "postgres:hunter2@"))
        database.migrate()
        with HostStore(database, HostsSettings(), clock=clock) as store:
            node = joined(store)
            server.stop()
            with pytest.raises(DatabaseUnavailable) as caught:
                store.nodes.get(node.id)
            assert "hunter2" not in str(caught.value)
            assert "Is the server running" in str(caught.value)
            server.start()
            database.wait(database.check)
            assert store.nodes.get(node.id) == node


def test_connections_that_the_server_has_ended(clock: Clock) -> None:
    """Between two transactions that is no error at all; within one it is a sentence, and nothing was written."""
    with PostgresServer() as server:
        database = Database(server.url(server.create()))
        database.migrate()
        with HostStore(database, HostsSettings(), clock=clock) as store:
            node = joined(store)
            server.end_connections()
            assert store.nodes.get(node.id) == node

            def lose_it() -> None:
                with database.write() as connection:
                    connection.execute(text("DELETE FROM node_gpu"))
                    server.end_connections()
                    connection.execute(text("SELECT 1"))

            with pytest.raises(DatabaseUnavailable, match="Try again"):
                lose_it()
            assert store.nodes.get(node.id) == node


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////proc/none/hosts.sqlite3", "cannot be opened"),
        ("sqlite:///", "names no file"),
        ("postgresql+psycopg://u:hunter2@host:none/db", "cannot be read; allowed: sqlite:///PATH"),
        ("postgresql+psycopg://u:hunter2@127.0.0.1:1/db", "Is the server running"),
    ],
)
def test_a_database_that_cannot_be_had_is_one_sentence(
    settings_for: SettingsFactory, url: str, words: str
) -> None:
    """It names what to mend, and no password."""
    with pytest.raises((DatabaseUnfit, DatabaseUnavailable), match=words) as caught:
        HostStore.open(settings_for(), HostsSettings(database_url=SecretStr(url)))
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """It is left as it is."""
    path = tmp_path / "hosts.sqlite3"
    path.write_text("no database at all, " * 100)
    before = path.read_bytes()
    with Database(file_url(path)) as database, pytest.raises(DatabaseUnfit, match="not a database"):
        database.check()
    assert path.read_bytes() == before
