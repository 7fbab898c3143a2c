"""Tables about rounds: how one went, its best nonces, the list of all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pocqueue.cli.output import columns, console, facts, percent, seconds
from pocqueue.words import counted

if TYPE_CHECKING:
    from pathlib import Path

    from pocqueue.engine.base import EngineInfo
    from pocqueue.rounds.callbacks import CallbackProgress
    from pocqueue.rounds.records import ProofEntry, RoundStatus
    from pocqueue.rounds.spec import RoundSpec

NUM_BEST = 5


def best_nonces(
    status: RoundStatus, entries: Sequence[ProofEntry], num: int = NUM_BEST
) -> list[tuple[int, Any]]:
    """Return the best nonces with their values, as the round's proof scheme ranks them; else the first."""
    pairs = (pair for entry in entries for pair in entry.proofs)
    return sorted(pairs, key=lambda pair: (status.spec.proof.rank(pair[1]), pair[0]))[:num]


def rows(status: RoundStatus, info: EngineInfo | None) -> list[tuple[str, str]]:
    """Return what there is to say about a round, as (name, value)."""
    spec = status.spec
    state = status.state.value + (f" ({status.reason})" if status.reason else "")
    expected, source = spec.expected_valid_rate, "calibrated"
    if expected is None and info is not None:
        expected, source = spec.proof.expected_rate(info.vocab_size), "of random directions"
    found = [
        ("round", status.round_id),
        ("state", state),
        ("block", f"{spec.block_hash} at height {spec.block_height}"),
        ("public key", spec.public_key),
        ("node", f"{spec.node_id} of {spec.node_count}"),
        *_asked(spec),
        ("model", f"{spec.model} ({spec.model_fingerprint[:12]})"),
        *spec.proof.facts(),
        ("nonces checked", f"{status.checked:,} in {counted(status.batches, 'batch')}"),
        (f"{spec.proof.kept_noun}s", f"{status.valid:,}"),
    ]
    if not spec.proof.keeps_all:
        observed = percent(status.valid_rate) if status.checked else "nothing checked yet"
        if expected is not None:
            observed += f"; expected {percent(expected)} ({source})"
        found.append(("valid rate", observed))
    if status.state.is_active:
        found.append(("time", f"{seconds(status.elapsed_s)}, {seconds(status.remaining_s)} left"))
    else:
        found.append(("time", seconds(status.elapsed_s)))
    found.append(("nonces per second", f"{status.rate:,.1f}"))
    for name, value in (
        ("late batches dropped", status.late_batches),
        (f"non-finite {status.spec.proof.noun}s", status.nonfinite),
        ("nonces given up", status.abandoned),
        ("ranges that came back", status.ranges_returned),
    ):
        if value:
            found.append((name, f"{value:,}"))
    return found


def _callbacks(status: RoundStatus, progress: CallbackProgress) -> list[tuple[str, str]]:
    """Return how far the callbacks of a round are, if it has any: nobody else tells whoever started it."""
    if status.spec.callback_url is None:
        return []
    text = f"{progress.delivered:,} of {counted(status.valid, status.spec.proof.kept_noun)} posted"
    if progress.aside:
        text += f", {progress.aside:,} refused and tried again"
    if progress.error and progress.delivered < status.valid:
        text += f"; {progress.error}"
    return [("callbacks", text)]


def _asked(spec: RoundSpec) -> list[tuple[str, str]]:
    """Return who asked for what in particular."""
    found = [] if spec.asked_by is None else [("asked for by", spec.asked_by)]
    if (given := spec.given_nonces) is not None:
        found.append(("nonces given", f"{len(given):,}, from {min(given)} to {max(given)}"))
    return found


def print_round(
    status: RoundStatus,
    entries: Sequence[ProofEntry],
    callbacks: CallbackProgress,
    info: EngineInfo | None = None,
    written: Path | None = None,
) -> None:
    """Print how a round stands, or went, with its best nonces.

    Args:
        callbacks: how far they are.
        info: of its model; None: unknown by now.
        written: the proofs file.
    """
    shown = rows(status, info) + _callbacks(status, callbacks)
    proof = status.spec.proof
    for place, (nonce, value) in enumerate(best_nonces(status, entries)):
        text = f"{nonce:<20} {proof.noun} {proof.show(value)}"
        name = "first nonces" if proof.keeps_all else "best nonces"
        shown.append((name if place == 0 else "", text))
    if written is not None:
        shown.append(("proofs written to", str(written)))
    console().print(facts(shown))


def print_rounds(statuses: Sequence[RoundStatus]) -> None:
    """Print one line for each round."""
    if not statuses:
        console().print("No rounds. `pocqueue round start --block-hash H` starts one.")
        return
    table = columns(
        *("round", "state", "started", "block", "model"),
        right=("left", "checked", "valid", "per second"),
        words=("model",),
    )
    for status in statuses:
        table.add_row(
            status.round_id,
            status.state.value,
            _clock(status.created_ms),
            status.spec.block_hash[:16],
            status.spec.model,
            seconds(status.remaining_s) if status.state.is_active else "",
            f"{status.checked:,}",
            f"{status.valid:,}",
            f"{status.rate:,.0f}",
        )
    console().print(table)


def json_round(
    status: RoundStatus,
    entries: Sequence[ProofEntry],
    callbacks: CallbackProgress,
    written: Path | None,
) -> dict[str, Any]:
    """Return what `print_round` shows, for `--json`."""
    field = status.spec.proof.field
    posted = callbacks.model_dump(include={"delivered", "aside", "error"})
    return {
        **status.to_dict(),
        "best": [{"nonce": nonce, field: value} for nonce, value in best_nonces(status, entries)],
        "callbacks": None if status.spec.callback_url is None else posted,
        "proofs_file": None if written is None else str(written),
    }


def _clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
