"""What happens to a network on purpose, in which order: a function of the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pocqueue.pouw.chaos.cheats import MINER_CHEATS, SUPERVISOR_CHEATS
from pocqueue.pouw.committee.quorum import faults, quorum

#: So that one is honest when each cheat of miners has one.
LEAST_MINERS = len(MINER_CHEATS) + 1
#: Of what is killed, paused or cut off. Longer than a leader is waited for, shorter than a silent link lives.
_SHORTEST_S, _LONGEST_S = 4.0, 6.0
#: After which a node that was killed is started again; what its network does without it is looked at until shortly
#: before that.
RESTART_S, _DEAD_S = 6.0, 5.0


@dataclass(frozen=True)
class Act:
    """One thing that is done to nodes, by their names.

    Attributes:
        kind: ``kill``, ``pause``, ``cut`` or ``cheat``.
        nodes: that it is done to; of a cut those on one side of it, all others are on the other.
        cheat: the name of the cheat.
        lasts_s: until it is undone. A cheat goes on until it is caught, or everything else is over.
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
                return f"pause {who} for {self.lasts_s:.1f} s"
            case "cut":
                return f"cut {who} off from the others for {self.lasts_s:.1f} s"
        return f"{who} cheats: {self.cheat}"


def plan(seed: int, supervisors: Sequence[str], miners: Sequence[str]) -> list[Act]:
    """Return what is to happen: every kind once, one after the other.

    Miners that cheat come first, and go on with it beside all else. A supervisor that cheats comes last: it is the one
    that its committee tolerates, and no other one may fail beside it.

    Args:
        seed: of all that is left to chance.
        supervisors: 1, or 4 and more of them.
        miners: 3 and more; one of them at least stays honest.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    faulty = faults(len(supervisors))

    def lasts_s() -> float:
        return round(rng.uniform(_SHORTEST_S, _LONGEST_S), 1)

    cheats = rng.sample(sorted(MINER_CHEATS), len(MINER_CHEATS))
    cheaters = rng.sample(miners, len(cheats))
    honest = [one for one in miners if one not in cheaters]
    begin = [Act("cheat", (who,), cheat) for who, cheat in zip(cheaters, cheats, strict=True)]
    acts = [
        Act("kill", (rng.choice(honest),), lasts_s=_DEAD_S),
        Act("pause", (rng.choice(honest),), lasts_s=lasts_s()),
    ]
    if not faulty:
        [alone] = supervisors
        acts += [
            Act("kill", (alone,), lasts_s=_DEAD_S, stops_slots=True),
            Act("pause", (alone,), lasts_s=lasts_s(), stops_slots=True),
            Act("cut", (rng.choice(honest),), lasts_s=lasts_s()),
        ]
        rng.shuffle(acts)
        return [*begin, *acts]
    one_too_many = len(supervisors) - quorum(len(supervisors)) + 1
    half = rng.sample(supervisors, len(supervisors) // 2)
    acts += [
        Act("kill", tuple(rng.sample(supervisors, faulty)), lasts_s=_DEAD_S),
        Act("pause", tuple(rng.sample(supervisors, faulty)), lasts_s=lasts_s()),
        Act("pause", tuple(rng.sample(supervisors, one_too_many)), lasts_s=lasts_s(), stops_slots=True),
        Act("cut", (*half, rng.choice(honest)), lasts_s=lasts_s(), stops_slots=True),
        Act("cut", tuple(rng.sample(supervisors, faulty)), lasts_s=lasts_s()),
    ]  # fmt: skip
    rng.shuffle(acts)
    liar = Act("cheat", (rng.choice(supervisors),), rng.choice(sorted(SUPERVISOR_CHEATS)))
    return [*begin, *acts, liar]
