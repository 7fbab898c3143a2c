"""A plan does everything once, and never more to a committee than it tolerates or is said to stop at."""

from __future__ import annotations

from collections import Counter

import pytest

from pocqueue.pouw.chaos.cheats import MINER_CHEATS, SUPERVISOR_CHEATS
from pocqueue.pouw.chaos.plan import LEAST_MINERS, Act, least_s, plan

_MINERS = [f"miner_{number}" for number in range(LEAST_MINERS)]


def _supervisors(number: int) -> list[str]:
    return [f"supervisor_{place}" for place in range(number)]


def test_a_seed_is_a_plan() -> None:
    """The same one each time; another seed is another one."""
    four = _supervisors(4)
    assert plan(7, four, _MINERS) == plan(7, four, _MINERS)
    assert len({tuple(plan(seed, four, _MINERS)) for seed in range(20)}) == 20


@pytest.mark.parametrize("number", [1, 4, 5, 6, 7, 16])
@pytest.mark.parametrize("seed", range(10))
def test_every_kind_is_there(number: int, seed: int) -> None:
    """All cheat in every way, each another one; slots stop exactly where fewer than a quorum are in touch."""
    supervisors = _supervisors(number)
    faulty = (number - 1) // 3
    quorum = (number + faulty) // 2 + 1
    acts = plan(seed, supervisors, _MINERS)
    cheats = Counter(act.cheat for act in acts if act.kind == "cheat")
    assert cheats == Counter([*MINER_CHEATS, *(SUPERVISOR_CHEATS if number > 1 else ())])
    assert {act.kind for act in acts} == {"kill", "pause", "cut", "cheat"}
    assert len({act.nodes for act in acts if act.kind == "cheat"}) == sum(cheats.values())
    liars = [act.nodes[0] for act in acts if act.kind == "cheat" and act.cheat in MINER_CHEATS]
    for act in acts:
        touched = sum(name in supervisors for name in act.nodes)
        sides = [number - touched, touched if act.kind == "cut" else 0]
        if act.kind == "cheat":
            assert act.cheat in MINER_CHEATS or touched <= faulty
        else:
            assert act.stops_slots == (max(sides) < quorum), act
            assert not {*liars} & {*act.nodes}


@pytest.mark.parametrize("seed", range(10))
def test_supervisors_cheat_last(seed: int) -> None:
    """Beside one that does no other one may fail: miners alone."""
    supervisors = _supervisors(4)
    acts = plan(seed, supervisors, _MINERS)
    first = next(place for place, act in enumerate(acts) if act.cheat in SUPERVISOR_CHEATS)
    for act in acts[first:]:
        assert act.cheat in SUPERVISOR_CHEATS or not {*supervisors} & {*act.nodes}


def test_how_long_it_takes_at_least() -> None:
    """The network that the documentation shows has done all within two minutes; larger ones take longer to start."""
    assert least_s(1, 4) < least_s(4, 9) <= 120
    assert least_s(4, 9) < least_s(4, 20)


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (Act("kill", ("a",)), "kill -9 a, started again after 4 s"),
        (Act("pause", ("a", "b"), lasts_s=5.25), "pause a and b for 5.2 s or longer"),
        (
            Act("cut", ("a", "b", "c"), lasts_s=6.0),
            "cut a, b, c off from the others for 6.0 s or longer",
        ),
        (Act("cheat", ("a",), "two-votes"), "a cheats: two-votes"),
    ],
)
def test_an_act_in_words(act: Act, text: str) -> None:
    """As the table shows it."""
    assert act.text == text
