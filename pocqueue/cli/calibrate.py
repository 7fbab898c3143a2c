"""`pocqueue calibrate`: which r_target gives a valid rate, or which threshold artifacts take, with the deployed model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import (
    BatchSize,
    DeployedModel,
    Json,
    KDim,
    PMismatch,
    Proof,
    SeqLenOfProof,
    StrongerRng,
    Window,
    check_count,
    option_names,
    proof_options,
)
from pocqueue.cli.output import (
    console,
    facts,
    interruptible,
    is_plain,
    note_unlike,
    percent,
    show,
)
from pocqueue.cli.progress import progress

if TYPE_CHECKING:
    from pocqueue.engine.base import EngineInfo
    from pocqueue.measure.valid_rate import Calibration, Spread
    from pocqueue.rounds.backend import Backend
    from pocqueue.rounds.compute import OnCount
    from pocqueue.rounds.spec import RoundSpec
    from pocqueue.settings import Settings

#: Distances stay in memory and, for an hour, in Redis.
MAX_SAMPLES = 1_000_000


@dataclass(frozen=True)
class _Source:
    """Where distances come from."""

    name: str
    info: EngineInfo
    #: Gives distances for what is searched, a number of nonces, and whom to tell of progress.
    sample: Callable[..., list[float]]


def calibrate(
    valid_rate: Annotated[
        float | None,
        typer.Option(help="Of distances: share of nonces to be valid [default: 0.1]."),
    ] = None,
    proof: Proof = "distance",
    samples: Annotated[int, typer.Option(help="Nonces to sample.")] = 2048,
    seq_len: SeqLenOfProof = None,
    batch_size: BatchSize = 32,
    k_dim: KDim = None,
    stronger_rng: StrongerRng = False,
    p_mismatch: PMismatch = None,
    model: DeployedModel = None,
    block_hash: Annotated[
        str | None,
        typer.Option(
            help="Sample this block only [default: distances spread over 8 made-up blocks]."
        ),
    ] = None,
    window: Window = 330.0,
    local: Annotated[
        bool, typer.Option("--local", help="Load the model in this process; leave the pool alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the r_target that makes a given share of nonces valid with the deployed model.

    Of artifacts it finds how far those of the pool's engines are apart, and the threshold that keeps mismatches
    below --p-mismatch. Samples on the live pool if there is one, else loads the model, or that of POCQUEUE_MODEL,
    in this process.
    """
    from pocqueue.cli.calibrate_artifacts import calibrate_artifacts
    from pocqueue.measure.apart import check_samples
    from pocqueue.measure.samples import made_up_blocks, sample_draft
    from pocqueue.measure.valid_rate import check_valid_rate, r_target_for, spread_between
    from pocqueue.poc.artifact.scheme import Artifact
    from pocqueue.settings import Settings

    blocks = made_up_blocks() if block_hash is None else [block_hash]
    with option_names():
        check_count("samples", samples, MAX_SAMPLES)
        parameters = proof_options(
            proof,
            valid_rate=valid_rate,
            k_dim=k_dim,
            stronger_rng=stronger_rng,
            p_mismatch=p_mismatch,
        )
        rate = parameters.pop("valid_rate", 0.1)
        draft = sample_draft(
            blocks[0],
            scheme=proof,
            max_nonces=samples,
            seq_len=seq_len,
            batch_size=batch_size,
            window_s=window,
            **parameters,
        )
        if isinstance(draft.proof, Artifact):
            check_samples(samples, draft.proof.p_mismatch)
        else:
            check_valid_rate(rate, samples)
    settings = Settings.load()
    with interruptible(), ExitStack() as stack:
        backend = None if local else _open_pool(settings, stack)
        if isinstance(draft.proof, Artifact):
            report = calibrate_artifacts(settings, backend, draft, model, samples)
            show(report, as_json=as_json)
            return
        with option_names():
            if backend is None:
                source = _local_source(settings, draft, model, stack)
            else:
                source = _pool_source(backend, draft, model)
        if backend is not None:
            note_unlike(settings, source.info)
        found = _sample(source, draft, blocks)
    distances = [d for block in found.values() for d in block]
    calibration = r_target_for(distances, rate)
    spread = None
    if len(found) > 1:
        spread = spread_between(list(found.values()), calibration.r_target)
    show(_Report(source, draft, calibration, found, spread), as_json=as_json)


