"""`pocqueue engine …`: engines against each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typing_extensions import override

from pocqueue.cli.options import (
    BatchSize,
    DistThreshold,
    Json,
    KDim,
    Model,
    PMismatch,
    Proof,
    RTarget,
    SeqLenOfProof,
    StrongerRng,
    ValidRateInstead,
    check_count,
    option_names,
    proof_options,
)
from pocqueue.cli.output import (
    EXIT_FAILED,
    EXIT_OK,
    columns,
    console,
    facts,
    interruptible,
    percent,
    show,
)

if TYPE_CHECKING:
    from pocqueue.engine.base import EngineInfo
    from pocqueue.measure.apart import Apart
    from pocqueue.measure.compare import Comparison, Measurement
    from pocqueue.rounds.spec import RoundSpec

app = typer.Typer(help="Compare engines.", no_args_is_help=True)

#: Distances stay in memory.
MAX_NONCES = 1_000_000
DTYPES = ("bfloat16", "float16", "float32")
BLOCK_HASH = "pocqueue engine compare"
PUBLIC_KEY = "pocqueue-engine-compare"


@app.command(short_help="Run the same nonces through two engines.")
def compare(
    a: Annotated[str, typer.Option("--a", help="One engine, as ENGINE or ENGINE@DTYPE.")] = "torch",
    b: Annotated[str, typer.Option("--b", help="The other, which a is the measure for.")] = "vllm",
    proof: Proof = "distance",
    model: Model = None,
    nonces: Annotated[int, typer.Option(help="Nonces to compute with each.")] = 256,
    batch_size: BatchSize = 32,
    seq_len: SeqLenOfProof = None,
    r_target: RTarget = None,
    valid_rate: ValidRateInstead = None,
    k_dim: KDim = None,
    stronger_rng: StrongerRng = False,
    dist_threshold: DistThreshold = None,
    p_mismatch: PMismatch = None,
    block_hash: Annotated[str, typer.Option(help="Block of the nonces.")] = BLOCK_HASH,
    as_json: Json = False,
) -> None:
    """Run the same nonces through two engines: differences, flipped verdicts, speed of each.

    Of distances without --r-target, one makes a tenth of a's nonces valid. Of artifacts it is how far they are
    apart, and how many are farther apart than --dist-threshold. Device, dtype, threads, GPUs per model and
    the vLLM server's URL are those of the settings. Each engine has a process of its own, one after the
    other. Exit code 0: the engines agree within float error; 1: they do not.
    """
    from pocqueue.errors import SettingsError
    from pocqueue.measure import compare as maths
    from pocqueue.measure.apart import apart
    from pocqueue.measure.child import with_engine_in_child
    from pocqueue.poc.artifact.scheme import Artifact
    from pocqueue.poc.distance.random_directions import check_share
    from pocqueue.rounds.start import draft_spec
    from pocqueue.settings import Settings

    engine_a, dtype_a = _engine("--a", a)
    engine_b, dtype_b = _engine("--b", b)
    if r_target is not None and valid_rate is not None:
        raise SettingsError(
            f"--r-target is {r_target:g} and --valid-rate is {valid_rate:g}; allowed: one of them."
        )
    rate = maths.DEFAULT_VALID_RATE if valid_rate is None else valid_rate
    with option_names():
        check_count("nonces", nonces, MAX_NONCES)
        check_share(rate)
        parameters = proof_options(
            proof,
            r_target=r_target,
            valid_rate=valid_rate,
            k_dim=k_dim,
            stronger_rng=stronger_rng,
            dist_threshold=dist_threshold,
            p_mismatch=p_mismatch,
        )
        parameters.pop("valid_rate", None)
        search = draft_spec(
            scheme=proof,
            block_hash=block_hash,
            public_key=PUBLIC_KEY,
            seq_len=seq_len,
            batch_size=batch_size,
            **parameters,
        )
        settings = Settings.override(model=model)
        view = console(stderr=True)

        def measured(
            name: str, engine: str, dtype: str | None, same_as: EngineInfo | None = None
        ) -> Measurement:
            # Only vLLM spreads a model over several GPUs.
            tensor_parallel = settings.tensor_parallel if engine == "vllm" else 1
            changes: dict[str, Any] = {"engine": engine, "tensor_parallel": tensor_parallel}
            if dtype is not None:
                changes["dtype"] = dtype
            return with_engine_in_child(
                settings.model_copy(update=changes),
                partial(
                    maths.measure,
                    search=search,
                    num_nonces=nonces,
                    same_as=same_as,
                    any_dtype=(dtype_a, dtype_b) != (None, None),
                ),
                lambda line: view.print(f"{name} ({engine}): {line}", markup=False),
            )

        with interruptible():
            first = measured("a", engine_a, dtype_a)
            second = measured("b", engine_b, dtype_b, first.info)
    report: _Report
    if isinstance(search.proof, Artifact):
        report = _Artifacts(first, second, search, apart(first.values, second.values, search.proof))
    else:
        source = "as given"
        if r_target is None:
            r_target = maths.quantile_r_target(first.values, rate)
            source = f"makes {percent(rate)} of a's nonces valid"
        comparison = maths.compare(first.values, second.values, r_target, first.info.vocab_size)
        report = _Distances(first, second, search, comparison, source)
    show(report, as_json=as_json)
    raise typer.Exit(EXIT_OK if report.comparison.agrees else EXIT_FAILED)


@dataclass(frozen=True)
class _Report:
    """What the command says."""

    a: Measurement
    b: Measurement
    search: RoundSpec
    comparison: Comparison | Apart

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to say, as (name, value)."""
        info, shape = self.a.info, self.search
        return [
            ("model", f"{info.model} ({info.fingerprint[:12]}), {info.dtype}"),
            ("shape", f"{shape.seq_len} positions in batches of {shape.batch_size}"),
        ]

    def to_dict(self) -> dict[str, Any]:
        engines = {
            name: {
                **measured.info.to_dict(),
                "nonces_per_s": measured.nonces_per_s,
                "median_batch_s": measured.median_batch_s,
            }
            for name, measured in (("a", self.a), ("b", self.b))
        }
        return {
            **engines,
            **self.comparison.to_dict(),
            "block_hash": self.search.block_hash,
            "seq_len": self.search.seq_len,
            "batch_size": self.search.batch_size,
        }

    def print(self) -> None:
        from rich.markup import escape

        view = console()
        engines = columns("", "engine", "device", "dtype", right=("nonces/s", "s per batch"))
        for name, measured in (("a", self.a), ("b", self.b)):
            info = measured.info
            engines.add_row(
                name,
                info.engine,
                escape(f"{info.device} {info.device_name}"),
                info.dtype,
                f"{measured.nonces_per_s:,.1f}",
                f"{measured.median_batch_s:.3g}",
            )
        view.print(engines)
        view.print()
        view.print(facts(self.rows()))
        view.print()
        view.print(self.comparison.sentence(), markup=False)


