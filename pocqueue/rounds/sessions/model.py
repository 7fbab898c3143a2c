"""Which deployed model a session gets: the one it asks for, or none.

A session for another model would be searched for nothing: nobody could validate its proofs. So what
is asked for by name, or by the dimensions that older clients send, has to be what is deployed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from typing_extensions import override

from pocqueue.engine.base import EngineInfo
from pocqueue.errors import ModelConflict, NoLiveGpu
from pocqueue.rounds.pool import Gpu, is_called


@dataclass(frozen=True, slots=True)
class ModelWish:
    """What a session says about its model, in the words of the wire; None: nothing."""

    #: As `choose_model` takes it: a name or the first digits of a fingerprint, with @DTYPE or @RUNTIME.
    model: str | None = None
    dim: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    vocab_size: int | None = None

    @property
    def dimensions(self) -> dict[str, int]:
        """Those that it names."""
        return {k: v for k, v in asdict(self).items() if k != "model" and v is not None}

    def fits(self, info: EngineInfo) -> bool:
        """Say whether a deployed model is the one that is asked for, as far as can be told."""
        if self.model is not None and not is_called(info, self.model):
            return False
        known = dimensions(info)
        return all(known.get(name, wanted) == wanted for name, wanted in self.dimensions.items())

    @override
    def __str__(self) -> str:
        named = [] if self.model is None else [repr(self.model)]
        return ", ".join([*named, *(f"{k} {v}" for k, v in self.dimensions.items())])


class ChosenModel(NamedTuple):
    """The model of a session, and what is wrong with it, or empty."""

    info: EngineInfo
    warning: str


def dimensions(info: EngineInfo) -> dict[str, int]:
    """Return what is known of a model's dimensions, in the words of the wire."""
    known = {
        "dim": info.hidden_size,
        "n_layers": info.num_layers,
        "n_heads": info.num_heads,
        "n_kv_heads": info.num_kv_heads,
        "vocab_size": info.vocab_size,
    }
    return {name: value for name, value in known.items() if value > 0}


def choose_session_model(
    gpus: Sequence[Gpu], wish: ModelWish, *, any_model: bool = False
) -> ChosenModel:
    """Return the deployed model that a session is to use.

    Args:
        gpus: the live GPUs.
        wish: what it asks for.
        any_model: another model than that will do, with a warning; where several are deployed, the
            one that most GPUs have.

    Raises:
        NoLiveGpu: no live GPU takes work.
        ModelConflict: none of the deployed models is the one, or several are; names both sides.
    """
    ready = [gpu.info for gpu in gpus if not gpu.draining]
    if not ready:
        raise NoLiveGpu(
            "No live GPU: none of the big node's workers takes work now. Its operator sees with "
            "`pocqueue gpus` what the pool has."
        )
    numbers = Counter((info.fingerprint, info.dtype, info.runtime) for info in ready)
    deployed = {(info.fingerprint, info.dtype, info.runtime): info for info in ready}
    fitting = {key: info for key, info in deployed.items() if wish.fits(info)}
    if len(fitting) == 1:
        return ChosenModel(next(iter(fitting.values())), "")
    choices = "; ".join(sorted(_describe(info, wish) for info in deployed.values()))
    if fitting:
        asked = f"params ask for {wish}, which fits" if str(wish) else "params name no model, and"
        raise ModelConflict(
            f"Model not decided: {asked} {len(fitting)} deployed models: "
            f"{'; '.join(sorted(_describe(info, wish) for info in fitting.values()))}. Name one in "
            "params.model, with @DTYPE or @RUNTIME where they differ in that."
        )
    if any_model:
        most = max(numbers, key=lambda key: (numbers[key], key))
        info = deployed[most]
        return ChosenModel(
            info, f"Model conflict: asked for {wish}; searched with {_describe(info, wish)}."
        )
    raise ModelConflict(
        f"Model conflict: params ask for {wish}; deployed is {choices}. Proofs of another model "
        "would be worth nothing: ask for the deployed one, or have the big node's operator deploy "
        "yours (DELEGATION_ANY_MODEL=1 there takes such sessions with a warning)."
    )


def _describe(info: EngineInfo, wish: ModelWish) -> str:
    """Name a deployed model, with the dimensions that were asked about."""
    known = dimensions(info)
    shown = [f"{name} {known.get(name, 'not known')}" for name in wish.dimensions]
    name = f"{info.model} ({info.fingerprint[:12]}@{info.dtype}@{info.runtime})"
    return f"{name} with {', '.join(shown)}" if shown else name
