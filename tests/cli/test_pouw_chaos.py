"""What `pocqueue pouw testnet --chaos` makes of what it has seen."""

from __future__ import annotations

import pytest

from pocqueue.cli.pouw_chaos import Chaos, Deed, Slashed
from pocqueue.pouw.chaos.plan import Act
from pocqueue.processes.tree import ProcessTree

_PAUSE = Act("pause", ("supervisor_001",), lasts_s=4.0)
_LIE = Act("cheat", ("miner_001",), "two-messages")


def _chaos(*deeds: Deed, slashed: tuple[Slashed, ...] = ()) -> Chaos:
    return Chaos(7, [_PAUSE, _LIE], [], ProcessTree(), list(deeds), list(slashed))


@pytest.mark.parametrize(
    ("chaos", "is_well", "is_done"),
    [
        (_chaos(Deed(_PAUSE, "9 slots", True), Deed(_LIE, "lost", True)), True, True),
        (_chaos(Deed(_PAUSE, "no slots", False), Deed(_LIE, "lost", True)), False, True),
        (_chaos(Deed(_PAUSE, "9 slots", True)), True, False),
        (_chaos(Deed(_PAUSE, "9 slots", True), Deed(_LIE)), True, False),
        (
            _chaos(
                Deed(_PAUSE, "9 slots", True),
                Deed(_LIE, "lost", True),
                slashed=(Slashed("miner_002", "Fault", 9),),
            ),
            False,
            True,
        ),
    ],
    ids=["all right", "stood still", "not begun", "not over", "an honest one lost its stake"],
)
def test_whether_all_is_as_it_should_be(chaos: Chaos, is_well: bool, is_done: bool) -> None:
    """Only what is over counts against the network, and whatever an honest node lost."""
    assert (chaos.is_well, chaos.is_done) == (is_well, is_done)
    said = chaos.to_json()
    assert (said["seed"], said["is_well"], said["planned"]) == (7, is_well, 2)


def test_the_summary() -> None:
    """A line for each thing that was done; what is wrong is marked, and what is missing is counted."""
    lines = _chaos(
        Deed(_PAUSE, "no slots", False), slashed=(Slashed("miner_002", "Fault", 9),)
    ).summary()
    assert lines == [
        "pause supervisor_001 for 4.0 s or longer: no slots - NOT AS IT SHOULD BE",
        "miner_002 lost its stake by Fault although it was honest",
        "Not begun, as it ended before: 1 more.",
    ]
