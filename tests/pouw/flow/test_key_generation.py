"""Four nodes that found a network together: from a genesis that lists them to their committee in office."""

from __future__ import annotations

import json
from pathlib import Path

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.committee.seats import Seat
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.flow.key_generation import Seats
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.slots import bls
from tests.pouw.flow.nodes import begin, node, quick_genesis, running, until

_DIGEST = b"d" * 32


def _state(one: PoUWNode) -> State:
    assert one._life is not None
    return one._life._core.chain.tip.state


def _committee(one: PoUWNode) -> Committee | None:
    return _state(one).committee_in_office


async def _seat(one: PoUWNode) -> Seat | None:
    """Return the seat that a node finds anew, as after a restart."""
    assert one._life is not None
    core, committee = one._life._core, _committee(one)
    assert committee is not None
    dealer = one._life._dealer
    return await core.in_chain(Seats(core, bls.SecretKey(1), dealer), committee)


async def test_four_found_a_network(tmp_path: Path) -> None:
    """Nobody was in office before them; any three sign for the group."""
    keys = [SigningKey.generate() for _ in range(4)]
    listed = json.dumps([key.public_hex for key in keys])
    network = quick_genesis(tmp_path, supervisors=listed)
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
            everybody = [first, *others]
            await until(lambda: all(map(_committee, everybody)), "a committee in office")
            committee = _committee(first)
            assert committee is not None
            assert [_committee(one) for one in everybody] == [committee] * 4
            assert sorted(committee.members) == sorted(
                bytes.fromhex(key.public_hex) for key in keys
            )
            assert (committee.epoch, committee.threshold) == (0, 3)
            seats = [seat for one in everybody if (seat := await _seat(one)) is not None]
            assert len(seats) == 4
            shares = {committee.numbers[seat.place]: seat.share.sign(_DIGEST) for seat in seats[1:]}
            assert bls.verify(committee.group_key, _DIGEST, bls.combine(shares))
