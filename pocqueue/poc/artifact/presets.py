"""By which bounds artifacts of well-known models are judged: those that the public network's chain had in 2026.

Engines are farther apart with one model than with another, so each has a distance of its own. Where it is not
known, `pocqueue calibrate --proof artifact` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pocqueue.errors import InvalidRound

_CHAIN = {"dist_threshold": 0.4, "p_mismatch": 0.1, "fraud_threshold": 0.05}

#: Parameters of `Artifact` by the name of a preset; "chain" is what the chain takes where it says nothing else.
PRESETS: Mapping[str, Mapping[str, float]] = {
    "chain": _CHAIN,
    "kimi-k2.6": _CHAIN,
    "minimax-m2.7": _CHAIN | {"dist_threshold": 0.75},
    "qwen3-235b": _CHAIN | {"dist_threshold": 0.2},
}


def bounds_of(name: str) -> Mapping[str, float]:
    """Return the bounds of a preset.

    Raises:
        InvalidRound: there is none of that name.
    """
    if name not in PRESETS:
        raise InvalidRound("preset", name, ", ".join(PRESETS))
    return PRESETS[name]
