"""`pocqueue calibrate --proof artifact`: how far the pool's honest artifacts are apart, and the threshold for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pocqueue.cli.output import console, facts, is_plain, percent
from pocqueue.cli.progress import progress
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.engine.base import EngineInfo
    from pocqueue.measure.apart import Apart, Threshold
    from pocqueue.poc.artifact.scheme import Artifact
    from pocqueue.rounds.backend import Backend
    from pocqueue.rounds.spec import RoundSpec
    from pocqueue.settings import Settings


@dataclass(frozen=True)
class _Run:
    """Artifacts of the same nonces by one kind of engine in batches of one size."""

    info: EngineInfo
    batch_size: int
    values: dict[int, str]  #: by nonce
    queues: dict[int, str] = field(
        default_factory=dict
    )  #: which GPU computed it; empty: this process

    @property
    def name(self) -> str:
        return f"{self.info.runtime} {self.info.dtype} in batches of {self.batch_size}"


@dataclass(frozen=True)
class _Pair:
    """Two runs against each other."""

    name: str
    apart: Apart
    threshold: Threshold
    num_between: int  #: nonces that two GPUs have computed

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": self.name,
            **self.apart.to_dict(),
            "threshold": asdict(self.threshold),
            "num_between_gpus": self.num_between,
        }


@dataclass(frozen=True)
class Report:
    """What the command says."""

    where: str
    draft: RoundSpec
    proof: Artifact
    info: EngineInfo
    pairs: list[_Pair]  #: the farthest apart first

    @property
    def dist_threshold(self) -> float:
        """The threshold to take: by the pair that is farthest apart."""
        return self.pairs[0].threshold.high

    def to_dict(self) -> dict[str, Any]:
        return {
            "dist_threshold": self.dist_threshold,
            "p_mismatch": self.proof.p_mismatch,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "source": self.where,
            "model": self.info.to_dict(),
            "seq_len": self.draft.seq_len,
            "k_dim": self.proof.k_dim,
            "stronger_rng": self.proof.stronger_rng,
            "block_hash": self.draft.block_hash,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to say, as (name, value)."""
        worst, share = self.pairs[0], percent(self.proof.p_mismatch)
        bound = worst.threshold
        interval = f"95 % sure: {bound.low:.4g} to {bound.high:.4g}"
        found = [
            ("dist_threshold", f"{self.dist_threshold:.4g}"),
            ("mismatches", f"{share} of honest nonces are beyond {bound.value:.4g} ({interval})"),
        ]
        for pair in self.pairs:
            found.append(("apart", f"{pair.name}: {pair.apart.words()}"))
            if pair.num_between:
                found.append(("", f"{counted(pair.num_between, 'nonce')} of these on two GPUs"))
        if self.dist_threshold > 0:
            found.append(("spot checks", self._settings()))
        nonces = counted(worst.apart.num_nonces, "nonce")
        return [
            *found,
            ("model", f"{self.info.model} ({self.info.fingerprint[:12]})"),
            ("sampled", f"{nonces} {self.where}, {self.draft.seq_len} positions"),
        ]

    def _settings(self) -> str:
        """Return what to set where this pool's artifacts are checked, rounded up."""
        from math import ceil

        from pocqueue.settings import DelegationSettings

        name, share = DelegationSettings.variable("dist_threshold"), self.proof.p_mismatch
        threshold = f"{name}={min(2.0, ceil(self.dist_threshold * 1e4) / 1e4):g}"
        other = f"{DelegationSettings.variable('p_mismatch')}={share:g}"
        return f"{threshold} {other} on a small node whose engine is like these"

    def print(self) -> None:
        from pocqueue.cli.charts import draw_histogram

        view = console()
        view.print(facts(self.rows()))
        if self.dist_threshold == 0:
            view.print("Nothing is apart here; `pocqueue engine compare` measures other engines.")
            return
        view.print()
        worst, plain = self.pairs[0].apart.distances, is_plain(view)
        name, width = "dist_threshold", view.width
        view.print(draw_histogram(worst, self.dist_threshold, width, plain=plain, name=name))


