"""`pocqueue round …`: start, watch, stop and list rounds, read and validate their proofs."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import (
    BatchSize,
    DeployedModel,
    DistThresholdOfFile,
    Json,
    KDim,
    Model,
    Output,
    PMismatchOfFile,
    Proof,
    RTarget,
    SeqLenOfProof,
    StrongerRng,
    ValidRateInstead,
    Window,
    check_output,
    default_output,
    option_names,
    proof_options,
)
from pocqueue.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    console,
    percent,
    print_json,
    seconds,
)
from pocqueue.cli.progress import progress
from pocqueue.cli.watch import Interrupts, watch_round
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.engine.base import EngineInfo
    from pocqueue.rounds.backend import Backend
    from pocqueue.rounds.records import ProofEntry, RoundStatus

app = typer.Typer(
    help="Start, watch, stop and list rounds; read and validate their proofs.", no_args_is_help=True
)

RoundId = Annotated[str, typer.Argument(metavar="ID", help="Id of the round, or how it begins.")]
#: Nonces sampled where no r_target is given, and by `pocqueue demo`.
CALIBRATION_SAMPLES = 1024
#: Share of nonces that are valid where nobody says.
DEFAULT_VALID_RATE = 0.1


@app.command()
def start(
    block_hash: Annotated[str, typer.Option(help="Hash of the block; fixes the target.")],
    proof: Proof = "distance",
    block_height: Annotated[int, typer.Option(help="Height of the block.")] = 0,
    public_key: Annotated[
        str, typer.Option(help="Key that the nonces are searched for.")
    ] = "local",
    node_id: Annotated[int, typer.Option(help="This node among node-count, from 0.")] = 0,
    node_count: Annotated[int, typer.Option(help="Nodes that share the nonces.")] = 1,
    r_target: RTarget = None,
    valid_rate: ValidRateInstead = None,
    window: Window = 330.0,
    seq_len: SeqLenOfProof = None,
    batch_size: BatchSize = 32,
    k_dim: KDim = None,
    group_id: Annotated[
        int | None, typer.Option(help="Of artifacts: this group among n-groups, from 0.")
    ] = None,
    n_groups: Annotated[
        int | None, typer.Option(help="Of artifacts: groups that share the node's nonces.")
    ] = None,
    stronger_rng: StrongerRng = False,
    model: DeployedModel = None,
    callback_url: Annotated[
        str | None, typer.Option(help="Valid nonces are posted to URL/generated.")
    ] = None,
    fraud_threshold: Annotated[
        float, typer.Option(help="Validation calls it fraud below this probability.")
    ] = 0.01,
    max_nonces: Annotated[
        int | None, typer.Option(help="End the round once this many nonces are checked.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id and leave.")] = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Start a round and watch it to its end.

    Of distances without --r-target, one is found on 1024 nonces of this block: one nonce in ten is to be valid,
    unless --valid-rate says otherwise. Of artifacts every nonce counts.
    """
    from pocqueue.measure.valid_rate import check_valid_rate
    from pocqueue.poc.scheme import DEFAULT
    from pocqueue.rounds.backend import Backend
    from pocqueue.rounds.start import decided, deployed_model, draft_spec, fitted
    from pocqueue.settings import Settings

    _check_options(r_target, valid_rate, detach, output)
    with option_names():
        parameters = proof_options(
            proof,
            r_target=r_target,
            valid_rate=valid_rate,
            k_dim=k_dim,
            group_id=group_id,
            n_groups=n_groups,
            stronger_rng=stronger_rng,
        )
        rate = parameters.pop("valid_rate", None)
        is_given = rate is not None or r_target is not None
        if proof == DEFAULT and not is_given:
            rate = DEFAULT_VALID_RATE
        if rate is not None:
            check_valid_rate(rate, CALIBRATION_SAMPLES)
        draft = draft_spec(
            scheme=proof,
            block_hash=block_hash,
            block_height=block_height,
            public_key=public_key,
            node_id=node_id,
            node_count=node_count,
            window_s=window,
            seq_len=seq_len,
            batch_size=batch_size,
            callback_url=callback_url,
            fraud_threshold=fraud_threshold,
            max_nonces=max_nonces,
            **parameters,
        )
    settings = Settings.load()
    output = output or default_output(settings.state_dir)
    with Backend.open(settings) as backend:
        with option_names():
            info = deployed_model(backend, draft, model)
            draft, notes = fitted(draft, backend.pool.live(), info)
        for note in notes:
            console(stderr=True).print(f"{note}.")
        changes: dict[str, Any] = {}
        if rate is not None:
            if not is_given and not as_json:
                console(stderr=True).print(
                    f"No --r-target was given: {percent(rate)} of the nonces are to be valid."
                )
            changes = calibrated(backend, draft, info, rate, quiet=as_json)
        with Interrupts() as interrupts:
            round_id = backend.store.create(decided(draft, info, **changes))
            if detach:
                _print_detached(round_id, window, as_json)
                return
            code = finish(backend, round_id, output, interrupts, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def status(round_id: RoundId, as_json: Json = False) -> None:
    """Show how a round stands."""
    from pocqueue.cli.report import json_round, print_round

    with _open() as backend:
        found = _find(backend, round_id)
        entries = list(backend.store.iter_proofs(found))
        posted = backend.callbacks.progress(found.round_id)
        if as_json:
            coverage = backend.store.coverage(found.round_id)
            print_json(json_round(found, entries, posted, None) | {"coverage": coverage})
        else:
            print_round(found, entries, posted, _info(backend, found))


@app.command()
def watch(
    round_id: RoundId,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Watch a round to its end."""
    from pocqueue.settings import Settings

    output = output or default_output(Settings.load().state_dir)
    with _open() as backend:
        found = _find(backend, round_id)
        with Interrupts() as interrupts:
            code = finish(backend, found.round_id, output, interrupts, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def stop(round_id: RoundId) -> None:
    """Stop a round; GPUs notice within one batch."""
    from pocqueue.rounds.spec import RoundState

    with _open() as backend:
        before = _find(backend, round_id)
        if not before.state.is_active:
            console().print(f"Round {before.round_id} is over already: {before.state.value}.")
            return
        backend.store.close(before.round_id, RoundState.STOPPED, "stopped by its operator")
        after = backend.store.status(before.round_id)
        console().print(
            f"Round {after.round_id} is {after.state.value}: {counted(after.checked, 'nonce')} checked, "
            f"{counted(after.valid, after.spec.proof.kept_noun)}."
        )


@app.command("list", short_help="List the rounds, active and of the last hour.")
def list_rounds(as_json: Json = False) -> None:
    """List the rounds: active ones and those that ended within the last hour."""
    from pocqueue.cli.report import print_rounds

    with _open() as backend:
        found = backend.store.statuses(backend.store.list_ids())
    if as_json:
        print_json([one.to_dict() for one in found])
    else:
        print_rounds(found)


@app.command()
def proofs(
    round_id: RoundId,
    output: Annotated[
        Path | None, typer.Option(callback=check_output, help="Write a proofs file.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most nonces to print.")] = 50,
    as_json: Json = False,
) -> None:
    """Print what a round found, best first, or write it to a file."""
    from pocqueue.cli.report import best_nonces

    with _open() as backend:
        found = _find(backend, round_id)
        entries = list(backend.store.iter_proofs(found))
        if output is not None:
            _write(backend, found, entries, output)
            console(stderr=True).print(
                f"{counted(found.valid, found.spec.proof.kept_noun)} written to {output}."
            )
    if as_json:
        print_json([found.spec.body(entry.proofs) | {"queue": entry.queue} for entry in entries])
    elif output is None:
        for nonce, value in best_nonces(found, entries, limit):
            sys.stdout.write(f"{nonce} {found.spec.proof.show(value, digits=9)}\n")
        if found.valid > limit:
            console(stderr=True).print(
                f"{found.valid - limit:,} more: --limit, or --output FILE for all of them."
            )


@app.command(short_help="Recompute a proofs file: honest or fraud.")
def validate(
    file: Annotated[Path, typer.Argument(help="A proofs file of `round start` or `round proofs`.")],
    model: Model = None,
    dist_threshold: DistThresholdOfFile = None,
    p_mismatch: PMismatchOfFile = None,
    fraud_threshold: Annotated[
        float | None,
        typer.Option(help="It is fraud below this probability [default: the file's]."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Of artifacts: all three as the public network has them for qwen3-235b, kimi-k2.6, "
            "minimax-m2.7, or else: chain."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute the values of a proofs file and test it for fraud: exit code 0 or 1."""
    from rich.progress import Progress

    from pocqueue.engine import load_local_engine
    from pocqueue.poc.artifact.presets import bounds_of
    from pocqueue.rounds.proof_file import ProofFile
    from pocqueue.rounds.validation import engine_note, judged_by, validate_proofs
    from pocqueue.settings import Settings

    read = ProofFile.read(file)
    with option_names():
        bounds = proof_options(
            read.spec.scheme,
            preset=preset,
            dist_threshold=dist_threshold,
            p_mismatch=p_mismatch,
            fraud_threshold=fraud_threshold,
        )
        if (name := bounds.pop("preset", None)) is not None:
            bounds = {**bounds_of(name), **bounds}
        read = judged_by(read, **bounds)
    view = console(stderr=True)
    with closing(load_local_engine(Settings.load(), model, view.print)) as engine:
        if (note := engine_note(read, engine.info)) is not None:
            view.print(note, style="yellow")
        with Progress(console=view, transient=True) as progress:
            task = progress.add_task("recomputing", total=None)
            result = validate_proofs(
                read, engine, lambda done, total: progress.update(task, completed=done, total=total)
            )
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(result.sentence())
    raise typer.Exit(EXIT_FAILED if result.verdict.fraud_detected else EXIT_OK)


def calibrated(
    backend: Backend, draft: Any, info: Any, valid_rate: float, *, quiet: bool
) -> dict[str, Any]:
    """Sample distances of this block on the pool; return the r_target for a valid rate."""
    from pocqueue.measure.samples import distances_of, run_sample, sample_draft
    from pocqueue.measure.valid_rate import check_valid_rate, r_target_for

    check_valid_rate(valid_rate, CALIBRATION_SAMPLES)
    view = console(stderr=True)
    if not quiet:
        view.print(f"Calibrating r_target on {CALIBRATION_SAMPLES:,} nonces of this block …")
    search = sample_draft(draft.block_hash, seq_len=draft.seq_len, batch_size=draft.batch_size)
    with nullcontext() if quiet else progress("Sampling", CALIBRATION_SAMPLES) as tell:
        sample = run_sample(backend, info, search, CALIBRATION_SAMPLES, on_progress=tell)
    distances = distances_of(*sample)
    found = r_target_for(distances, valid_rate)
    if not quiet:
        view.print(
            f"r_target {found.r_target:.6f} makes {percent(valid_rate)} of them valid "
            f"(95 % sure: {found.low:.6f} to {found.high:.6f})."
        )
    return {"r_target": found.r_target, "expected_valid_rate": valid_rate}


def finish(
    backend: Backend, round_id: str, output: Path, interrupts: Interrupts, *, as_json: bool
) -> int:
    """Watch a round to its end, write its proofs, print how it went; return the exit code.

    Args:
        output: a file, or a folder for a file named after the round.
    """
    from pocqueue.cli.report import json_round, print_round

    found = watch_round(backend, round_id, interrupts, quiet=as_json)
    if found is None:
        return EXIT_INTERRUPTED
    if output.is_dir():
        output /= f"{round_id}.json"
    entries = list(backend.store.iter_proofs(found))
    info = _write(backend, found, entries, output)
    posted = backend.callbacks.progress(round_id)
    if as_json:
        print_json(json_round(found, entries, posted, output))
    else:
        print_round(found, entries, posted, info, output)
    return EXIT_OK


def _open() -> Backend:
    from pocqueue.rounds.backend import Backend
    from pocqueue.settings import Settings

    return Backend.open(Settings.load())


def _find(backend: Backend, text: str) -> RoundStatus:
    from pocqueue.rounds.start import find_round

    return backend.store.status(find_round(backend.store, text))


def _write(
    backend: Backend, status: RoundStatus, entries: list[ProofEntry], path: Path
) -> EngineInfo | None:
    """Write a proofs file; return what it says about the model."""
    from pocqueue.rounds.proof_file import ProofFile

    info = _info(backend, status)
    ProofFile.from_round(status, info, entries).write(path)
    return info


def _info(backend: Backend, status: RoundStatus) -> EngineInfo | None:
    """Return what the pool says about a round's model; None once nobody serves it."""
    served = (gpu.info for gpu in backend.pool.all() if status.spec.is_served_by(gpu.info))
    return next(served, None)


def _check_options(
    r_target: float | None, valid_rate: float | None, detach: bool, output: Path | None
) -> None:
    from pocqueue.errors import SettingsError

    if r_target is not None and valid_rate is not None:
        raise SettingsError(
            f"--r-target is {r_target:g} and --valid-rate is {valid_rate:g}; allowed: one of them, or none."
        )
    if detach and output is not None:
        raise SettingsError(
            f"--output is {str(output)!r}, but with --detach nobody waits for the proofs; later "
            "`pocqueue round proofs ID --output FILE` writes them."
        )


def _print_detached(round_id: str, window: float, as_json: bool) -> None:
    if as_json:
        print_json({"round_id": round_id})
        return
    sys.stdout.write(f"{round_id}\n")
    console(stderr=True).print(
        f"The round runs for {seconds(window)}. `pocqueue round watch {round_id[:8]}` shows it, "
        f"`pocqueue round stop {round_id[:8]}` ends it."
    )
