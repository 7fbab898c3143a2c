"""What may happen while a committee's key is made by real nodes. That four found a network at all is in `test_slashing`."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from typing_extensions import override

from pocqueue.pouw.chain.records import KeyGeneration
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.wire.transactions import Deal
from tests.pouw.flow.founders import committee_of, listed, seat_of, state_of, until_in_office
from tests.pouw.flow.nodes import begin, height, node, running, until


def _dealt(one: PoUWNode) -> int:
    """Return how many have dealt, by a node's chain."""
    state = state_of(one)
    return len(state.deals(state.next_epoch))


def _epoch(one: PoUWNode) -> int:
    """Return the epoch of a node's newest certificate; -1: there is none."""
    assert one._life is not None
    newest = one._life._slots.newest[2]
    return -1 if newest is None else newest.certificate.epoch


@pytest.mark.long
async def test_a_founder_is_started_again_in_between(tmp_path: Path) -> None:
    """It goes on from its key and the others' chain: without a file of its own it deals what it would have dealt."""
    network, keys = listed(tmp_path)
    first = node("s0", NodeRole.SUPERVISOR, network, key=keys[0])
    async with running(first):
        await begin(first, mine=False)
        others = [
            node(f"s{place}", NodeRole.SUPERVISOR, network, first, key=keys[place])
            for place in range(1, 4)
        ]
        async with running(*others):
            for one in others:
                await begin(one, mine=False)
            await until(lambda: state_of(first).generation is not None, "a key generation")
            await others[-1].stop()
            again = node("s3", NodeRole.SUPERVISOR, network, first, key=keys[3])
            async with running(again):
                await again.start()
                await until(lambda: _dealt(first) == 4, "the deal of all four")
                await again.stop()
                once_more = node("s3", NodeRole.SUPERVISOR, network, first, key=keys[3])
                async with running(once_more):
                    await once_more.start()
                    await until_in_office(keys, [first, *others[:-1], once_more])


@pytest.mark.long
async def test_a_fifth_joins_the_committee(tmp_path: Path) -> None:
    """While slots go on: with the next epoch five have a key of their own, and certify where the four ended."""
    network, keys = listed(tmp_path, slot_ms=200)
    first = node("s0", NodeRole.SUPERVISOR, network, key=keys[0])
    async with running(first):
        await begin(first)
        others = [
            node(f"s{place}", NodeRole.SUPERVISOR, network, first, key=keys[place])
            for place in range(1, 4)
        ]
        fifth = node("s4", NodeRole.SUPERVISOR, network, first)
        async with running(*others, fifth):
            for one in others:
                await begin(one)
            nodes = [first, *others, fifth]
            await until(lambda: _epoch(first) == 0, "the first certificates")
            await begin(fifth)
            await until(lambda: all(_epoch(one) == 1 for one in nodes), "certificates of all five")
            committees = [committee_of(one) for one in nodes]
            assert all(one is not None and len(one.members) == 5 for one in committees)
            office = state_of(first).office
            assert office is not None
            await until(
                lambda: all(height(one) > office.height + 8 for one in nodes),
                "blocks that only the new committee can certify",
            )
            assert None not in [await seat_of(one) for one in nodes]


class _Cheat(Dealer):
    """Seals nonsense to whoever is last among the others, and is honest when it is asked for it."""

    @override
    def deal(self, generation: KeyGeneration) -> Deal:
        deal = super().deal(generation)
        victim = max(place for place, sealed in enumerate(deal.shares) if sealed)
        shares = [bytes(48) if place == victim else one for place, one in enumerate(deal.shares)]
        return replace(deal, shares=tuple(shares))


@pytest.mark.long
async def test_a_wrong_share_is_put_right(tmp_path: Path) -> None:
    """Its candidate complains by itself, the dealer answers, and all four are in office with good shares."""
    network, keys = listed(tmp_path)
    first = node("s0", NodeRole.SUPERVISOR, network, key=keys[0])
    async with running(first):
        await begin(first, mine=False)
        assert first._life is not None
        cheat = _Cheat(keys[0], first._life._core.genesis.network)
        first._life._key_generation._dealer = cheat
        others = [
            node(f"s{place}", NodeRole.SUPERVISOR, network, first, key=keys[place])
            for place in range(1, 4)
        ]
        async with running(*others):
            for one in others:
                await begin(one, mine=False)
            await until_in_office(keys, [first, *others])
            [((dealer, _), answer)] = state_of(first).complaints(0).items()
            assert answer is not None
            committee = committee_of(first)
            assert committee is not None
            assert committee.members[dealer] == cheat.account
