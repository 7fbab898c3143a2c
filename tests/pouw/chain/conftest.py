"""Where blocks are built on in tests of their rules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.store import ChainStore
from tests.pouw.blocks import GENESIS, founded


@pytest.fixture(scope="module")
def tip() -> Iterator[Position]:
    """Block 1: a supervisor is in office, and there is a miner."""
    with ChainStore(None, GENESIS) as store:
        yield founded(store).tip


@pytest.fixture(scope="module")
def root() -> Iterator[Position]:
    """Block 0: nobody is there."""
    with ChainStore(None, GENESIS) as store:
        yield Chain(GENESIS, store).tip