@dataclass(frozen=True)
class _Report:
    """What the command says."""

    source: _Source
    draft: RoundSpec
    calibration: Calibration
    samples: dict[str, list[float]]  #: distances by block hash
    spread: Spread | None  #: of those; None: there is one block only

    def ideal(self) -> tuple[float, float]:
        """Return the valid rate of random directions at this r_target, and their r_target."""
        from pocqueue.poc.distance.random_directions import ideal_r_target, ideal_valid_rate

        found, vocab_size = self.calibration, self.source.info.vocab_size
        return (
            ideal_valid_rate(found.r_target, vocab_size),
            ideal_r_target(found.valid_rate, vocab_size),
        )

    def to_dict(self) -> dict[str, Any]:
        found, spread, info = self.calibration, self.spread, self.source.info
        rate, r_target = self.ideal()
        blocks = [
            {
                "block_hash": block,
                "num_samples": len(distances),
                "valid_rate": sum(d < found.r_target for d in distances) / len(distances),
            }
            for block, distances in self.samples.items()
        ]
        return {
            **asdict(found),
            "ideal_valid_rate": rate,
            "ideal_r_target": r_target,
            "blocks": blocks,
            "spread": None if spread is None else spread.observed,
            "spread_by_chance": None if spread is None else spread.chance,
            "source": self.source.name,
            "model": info.to_dict(),
            "seq_len": self.draft.seq_len,
            "batch_size": self.draft.batch_size,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to say, as (name, value)."""
        found, spread, info = self.calibration, self.spread, self.source.info
        rate, r_target = self.ideal()
        if spread is None:
            block = ("block", next(iter(self.samples)))
        else:
            words = (
                f"{percent(min(spread.rates))} to {percent(max(spread.rates))} in "
                f"{len(spread.rates)} blocks: a standard deviation of {percent(spread.observed)}, "
                f"where chance alone makes {percent(spread.chance)}"
            )
            block = ("between blocks", words)
        sampled = f"{percent(found.sampled_rate)} of {found.num_samples:,} samples"
        asked, shape = percent(found.valid_rate), self.draft
        return [
            ("r_target", f"{found.r_target:.9g}"),
            (f"{100 * found.confidence:g} % interval", f"{found.low:.6f} to {found.high:.6f}"),
            ("valid rate", f"{asked} asked for; {sampled} are below r_target"),
            ("random directions", f"{percent(rate)} at this r_target; {asked} at {r_target:.6f}"),
            block,
            ("model", f"{info.model} ({info.fingerprint[:12]}), {info.dtype}"),
            (
                "sampled",
                f"{self.source.name}, {shape.seq_len} positions in batches of {shape.batch_size}",
            ),
        ]

    def print(self) -> None:
        from pocqueue.cli.charts import draw_histogram

        view = console()
        view.print(facts(self.rows()))
        view.print()
        distances = [d for block in self.samples.values() for d in block]
        target, plain = self.calibration.r_target, is_plain(view)
        view.print(draw_histogram(distances, target, view.width, plain=plain))


def _open_pool(settings: Settings, stack: ExitStack) -> Backend | None:
    """Open the pool; None, said on standard error, if there is none or no GPU in it lives."""
    from pocqueue.errors import StoreUnavailable
    from pocqueue.rounds.backend import Backend

    try:
        backend = stack.enter_context(Backend.open(settings))
        if backend.pool.live():
            return backend
        reason = "The pool has no live GPU"
    except StoreUnavailable as exc:
        reason = "No pool runs here" if settings.redis_url is None else str(exc).rstrip(".")
    console(stderr=True).print(f"{reason}; loading the model in this process.")
    return None


def _pool_source(backend: Backend, draft: RoundSpec, model: str | None) -> _Source:
    from pocqueue.measure.samples import distances_of, run_sample
    from pocqueue.rounds.start import deployed_model

    info = deployed_model(backend, draft, model)
    deadline = time.monotonic() + draft.window_s

    def sample(search: RoundSpec, num: int, on_progress: OnCount) -> list[float]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return []
        search = search.model_copy(update={"window_s": left_s})
        # Whether there are enough in all is for `r_target_for` to say.
        found = run_sample(backend, info, search, num, at_least=1, on_progress=on_progress)
        return distances_of(*found)

    return _Source("on the pool", info, sample)


def _local_source(
    settings: Settings, draft: RoundSpec, model: str | None, stack: ExitStack
) -> _Source:
    from pocqueue.engine import load_local_engine
    from pocqueue.engine.base import check_batch
    from pocqueue.measure.samples import sample_engine
    from pocqueue.poc.batch import Batch

    view = console(stderr=True)
    engine = load_local_engine(settings, model, lambda line: view.print(line))
    stack.callback(engine.close)
    check_batch(engine.info, Batch.of(draft, []))
    sample = functools.partial(sample_engine, engine)
    return _Source(f"in this process on {engine.info.device}", engine.info, sample)


def _sample(source: _Source, draft: RoundSpec, blocks: list[str]) -> dict[str, list[float]]:
    """Sample every block alike, with a progress bar; blocks for which no time was left are out."""
    assert draft.max_nonces is not None
    samples, done = draft.max_nonces, 0
    found: dict[str, list[float]] = {}
    with progress("Sampling", samples) as tell:

        def show(num: int, _total: int) -> None:
            tell(done + num, samples)

        for place, block in enumerate(blocks):
            # The first blocks take what does not divide evenly.
            num = samples // len(blocks) + (place < samples % len(blocks))
            search = draft.model_copy(update={"block_hash": block})
            distances = source.sample(search, num, on_progress=show)
            if distances:
                found[block] = distances
            done += len(distances)
    if done < samples:
        console(stderr=True).print(f"The time was over after {done:,} of {samples:,} samples.")
    return found