def calibrate_artifacts(
    settings: Settings, backend: Backend | None, draft: RoundSpec, model: str | None, samples: int
) -> Report:
    """Compute the same nonces by every kind of engine, and by one of them in batches of another size.

    Args:
        settings: what to load where there is no pool.
        backend: the pool; None: load the model in this process.
        draft: of `sample_draft`.
        model: which one, if there are several.
        samples: nonces.

    Raises:
        CalibrationError: too few nonces were computed.
    """
    from pocqueue.measure.apart import apart, threshold_for
    from pocqueue.poc.artifact.scheme import Artifact

    proof = draft.proof
    assert isinstance(proof, Artifact)
    with ExitStack() as stack:
        if backend is None:
            where, runs = "in this process", [*_local_runs(settings, draft, model, samples, stack)]
        else:
            where, runs = "on the pool", [*_pool_runs(backend, draft, model, samples)]
    pairs = []
    for a, b in combinations(runs, 2):
        # Fewer where the time was over.
        nonces = sorted(a.values.keys() & b.values.keys())
        found = apart([a.values[n] for n in nonces], [b.values[n] for n in nonces], proof)
        between = sum(a.queues.get(n) != b.queues.get(n) for n in nonces)
        pairs.append(_Pair(f"{a.name} and {b.name}", found, threshold_for(found), between))
    pairs.sort(key=lambda pair: -pair.threshold.high)
    return Report(where, draft, proof, runs[0].info, pairs)


def _sizes(draft: RoundSpec) -> tuple[int, int]:
    """Return the batch size that is asked for and another one: other nodes have other GPUs."""
    return draft.batch_size, draft.batch_size // 2 or 2


def _local_runs(
    settings: Settings, draft: RoundSpec, model: str | None, samples: int, stack: ExitStack
) -> Iterator[_Run]:
    from pocqueue.engine import load_local_engine
    from pocqueue.engine.base import check_batch
    from pocqueue.measure.samples import sample_engine
    from pocqueue.poc.batch import Batch

    view = console(stderr=True)
    engine = load_local_engine(settings, model, view.print)
    stack.callback(engine.close)
    searches = [draft.model_copy(update={"batch_size": size}) for size in _sizes(draft)]
    for search in searches:
        check_batch(engine.info, Batch.of(search, []))
    for search in searches:
        with progress(f"Batches of {search.batch_size}", samples) as tell:
            values = sample_engine(engine, search, samples, on_progress=tell)
        kept = {nonce: value for nonce, value in enumerate(values) if value is not None}
        yield _Run(engine.info, search.batch_size, kept)


def _pool_runs(
    backend: Backend, draft: RoundSpec, model: str | None, samples: int
) -> Iterator[_Run]:
    from pocqueue.measure.samples import run_sample
    from pocqueue.rounds.start import deployed_runtimes, fitted

    gpus = backend.pool.live()
    infos = deployed_runtimes(gpus, model)
    size, other = _sizes(draft)
    shapes = [(info, size) for info in infos] + [(infos[0], other)]
    searches = [(info, draft.model_copy(update={"batch_size": size})) for info, size in shapes]
    for info, search in searches:
        fitted(search, gpus, info)
    deadline = time.monotonic() + draft.window_s
    for place, (info, search) in enumerate(searches):
        # What is left, shared out among those that are left: each has to run the same nonces.
        left_s = max(1.0, deadline - time.monotonic()) / (len(searches) - place)
        timed = search.model_copy(update={"window_s": left_s})
        with progress(f"{info.runtime} {info.dtype}, {search.batch_size}", samples) as tell:
            _, entries = run_sample(backend, info, timed, samples, at_least=1, on_progress=tell)
        values = {nonce: value for entry in entries for nonce, value in entry.proofs}
        queues = {nonce: entry.queue for entry in entries for nonce in entry.proofs.nonces}
        yield _Run(info, search.batch_size, values, queues)
