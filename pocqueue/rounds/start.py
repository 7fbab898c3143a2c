"""Starts a round: a checked specification, a deployed model that fits, one record in the store.

A round or a session gets the model that is asked for, or none. A search with another model would be for
nothing, as its proofs could not be validated. So what is asked for by name, or by the dimensions that older
clients of a delegation send, has to be deployed; and if several models fit, the request has to say which.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from typing_extensions import override

from pocqueue.engine.base import EngineInfo, check_batch, largest_pass
from pocqueue.errors import InvalidRound, ModelConflict, NoLiveGpu, StoreError, UnknownRound
from pocqueue.poc.batch import Batch
from pocqueue.poc.scheme import DEFAULT, scheme_class
from pocqueue.poc.search import ANY_BATCH_SIZE, MAX_BATCH_SIZE
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.spec import RoundSpec
from pocqueue.rounds.store import RoundStore

#: Tokens of a pass beyond which a larger one gains little: those of the default pass, 32 x 256.
FULL_PASS_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class ModelWish:
    """What a request says about its model, in the words of the wire; None: nothing."""

    #: NAME, or the first digits of a FINGERPRINT (8 or more), with @DTYPE, @RUNTIME or both behind it.
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
        if self.model is not None:
            name = self.model.removesuffix(f"@{info.runtime}").removesuffix(f"@{info.dtype}")
            if name != info.model and not (len(name) >= 8 and info.fingerprint.startswith(name)):
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


def choose_model(gpus: Sequence[Gpu], wish: ModelWish, *, any_model: bool = False) -> ChosenModel:
    """Return the deployed model that a round or a session is to use.

    Args:
        gpus: the live GPUs.
        wish: what it asks for; nothing will do if there is only one model to choose.
        any_model: another model than that will do, with a warning; the one that most GPUs have.

    Raises:
        NoLiveGpu: no live GPU takes work.
        ModelConflict: none of the deployed models is the one, or several are; names both sides.
    """
    ready = [gpu.info for gpu in gpus if not gpu.draining]
    if not ready:
        raise NoLiveGpu(
            "No live GPU takes work now. On the host of the GPUs `pocqueue gpus` shows the pool, `celery -A "
            "pocqueue worker -Q gpu0` starts a worker and `pocqueue up` everything."
        )
    # Of a model's GPUs the one that can run the largest pass speaks for all: others are left out of such.
    ready.sort(key=lambda info: info.max_pass_tokens or math.inf)
    by_key = {(info.fingerprint, info.dtype, info.runtime): info for info in ready}
    counts = Counter((info.fingerprint, info.dtype, info.runtime) for info in ready)
    deployed = [by_key[key] for key in sorted(by_key, key=lambda key: (counts[key], key))]
    fitting = [info for info in deployed if wish.fits(info)]
    if len(fitting) == 1:
        return ChosenModel(fitting[0], "")
    listed = "; ".join(sorted(_described(info, wish) for info in fitting or deployed))
    if fitting:
        asked = f"asked for {wish}, which fits" if str(wish) else "no model is named and there are"
        raise ModelConflict(
            f"Model not decided: {asked} {len(fitting)} deployed models: {listed}. Name one in params.model, "
            "or with --model: its name or the first digits of its fingerprint, with @DTYPE or @RUNTIME "
            "where they differ in that."
        )
    if any_model:
        searched = _described(deployed[-1], wish)
        return ChosenModel(
            deployed[-1], f"Model conflict: asked for {wish}; searched with {searched}."
        )
    raise ModelConflict(
        f"Model conflict: asked for {wish}; deployed is {listed}. Proofs of another model would be "
        "worth nothing: ask for the deployed one, or have the operator of the GPUs deploy yours with "
        "POCQUEUE_MODEL (DELEGATION_ANY_MODEL=1 there takes such sessions with a warning)."
    )


def deployed_runtimes(gpus: Sequence[Gpu], model: str | None) -> list[EngineInfo]:
    """Return one model as every dtype and runtime that live GPUs have of it.

    Args:
        gpus: the live GPUs.
        model: which one, as in `ModelWish`; needed if they have several.

    Raises:
        NoLiveGpu, ModelConflict: see `choose_model`.
    """
    wish = ModelWish(model)
    fitting = [gpu.info for gpu in gpus if not gpu.draining and wish.fits(gpu.info)]
    if len({info.fingerprint for info in fitting}) != 1:
        return [choose_model(gpus, wish).info]
    return list({(info.dtype, info.runtime): info for info in fitting}.values())


def num_serving(gpus: Sequence[Gpu], spec: RoundSpec) -> int:
    """Count the GPUs that take work and can search for a round."""
    return sum(not gpu.draining and spec.is_served_by(gpu.info) for gpu in gpus)


def draft_spec(**fields: Any) -> RoundSpec:
    """Check everything of a specification that does not depend on the pool.

    Args:
        fields: those of `RoundSpec` without model and fingerprint; None, or none at all, for those that
            keep their default, and for parameters of the proof that are still to be calibrated.

    Raises:
        InvalidRound: a field is out of bounds.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    proof = scheme_class(fields.get("scheme", DEFAULT))
    return RoundSpec.build(
        **{**proof.draft, **fields}, model="undecided", model_fingerprint="0" * 64
    )


