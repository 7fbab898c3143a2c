"""Who trains a slot: the chain is real, certificates and their store are made up."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.committee.matching import matched
from pocqueue.pouw.committee.work import TERM
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.wire.transactions import Faucet
from tests.pouw.blocks import FILLER, GENESIS, START_MS, sent, trained
from tests.pouw.flow.parts import Parts, parts
from tests.pouw.support import order


class _Slots:
    """Slots of a task: as many as `num`, each term with a certificate of its own before it."""

    def __init__(self) -> None:
        self.num = 0
        self.newest: tuple[bytes, int, Any] = (FILLER, 1, _signed(0))
        self.anchor = GENESIS.header_id

    async def history(self, task: bytes) -> Any:
        """See `SlotFlow.history`."""
        return SimpleNamespace(next_slot=self.num)

    async def in_slots(self, work: Callable[..., Any], *args: Any) -> Any:
        """See `SlotFlow.in_slots`."""
        return work(*args)

    def before(self, task: bytes, slot: int) -> Any:
        """See `SlotStore.before`."""
        assert slot < self.num
        return _signed(1000 + slot, self.anchor)


def _signed(number: int, anchor: bytes = GENESIS.header_id) -> Any:
    """Return a certificate by its number; its beacon follows from it."""
    certificate = SimpleNamespace(id=number.to_bytes(32, "big"), anchor=anchor)
    return SimpleNamespace(certificate=certificate, beacon=number.to_bytes(96, "big"))


@contextlib.asynccontextmanager
async def _matching(min_miners: int = 1) -> AsyncIterator[tuple[Parts, _Slots, Matching, bytes]]:
    async with parts() as node:
        chain, slots = node.core.chain, _Slots()
        body = order(PAI, PAI, START_MS + 3_600_000, min_miners=min_miners)
        ordered = sent("client", 1, body)
        chain.add(trained(chain.tip, [sent("client", 0, Faucet()), ordered]), START_MS + 60_000)
        slots.anchor = chain.tip.id
        made: Any = slots
        yield node, slots, Matching(node.core, made, made), ordered.id


def _drawn(node: Parts, task: bytes, number: int, anchor: bytes) -> frozenset[bytes]:
    record = node.core.chain.tip.state.task(task)
    assert record is not None
    state = node.core.chain.state_at(anchor)
    return matched(state, number.to_bytes(96, "big"), task, record)


async def _found(matching: Matching, task: bytes, slot: int) -> frozenset[bytes]:
    """Return who is matched; nobody, if too few are."""
    found = None
    with contextlib.suppress(SlotError):
        found = await matching.accounts(task, slot)
    return found or frozenset()


async def test_everybody_trains_the_filler() -> None:
    """And in the very first turn there is no beacon yet."""
    async with _matching() as (_, slots, matching, task):
        assert await matching.accounts(FILLER, 7) is None
        slots.newest = (FILLER, 0, None)
        assert await matching.accounts(task, 0) is None


async def test_a_term_is_decided_before_its_first_slot() -> None:
    """By the certificate of the turn before, which is the newest one while that slot is open, and its anchor's state."""
    async with _matching() as (node, slots, matching, task):
        for number in range(40):
            slots.newest = (FILLER, 1, _signed(number, slots.anchor))
            due = _drawn(node, task, number, slots.anchor)
            assert await _found(matching, task, 0) == due
        for num, first in ((1, 0), (TERM, 0), (TERM + 1, TERM), (2 * TERM, TERM)):
            slots.num = num
            due = _drawn(node, task, 1000 + first, slots.anchor)
            assert await _found(matching, task, num - 1) == due
        # Two supervisors' words are the same for each slot of the term that is open.
        slots.num, slots.newest = 2 * TERM, (task, 2 * TERM, _signed(7, slots.anchor))
        assert await _found(matching, task, 2 * TERM) == _drawn(node, task, 7, slots.anchor)


async def test_too_few_wait_for_the_next_beacon() -> None:
    """Two accounts have tickets here; with some beacons both are matched."""
    async with _matching(min_miners=2) as (node, slots, matching, task):
        found = set()
        for number in range(40):
            slots.newest = (FILLER, 1, _signed(number, slots.anchor))
            found.add(len(await _found(matching, task, 0)))
        assert found == {0, 2}
        lonely = next(at for at in range(40) if len(_drawn(node, task, at, slots.anchor)) < 2)
        slots.newest = (FILLER, 1, _signed(lonely, slots.anchor))
        with pytest.raises(SlotError, match=r"matched: [01] of 2 that task task wants"):
            await matching.accounts(task, 0)


async def test_what_is_not_here_is_said() -> None:
    """A task, or the block that names the state."""
    async with _matching() as (_, slots, matching, task):
        with pytest.raises(SlotError, match=r"missing: .* is no task of the chain here"):
            await matching.accounts(bytes(32), 0)
        slots.newest = (FILLER, 1, _signed(1, b"b" * 32))
        with pytest.raises(SlotError, match=r"^missing: "):
            await matching.accounts(task, 0)
