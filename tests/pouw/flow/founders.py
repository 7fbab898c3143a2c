"""Four supervisors that found a network together: what their genesis is, and whether they are in office."""

from __future__ import annotations

import json
from pathlib import Path

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.committee.seats import Seat
from pocqueue.pouw.flow.key_generation import Seats
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.slots import bls
from tests.pouw.flow.nodes import quick_genesis, until

_DIGEST = b"d" * 32


def listed(folder: Path, **changed: object) -> tuple[str, list[SigningKey]]:
    """Return a network that four keys found, and the keys; the rest as in `quick_genesis`."""
    keys = [SigningKey.generate() for _ in range(4)]
    accounts = json.dumps([key.public_hex for key in keys])
    return quick_genesis(folder, supervisors=accounts, **changed), keys


def state_of(one: PoUWNode) -> State:
    """Return the state at the tip of a node's chain."""
    assert one._life is not None
    return one._life._core.chain.tip.state


def committee_of(one: PoUWNode) -> Committee | None:
    """Return who is in office by a node's chain."""
    return state_of(one).committee_in_office


async def seat_of(one: PoUWNode) -> Seat | None:
    """Return the seat that a node finds anew, as after a restart."""
    assert one._life is not None
    core, committee = one._life._core, committee_of(one)
    assert committee is not None
    dealer = one._life._dealer
    return await core.in_chain(Seats(core, bls.SecretKey(1), dealer), committee)


async def until_in_office(keys: list[SigningKey], nodes: list[PoUWNode]) -> None:
    """Wait until all four are in office by everybody's chain, and check that any three can sign for the group."""
    await until(lambda: all(map(committee_of, nodes)), "a committee in office")
    committee = committee_of(nodes[0])
    assert committee is not None
    assert [committee_of(one) for one in nodes] == [committee] * 4
    assert sorted(committee.members) == sorted(bytes.fromhex(key.public_hex) for key in keys)
    assert (committee.epoch, committee.threshold) == (0, 3)
    seats = [seat for one in nodes if (seat := await seat_of(one)) is not None]
    assert len(seats) == 4
    shares = {committee.numbers[seat.place]: seat.share.sign(_DIGEST) for seat in seats[1:]}
    assert bls.verify(committee.group_key, _DIGEST, bls.combine(shares))