def deployed_model(backend: Backend, draft: RoundSpec, model: str | None) -> EngineInfo:
    """Return the model that the live GPUs have deployed for this round.

    Raises:
        NoLiveGpu, ModelConflict: see `choose_model`.
        InvalidRound: one forward pass is beyond what they can run.
    """
    gpus = backend.pool.live()
    info, _ = choose_model(gpus, ModelWish(model))
    fitted(draft, gpus, info)
    return info


class Fitted(NamedTuple):
    """A draft that GPUs can run, and in a sentence each what is taken another way than it was asked for."""

    draft: RoundSpec
    notes: list[str]


def fitted(draft: RoundSpec, gpus: Sequence[Gpu], info: EngineInfo) -> Fitted:
    """Fit a search to the GPUs of its model.

    A batch_size above `MAX_BATCH_SIZE` is a wish, as older clients send the same large one whatever GPUs
    there are. It becomes the size that did best on these GPUs so far at this sequence length, or the default.
    The default is for GPUs whose pass holds it, and `ANY_BATCH_SIZE` is that or what they hold.

    Args:
        draft: from `draft_spec`.
        gpus: the live ones.
        info: the model, as `choose_model` returns it.

    Raises:
        InvalidRound: no GPU can run such a forward pass; says how large one may be.
    """
    size = draft.batch_size
    if size > MAX_BATCH_SIZE:
        size = _wished_batch_size(draft, [gpu for gpu in gpus if not gpu.draining], info)
    check_batch(info, Batch.warm_up(size, draft.seq_len))
    return Fitted(draft.model_copy(update={"batch_size": size}), draft.notes(size))


def _wished_batch_size(draft: RoundSpec, gpus: Sequence[Gpu], info: EngineInfo) -> int:
    """Return the batch size of a draft that leaves it open; of a wish the one with the most nonces per second so far."""

    def serving(size: int) -> list[Gpu]:
        spec = decided(draft, info, batch_size=size)
        held = (gpu for gpu in gpus if spec.is_held_by(gpu.info))
        return [gpu for gpu in held if spec.is_served_by(gpu.info)]

    def work(size: int) -> tuple[int, int]:
        # One that holds less is not to be left out, unless the passes of the others would be far from full for it.
        return len(serving(size)) * min(size * draft.seq_len, FULL_PASS_TOKENS), size

    infos = [info, *(gpu.info for gpu in serving(1))]
    default = max({largest_pass(one, draft.seq_len, draft.pass_size) for one in infos}, key=work)
    if draft.batch_size == ANY_BATCH_SIZE:
        return default
    rates = defaultdict(float, {default: 0.0})
    for gpu in serving(default):
        for shape, rate in gpu.best_rates.items():
            seq_len, batch_size = map(int, shape.split("x"))
            most = largest_pass(gpu.info, draft.seq_len, MAX_BATCH_SIZE)
            if seq_len == draft.seq_len and batch_size <= most:
                rates[batch_size] += rate
    return max(rates, key=lambda size: (rates[size], -size))


def check_seq_len(seq_len: int, info: EngineInfo, field: str = "seq_len") -> None:
    """Refuse a sequence length that the model has no positions for.

    Args:
        field: its name for whoever gave it.

    Raises:
        InvalidRound: it is above the model's limit.
    """
    if seq_len > info.max_seq_len:
        raise InvalidRound(
            field,
            seq_len,
            f"a whole number from 1 to {info.max_seq_len}, the limit of model {info.model}",
        )


def decided(draft: RoundSpec, info: EngineInfo, **changes: Any) -> RoundSpec:
    """Return a draft whose model is decided.

    Args:
        changes: fields that were decided since the draft, such as a calibrated r_target.

    Raises:
        InvalidRound: one of those is out of bounds.
    """
    return RoundSpec.build(
        **draft.model_dump()
        | {
            "batch_size": draft.pass_size,
            "model": info.model,
            "model_fingerprint": info.fingerprint,
            "model_dtype": info.dtype,
            "model_runtime": info.runtime,
        }
        | changes
    )


def find_round(store: RoundStore, text: str) -> str:
    """Return the id of the round whose id is or begins with `text`.

    Raises:
        UnknownRound: there is none.
        StoreError: there are several.
    """
    ids = store.list_ids()
    if text in ids:
        return text
    found = [round_id for round_id in ids if len(text) >= 4 and round_id.startswith(text)]
    if not found:
        raise UnknownRound(text)
    if len(found) > 1:
        raise StoreError(
            f"Round {text!r} could be {len(found)} rounds ({', '.join(found[:3])}, …): give more "
            "of its id."
        )
    return found[0]


def _described(info: EngineInfo, wish: ModelWish) -> str:
    """Name a deployed model, with the dimensions that were asked about."""
    known = dimensions(info)
    shown = [f"{name} {known.get(name, 'not known')}" for name in wish.dimensions]
    name = f"{info.model} ({info.fingerprint[:12]}@{info.dtype}@{info.runtime})"
    return f"{name} with {', '.join(shown)}" if shown else name
