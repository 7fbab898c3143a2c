"""The threads of the store: many calls with a few commits, and each call as if it were alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text

from pocqueue.hosts.errors import DatabaseUnavailable
from pocqueue.hosts.gateway.store_threads import StoreThreads
from pocqueue.hosts.store.database import Database, file_url
from pocqueue.hosts.tables import announcement
from tests.support.small_disk import fill, small_disk

PATIENCE_S = 120.0


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database."""
    with Database(database_url) as database:
        yield database


def _add(database: Database, name: str, size: int = 1) -> str:
    """Write a row."""
    row = {"wallet": name, "hostname": "h", "gpus": [], "os": "o" * size, "at_ms": 1}
    with database.write() as connection:
        connection.execute(announcement.insert().values(row))
    return name


def _names(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.execute(select(announcement.c.wallet)).scalars())


async def _together(threads: StoreThreads, *works: Any) -> list[Any]:
    """Make calls, all of which wait before the first one is done; return what came of each."""
    go, is_held = threading.Event(), threading.Barrier(2)

    def hold() -> None:
        if not go.is_set():  # it may be done again
            is_held.wait(PATIENCE_S)
            go.wait(PATIENCE_S)

    held = threads.call(hold)
    await asyncio.to_thread(is_held.wait, PATIENCE_S)
    waiting = [threads.call(*work) for work in works]
    go.set()
    async with asyncio.timeout(PATIENCE_S):
        _, *found = await asyncio.gather(held, *waiting, return_exceptions=True)
    return found


async def test_calls_that_wait_share_a_commit(database: Database) -> None:
    """On SQLite; each is answered, and on disk by then. On PostgreSQL each has its own."""
    commits: list[object] = []
    with StoreThreads(database, share_s=PATIENCE_S) as threads:
        event.listen(database.engine, "commit", commits.append)
        names = [f"w{number}" for number in range(10)]
        assert await _together(threads, *((_add, database, one) for one in names)) == names
        num_commits = len(commits)
        with Database(str(database.engine.url.render_as_string(hide_password=False))) as another:
            assert _names(another) == set(names)
    assert num_commits < len(names) if database.is_sqlite else num_commits == len(names)


async def test_one_that_fails_takes_no_other_with_it(database: Database) -> None:
    """Nothing of it is kept, all of the others is; what was asked for before the end is done."""

    def fail() -> None:
        with database.write() as connection:
            connection.execute(text("DELETE FROM announcement"))
            raise KeyError("mine")

    threads = StoreThreads(database, share_s=PATIENCE_S)
    with threads:
        works = [(_add, database, "a"), (fail,), (_add, database, "b")]
        first, failed, last = await _together(threads, *works)
        assert (first, last) == ("a", "b")
        assert isinstance(failed, KeyError)
        late = threads.call(_add, database, "late")
    assert await late == "late"
    assert _names(database) == {"a", "b", "late"}
    with pytest.raises(RuntimeError):
        threads.call(_names, database)


async def test_what_was_called_before_is_seen(database: Database) -> None:
    """Also by one that shares its commit with it."""
    if not database.is_sqlite:
        pytest.skip("four threads have no order")
    with StoreThreads(database, share_s=PATIENCE_S) as threads:
        found = await _together(threads, (_add, database, "a"), (_names, database))
    assert found == ["a", {"a"}]


async def test_one_in_trouble_takes_no_other_with_it(tmp_path: Path) -> None:
    """What was done with it is done again without it, and kept."""
    with Database(file_url(tmp_path / "it.sqlite3")) as database:
        database.check()

        def meet_trouble() -> None:
            _add(database, "b")
            raise DatabaseUnavailable("It is full.")

        with StoreThreads(database, share_s=PATIENCE_S) as threads:
            works = [(_add, database, "a"), (meet_trouble,), (_add, database, "c")]
            first, troubled, last = await _together(threads, *works)
        assert (first, last) == ("a", "c")
        assert isinstance(troubled, DatabaseUnavailable)
        assert _names(database) == {"a", "c"}


@pytest.mark.parametrize("error", [MemoryError, KeyError])
@pytest.mark.parametrize("way", ["read", "write"])
async def test_a_transaction_that_is_undone_under_it(
    tmp_path: Path, way: str, error: type[Exception]
) -> None:
    """As SQLite does by itself when it finds no memory: nobody is told that he has what was not kept."""
    with Database(file_url(tmp_path / "it.sqlite3")) as database:
        database.check()

        def lose() -> None:
            with getattr(database, way)() as connection:
                connection.exec_driver_sql("ROLLBACK")
                raise error

        with StoreThreads(database, share_s=PATIENCE_S) as threads:
            works = [(_add, database, "a"), (lose,), (_add, database, "c")]
            first, lost, last = await _together(threads, *works)
            assert _names(database) == {one for one in (first, last) if isinstance(one, str)}
            assert isinstance(lost, DatabaseUnavailable | error)
            if error is MemoryError:
                assert (first, last) == ("a", "c")


async def test_a_disk_that_is_full_within_a_commit_of_many(tmp_path: Path) -> None:
    """Whoever was answered has what he asked for, nobody else; once there is room it goes on."""
    with small_disk(tmp_path / "disk") as disk, Database(file_url(disk / "it.sqlite3")) as database:
        database.check()
        filled = fill(disk)
        with StoreThreads(database, share_s=PATIENCE_S) as threads:
            sizes = {"a": 1, "b": 100_000, "c": 1}
            works = [(_add, database, name, size) for name, size in sizes.items()]
            found = dict(zip(sizes, await _together(threads, *works), strict=True))
            assert isinstance(found["b"], DatabaseUnavailable)
            assert _names(database) == {name for name in sizes if found[name] == name}
            filled.unlink()
            assert await threads.call(_add, database, "d") == "d"


async def test_a_commit_that_fails_answers_nobody(tmp_path: Path) -> None:
    """All that shared it are told to try again, whatever they had found, and nothing of them is kept."""
    with Database(file_url(tmp_path / "it.sqlite3")) as database:
        database.check()

        def refuse(_connection: object) -> None:
            event.remove(database.engine, "commit", refuse)
            raise DatabaseUnavailable("It went away.")

        def look() -> set[str]:
            raise LookupError(_names(database))

        with StoreThreads(database, share_s=PATIENCE_S) as threads:
            event.listen(database.engine, "commit", refuse)
            found = await _together(threads, (_add, database, "a"), (look,), (_add, database, "b"))
            assert [type(one) for one in found] == [DatabaseUnavailable] * 3
            assert await threads.call(_names, database) == set()
            assert await threads.call(_add, database, "a") == "a"
