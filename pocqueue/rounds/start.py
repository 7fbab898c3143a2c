"""Starts a round: a checked specification, a deployed model that fits, one record in the store."""

from __future__ import annotations

from typing import Any

from pocqueue.engine.base import EngineInfo
from pocqueue.errors import InvalidRound, StoreError, UnknownRound
from pocqueue.poc.scheme import DEFAULT, scheme_class
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.model_choice import choose_model
from pocqueue.rounds.spec import RoundSpec
from pocqueue.rounds.store import RoundStore


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
        NoLiveGpu: no live GPU has it, or there are several to choose from.
        InvalidRound: seq_len is above its limit.
    """
    info = choose_model(backend.pool.live(), model)
    check_seq_len(draft.seq_len, info)
    return info


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
            "model": info.model,
            "model_fingerprint": info.fingerprint,
            "model_dtype": info.dtype,
            "model_runtime": info.runtime,
        }
        | changes
    )


def start_round(backend: Backend, draft: RoundSpec, info: EngineInfo, **changes: Any) -> str:
    """Make the round; return its id. The scheduler sees it at once.

    Args:
        changes: see `decided`.
    """
    return backend.store.create(decided(draft, info, **changes))


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
