"""Fixtures for GPU hosts: a store on each of the two databases, and a clock that stands still.

- `database_url`: of an empty database with the tables in it; each test that uses it runs on SQLite and PostgreSQL.
- `store`: a store on it, whose time is `clock`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.database import Database, file_url
from pocqueue.hosts.tables import metadata
from pocqueue.settings import HostsSettings
from tests.support.postgresql import PostgresServer
from tests.support.waiting import Clock


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """Return the URL of one database with the tables in it, for all tests of the run."""
    url = postgres_server.url(postgres_server.create())
    with Database(url) as database:
        database.migrate()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database with the tables in it, and nothing in these."""
    if request.param == "sqlite":
        url = file_url(tmp_path / "hosts.sqlite3")
        with Database(url) as database:
            database.check()
        return url
    url = str(request.getfixturevalue("postgres_url"))
    with Database(url) as database, database.write() as connection:
        # Without triggers: neither references nor the ledger's refusal are in the way.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in metadata.sorted_tables:
            connection.execute(table.delete())
    return url


@pytest.fixture
def clock() -> Clock:
    """Return seconds that stand still until the test moves them on."""
    return Clock()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[HostStore]:
    """A store on an empty database."""
    with HostStore(Database(database_url), HostsSettings(), clock=clock) as store:
        yield store
