"""What is wrong with a message is said by the name of the rule."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.messages import check, read
from pocqueue.pouw.wire.requests import IterationWithMap
from tests.pouw.slots.support import KEYS, LANES, NETWORK, TASK, message

_HISTORY = SlotHistory(TASK, NETWORK)
_GOOD = message(_HISTORY, KEYS[0])


def test_a_good_message_passes() -> None:
    """Also if its slot is up to two away from the open one."""
    for next_slot in range(3):
        check(_GOOD, TASK, NETWORK, next_slot, 1)
    assert len(read(_GOOD, TASK, NETWORK).indices) == _GOOD.iteration.entries


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("network", message(_HISTORY, KEYS[0], network=b"N" * 32)),
        ("task", message(_HISTORY, KEYS[0], task=b"T" * 32)),
        ("slot", message(_HISTORY, KEYS[0], slot=3)),
        ("lane", message(_HISTORY, KEYS[0], lane=1)),
        ("map", message(_HISTORY, KEYS[0], map_hash=b"h" * 32)),
        ("map", message(_HISTORY, KEYS[0], entries=64)),
        ("map", replace(_GOOD, map=_GOOD.map + b"\x00")),
        ("signature", message(_HISTORY, KEYS[0], miner=LANES[1][0])),
        ("signature", message(_HISTORY, KEYS[0], miner=b"\x05" + bytes(32))),
        ("signature", replace(_GOOD, iteration=replace(_GOOD.iteration, loss=101))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_message_is_refused(rule: str, wrong: IterationWithMap) -> None:
    """Whatever else is right about it."""
    with pytest.raises(SlotError) as caught:
        check(wrong, TASK, NETWORK, 0, 1)
    assert caught.value.rule == rule


def test_a_miner_without_a_ticket_has_no_lane() -> None:
    """Not even the first."""
    with pytest.raises(SlotError, match=r"lane: miner .* has 0 lanes by its ticket"):
        check(_GOOD, TASK, NETWORK, 0, 0)
