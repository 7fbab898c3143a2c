"""A node that went on from another one's weights learns who worked before: from anybody, and nothing that is not true."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.flow import gaps, slot_sync
from pocqueue.pouw.flow.gaps import Gaps
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.requests import IterationWithMap, Slot, Slots, SlotsRequest
from tests.pouw.blocks import FILLER
from tests.pouw.flow.parts import PEER, Parts, Signed, parts, replace_account
from tests.pouw.offences import message
from tests.pouw.support import account

#: Changes slots that a peer gives.
_Change = Callable[[list[Slot]], list[Slot]]


@asynccontextmanager
async def _late(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Parts, Signed]]:
    """Open a node that has the slots from 72 on alone, and give what its peers have."""
    monkeypatch.setattr(slot_sync, "_MAX_BEHIND", 40)
    monkeypatch.setattr(slot_sync, "_HEAD_START", 16)
    monkeypatch.setattr(gaps, "MAX_SLOTS", 20)
    async with parts() as node:
        peer = Signed()
        peer.go_on(90)
        node.net.answers = peer.answers()
        await node.slot_sync.follow(PEER, peer.status())
        gap = node.store.gap(FILLER)
        assert gap is not None
        assert (gap.first, gap.end) == (0, 72)
        node.net.asked.clear()
        yield node, peer


async def test_what_is_missing_is_fetched_without_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, the last one first; what is newest stays so after a restart."""
    async with _late(monkeypatch) as (node, peer):
        wanted: list[SlotsRequest] = []
        honest = peer.answers()[Kind.SLOTS]

        def slots(body: bytes) -> bytes:
            wanted.append(decode(body, SlotsRequest))
            return honest(body)

        node.net.answers = {Kind.SLOTS: slots}
        await Gaps(node.core, node.slots, node.store).fill(FILLER)
        assert [(one.first, one.is_bare) for one in wanted] == [
            *((52, True), (32, True), (12, True), (0, True))
        ]
        assert node.store.gap(FILLER) is None
        records = [one.record for one in node.store.slots(FILLER, 0, 90, is_bare=True)]
        assert records == [slot.record for slot in peer.slots]
        assert node.store.newest() == peer.history.signed


def _other(found: list[Slot]) -> list[Slot]:
    other = Signed()
    other.go_on(90, time_ms=Signed().certified().signed.certificate.time_ms + 1)
    first = found[0].record.signed.certificate.slot
    return [*found[:3], *other.slots[first + 3 : first + len(found)]]


def _with_somebody(found: list[Slot]) -> list[Slot]:
    more = IterationWithMap(message(), b"")
    return [*found[:3], replace(found[3], messages=(more,)), *found[4:]]


@pytest.mark.parametrize("change", [_other, _with_somebody, lambda found: found[1:]])
async def test_what_was_not_certified_is_of_no_use(
    monkeypatch: pytest.MonkeyPatch, change: _Change
) -> None:
    """Another peer is asked then."""
    async with _late(monkeypatch) as (node, peer):
        honest, num_asked = peer.answers()[Kind.SLOTS], 0

        def slots(body: bytes) -> bytes:
            nonlocal num_asked
            num_asked += 1
            given = [*decode(honest(body), Slots).slots]
            return encode(Slots(tuple(change(given) if num_asked == 1 else given)))

        node.net.answers = {Kind.SLOTS: slots}
        node.net.peers = [PEER, replace_account(account("another"))]
        await Gaps(node.core, node.slots, node.store).fill(FILLER)
        assert len({who for who, _ in node.net.asked}) == 2
        records = [one.record for one in node.store.slots(FILLER, 0, 90, is_bare=True)]
        assert records == [slot.record for slot in peer.slots]


async def test_if_nobody_has_it_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A committee's member says nothing then of who worked."""
    async with _late(monkeypatch) as (node, _):
        node.net.answers = {Kind.SLOTS: lambda _: encode(Slots(()))}
        with pytest.raises(SlotError, match="missing: slots 52 to 71 are not to be had"):
            await Gaps(node.core, node.slots, node.store).fill(FILLER)