@dataclass(frozen=True)
class _Artifacts(_Report):
    """What it says of artifacts."""

    comparison: Apart

    @override
    def to_dict(self) -> dict[str, Any]:
        found = self.comparison
        verdict = {"agrees": found.agrees, "sentence": found.sentence()}
        return super().to_dict() | self.search.proof.parameters() | verdict

    @override
    def rows(self) -> list[tuple[str, str]]:
        found, proof = self.comparison, self.comparison.proof
        return [
            *super().rows(),
            ("nonces compared", f"{len(found.distances):,} of {found.num_nonces:,}"),
            ("no artifact", f"{found.num_broken_a:,} in a, {found.num_broken_b:,} in b; dropped"),
            ("distances", found.words()),
            (
                f"above {proof.dist_threshold:g}",
                f"{found.num_beyond:,}: {percent(found.share_beyond)}",
            ),
            ("fraud test allows", f"{percent(proof.p_mismatch)} of the nonces of a proof"),
        ]


@dataclass(frozen=True)
class _Distances(_Report):
    """What it says of distances."""

    comparison: Comparison
    #: Where r_target comes from, in words.
    source: str

    @override
    def to_dict(self) -> dict[str, Any]:
        from pocqueue.poc.data import PROBABILITY_MISMATCH

        return super().to_dict() | {
            "r_target_source": self.source,
            "flips_allowed": PROBABILITY_MISMATCH,
        }

    @override
    def rows(self) -> list[tuple[str, str]]:
        from pocqueue.measure.compare import share
        from pocqueue.poc.data import PROBABILITY_MISMATCH

        found = self.comparison
        spread, flips = found.spread_difference, found.flips
        compared = f"{found.num_compared:,} of {found.num_nonces:,}"
        apart = f"median {found.median_difference:.3g}, 99th percentile {found.p99_difference:.3g}"
        flipped = f"{found.num_only_a:,} valid in a only, {found.num_only_b:,} in b only"
        if flips.share_a is None or flips.share_b is None:
            expected = "unknown: no nonces near r_target"
        else:
            expected = (
                f"{share(flips.share_a)} of the nonces valid in a, {share(flips.share_b)} of those in "
                f"b, by the {flips.num_near:,} near r_target"
            )
        return [
            *super().rows(),
            ("nonces compared", compared),
            (
                "not finite",
                f"{found.num_nonfinite_a:,} in a, {found.num_nonfinite_b:,} in b; dropped",
            ),
            ("relative difference", share(found.relative_difference)),
            ("part of the spread", "unknown: no spread" if spread is None else share(spread)),
            ("absolute difference", f"{apart}, largest {found.max_difference:.3g}"),
            (
                "spot checks",
                f"{found.num_beyond:,} differences are above {found.honest_difference:.3g}, which is "
                f"{found.honest_difference / found.rms_difference:.3g} times their root mean square"
                if found.rms_difference
                else "no difference",
            ),
            ("r_target", f"{found.r_target:.9g} ({self.source})"),
            ("valid nonces", f"{found.num_valid_a:,} in a, {found.num_valid_b:,} in b"),
            ("flipped verdicts", f"{found.num_only_a + found.num_only_b:,}: {flipped}"),
            ("expected flips", expected),
            ("fraud test allows", f"{share(PROBABILITY_MISMATCH)} of the nonces of a proof"),
        ]


def _engine(option: str, given: str) -> tuple[str, str | None]:
    """Read ENGINE or ENGINE@DTYPE.

    Raises:
        SettingsError: there is none such.
    """
    from importlib.util import find_spec

    from pocqueue.engine.base import KINDS
    from pocqueue.errors import SettingsError

    engine, at, dtype = given.partition("@")
    if engine not in KINDS:
        raise SettingsError(f"{option} is {engine!r}; allowed: {', '.join(sorted(KINDS))}.")
    if at and dtype not in DTYPES:
        raise SettingsError(f"{option} is {given!r}; allowed behind @: {', '.join(DTYPES)}.")
    if engine == "vllm" and find_spec("vllm") is None:
        raise SettingsError(
            f"{option} is 'vllm', but vLLM is not installed here: pip install 'pocqueue[vllm]', or "
            "name another engine."
        )
    return engine, dtype or None
