"""What happens to a network on purpose, in which order: a function of the seed."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

from pocqueue.pouw.chaos.cheats import MINER_CHEATS, SUPERVISOR_CHEATS
from pocqueue.pouw.committee.quorum import faults, quorum

#: So that one is honest when each cheat of miners has one.
LEAST_MINERS = len(MINER_CHEATS) + 1
#: Of what is paused or cut off, at least. Longer than a leader is waited for, shorter than a silent link lives.
_SHORTEST_S, _LONGEST_S = 4.0, 5.0
#: After which a node that was killed is started again.
RESTART_S = 4.0
#: What two cores with nothing else to do should take: to start a node, until a committee of several has its key
#: and slots follow each other, until all go on after an act, and until a liar's stake is gone for good.
_START_S, _FOUND_S, _GO_ON_S, _CAUGHT_S = 2.5, 20.0, 3.0, 12.0


@dataclass(frozen=True)
class Act:
    """One thing that is done to nodes, by their names.

    Attributes:
        kind: ``kill``, ``pause``, ``cut`` or ``cheat``.
        nodes: that it is done to; of a cut those on one side of it, all others are on the other.
        cheat: the name of the cheat.
        lasts_s: until it is undone, at least: longer, until it was seen what the network does about it. A cheat goes on
            until it is caught.
        stops_slots: nothing may be certified meanwhile, as too few supervisors are in touch; else slots go on.
    """

    kind: str
    nodes: tuple[str, ...]
    cheat: str = ""
    lasts_s: float = 0.0
    stops_slots: bool = False

    @property
    def text(self) -> str:
        """Return it in words."""
        who = " and ".join(self.nodes) if len(self.nodes) < 3 else ", ".join(self.nodes)
        match self.kind:
            case "kill":
                return f"kill -9 {who}, started again after {RESTART_S:.0f} s"
            case "pause":
                return f"pause {who} for {self.lasts_s:.1f} s or longer"
            case "cut":
                return f"cut {who} off from the others for {self.lasts_s:.1f} s or longer"
        return f"{who} cheats: {self.cheat}"


def plan(seed: int, supervisors: Sequence[str], miners: Sequence[str]) -> list[Act]:
    """Return what is to happen, in order: every kind once.

    Miners that cheat come first, and go on with it beside all else. Supervisors that cheat come last, one after the
    other, as each is the one that its committee tolerates: meanwhile miners alone are killed and paused.

    Args:
        seed: of all that is left to chance.
        supervisors: 1, or 4 and more of them.
        miners: 3 and more; one of them at least stays honest.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    faulty = faults(len(supervisors))

    def lasts_s() -> float:
        return round(rng.uniform(_SHORTEST_S, _LONGEST_S), 1)

    def cheats(names: Sequence[str], known: Collection[str]) -> list[Act]:
        who = rng.sample(names, len(known))
        return [
            Act("cheat", (one,), cheat)
            for one, cheat in zip(who, rng.sample(sorted(known), len(who)), strict=True)
        ]

    begin = cheats(miners, MINER_CHEATS)
    honest = [one for one in miners if (one,) not in [act.nodes for act in begin]]
    beside = [
        Act("kill", (rng.choice(honest),), lasts_s=RESTART_S),
        Act("pause", (rng.choice(honest),), lasts_s=lasts_s()),
    ]
    if not faulty:
        [alone] = supervisors
        acts = [
            *beside,
            Act("kill", (alone,), lasts_s=RESTART_S, stops_slots=True),
            Act("pause", (alone,), lasts_s=lasts_s(), stops_slots=True),
            Act("cut", (rng.choice(honest),), lasts_s=lasts_s()),
        ]
        rng.shuffle(acts)
        return [*begin, *acts]
    one_too_many = len(supervisors) - quorum(len(supervisors)) + 1
    half = rng.sample(supervisors, len(supervisors) // 2)
    acts = [
        Act("kill", tuple(rng.sample(supervisors, faulty)), lasts_s=RESTART_S),
        Act("pause", tuple(rng.sample(supervisors, faulty)), lasts_s=lasts_s()),
        Act("pause", tuple(rng.sample(supervisors, one_too_many)), lasts_s=lasts_s(), stops_slots=True),
        Act("cut", (*half, rng.choice(honest)), lasts_s=lasts_s(), stops_slots=True),
        Act("cut", tuple(rng.sample(supervisors, faulty)), lasts_s=lasts_s()),
    ]  # fmt: skip
    rng.shuffle(acts)
    rng.shuffle(beside)
    lies = cheats(supervisors, SUPERVISOR_CHEATS)
    return [*begin, *acts, *chain(*zip(lies, beside, strict=True))]


def least_s(num_supervisors: int, num_nodes: int) -> int:
    """Return in how many seconds all of a plan is done and seen, on two cores that have nothing else to do.

    Args:
        num_supervisors: as of `plan`.
        num_nodes: of the network, those among them.
    """
    names = [str(place) for place in range(num_supervisors)]
    acts = plan(0, names, ["a", "b", "c"])
    lies = [act for act in acts if act.cheat in SUPERVISOR_CHEATS]
    disturbed = [act for act in acts if act.kind != "cheat"]
    # Beside a lie a miner is disturbed.
    found_s = _FOUND_S if num_supervisors > 1 else 0.0
    each_s = _LONGEST_S + _GO_ON_S
    return math.ceil(
        found_s
        + num_nodes * _START_S
        + (len(disturbed) - len(lies)) * each_s
        + len(lies) * _CAUGHT_S
    )
