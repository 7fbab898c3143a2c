"""The chain on disk: another network's, damaged, full, in use; and gone again where it is nobody's."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.store import CHAIN_NAME, ChainStore
from pocqueue.pouw.errors import NodeDataError
from tests.pouw.blocks import GENESIS, founded, paid, trained

_ROOT = Path(__file__).parents[3]


def test_another_networks_chain_is_left_alone(tmp_path: Path) -> None:
    """In one sentence that names both networks and the setting; the file can be used on by its own."""
    with ChainStore(tmp_path, GENESIS) as store:
        tip = founded(store).tip.id
    with pytest.raises(NodeDataError) as caught:
        ChainStore(tmp_path, Genesis.dev())
    text = str(caught.value)
    assert GENESIS.network.hex()[:16] in text
    assert Genesis.dev().network.hex()[:16] in text
    assert "POCQUEUE_POUW_DIR" in text
    assert "\n" not in text
    with ChainStore(tmp_path, GENESIS) as store:
        assert Chain(GENESIS, store).tip.id == tip


def test_only_one_node_has_it(tmp_path: Path) -> None:
    """A second one is told so."""
    with (
        ChainStore(tmp_path, GENESIS),
        pytest.raises(NodeDataError, match="in use by another node"),
    ):
        ChainStore(tmp_path, GENESIS)


@pytest.mark.parametrize("column", ["block", "header", "diff"])
def test_damage_is_noticed(tmp_path: Path, column: str) -> None:
    """Also what SQLite cannot see: bytes that are no block any more."""
    with ChainStore(tmp_path, GENESIS) as store:
        chain = founded(store)
        block = chain.tip.id
        if column == "header":
            chain.set_anchor(block)
    with contextlib.closing(sqlite3.connect(tmp_path / CHAIN_NAME)) as db, db:
        db.execute(f"UPDATE block SET {column} = zeroblob(100)")  # noqa: S608
    with (
        ChainStore(tmp_path, GENESIS) as store,
        pytest.raises(NodeDataError, match=r"is damaged.*move the file"),
    ):
        Chain(GENESIS, store)


def test_blocks_that_do_not_fit_together_are_noticed(tmp_path: Path) -> None:
    """A changed record of an account, a block that is gone: each block is looked at when a node starts."""
    for damage in ("UPDATE block SET diff = x'90'", "DELETE FROM block WHERE height = 1"):
        folder = tmp_path / damage.split()[0]
        with ChainStore(folder, GENESIS) as store:
            chain = founded(store)
            block = trained(chain.tip)
            chain.add(block, block.header.time_ms)
        with contextlib.closing(sqlite3.connect(folder / CHAIN_NAME)) as db, db:
            db.execute(damage)
        with ChainStore(folder, GENESIS) as store, pytest.raises(NodeDataError, match="is damaged"):
            Chain(GENESIS, store)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / CHAIN_NAME).write_bytes(b"no database " * 1000)
    with pytest.raises(NodeDataError, match=r"damaged.*fetched from other nodes again"):
        ChainStore(tmp_path, GENESIS)


@contextlib.contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Let no file of this process grow beyond what this one has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """A block and an anchor that cannot be written leave the chain as it was; it goes on when there is room."""
    with ChainStore(tmp_path, GENESIS) as store:
        chain = founded(store)
        founder, block = chain.tip.id, trained(chain.tip, [paid(2, "other")])
        wal = tmp_path / f"{CHAIN_NAME}-wal"
        with _full_disk(wal), pytest.raises(NodeDataError, match=r"^The chain .* cannot be used: "):
            chain.add(block, block.header.time_ms)
        assert chain.tip.id == founder
        assert block.id not in chain
        assert chain.add(block, block.header.time_ms).connected == (block,)
        with _full_disk(wal), pytest.raises(NodeDataError):
            chain.set_anchor(block.id)
        assert chain.anchor.height == 0
        assert not chain.set_anchor(block.id).tip_changed
        contents = chain.tip.state.scan(b"")
    with ChainStore(tmp_path, GENESIS) as store:
        again = Chain(GENESIS, store)
        assert (again.anchor.id, again.tip.state.scan(b"")) == (block.id, contents)


def test_without_a_folder_it_leaves_nothing() -> None:
    """It is on disk while it is open, in a folder of its own."""
    store = ChainStore(None, GENESIS)
    folder = store.path.parent
    assert store.path.is_file()
    store.close()
    store.close()
    assert not folder.exists()


@pytest.mark.timeout(600)
def test_a_node_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Fifty times: what it had said is there, nothing is half there, and the state is the one of its blocks."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.pouw.chain.killed_writer", str(tmp_path), "50"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=590,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kills, killed_at_work = map(int, done.stdout.split())
    assert kills == 50
    assert killed_at_work >= 25
