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
from tests.pouw.support import account, order


class _Slots:
    """Slots of a task: as many as `num`, each term with a certificate of its own before it."""

    def __init__(self) -> None:
        self.num = 0
        self.newest: tuple[bytes, int, Any] = (FILLER, 1, _signed(0))
        self.anchor = GENESIS.header_id
        self.messages = 1

    async def history(self, task: bytes) -> Any:
        """See `SlotFlow.history`."""
        return SimpleNamespace(next_slot=self.num)

    async def in_slots(self, work: Callable[..., Any], *args: Any) -> Any:
        """See `SlotFlow.in_slots`."""
        return work(*args)

    def counts(self, task: bytes, slots: range) -> list[int]:
        """See `SlotStore.counts`."""
        return [self.messages for slot in slots if slot < self.num]

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

        async def check(slot: int, number: int) -> None:
            due = _drawn(node, task, number, slots.anchor)
            is_enough = account("miner") in due
            assert await _found(matching, task, slot) == (due if is_enough else frozenset())

        for number in range(40):
            slots.newest = (FILLER, 1, _signed(number, slots.anchor))
            await check(0, number)
        for num, first in ((1, 0), (TERM, 0), (TERM + 1, TERM), (2 * TERM, TERM)):
            slots.num = num
            await check(num - 1, 1000 + first)
        slots.num, slots.newest = 2 * TERM, (task, 2 * TERM, _signed(7, slots.anchor))
        await check(2 * TERM, 7)


async def test_if_those_who_are_matched_do_nothing_everybody_trains() -> None:
    """From a term's fourth slot on; the first one is closed at once where another task was trained before."""
    async with _matching() as (_, slots, matching, task):
        slots.messages = 0
        for num in (TERM + 4, TERM + 5):
            slots.num = num
            assert await matching.accounts(task, num - 1) is None
        slots.num = TERM + 3
        assert await _found(matching, task, TERM + 2) == await _found(matching, task, TERM)
        slots.num = 2
        with pytest.raises(SlotError, match="missing: slots 1 and 2 of"):
            await matching.accounts(task, 3)


async def test_too_few_wait_for_the_next_beacon() -> None:
    """A supervisor and a miner have tickets here; only the miner counts."""
    async with _matching(min_miners=2) as (_, slots, matching, task):
        slots.newest = (FILLER, 1, _signed(1, slots.anchor))
        with pytest.raises(SlotError, match=r"matched: [01] of 2 miners that task task wants"):
            await matching.accounts(task, 0)
    async with _matching() as (node, slots, matching, task):
        drawn = {at: _drawn(node, task, at, slots.anchor) for at in range(40)}
        for number, accounts in drawn.items():
            slots.newest = (FILLER, 1, _signed(number, slots.anchor))
            due = accounts if account("miner") in accounts else frozenset[bytes]()
            assert await _found(matching, task, 0) == due
        lonely = next(at for at, accounts in drawn.items() if account("miner") not in accounts)
        slots.newest = (FILLER, 1, _signed(lonely, slots.anchor))
        with pytest.raises(SlotError, match="matched: 0 of 1 miners that task task wants"):
            await matching.accounts(task, 0)


async def test_what_is_not_here_is_said() -> None:
    """A task, or the block that names the state."""
    async with _matching() as (_, slots, matching, task):
        with pytest.raises(SlotError, match=r"missing: .* is no task of the chain here"):
            await matching.accounts(bytes(32), 0)
        slots.newest = (FILLER, 1, _signed(1, b"b" * 32))
        with pytest.raises(SlotError, match=r"^missing: "):
            await matching.accounts(task, 0)
