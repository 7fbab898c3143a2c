"""`pocqueue bench`: how fast one GPU makes proofs with one model, and where its time goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocqueue.cli.options import option_names
from pocqueue.cli.output import EXIT_INTERRUPTED, console, print_json

if TYPE_CHECKING:
    from pocqueue.measure.bench import ProfileRequest
    from pocqueue.rounds.spec import RoundSpec
    from pocqueue.settings import Settings

#: Largest batch size of a sweep that does not say.
MAX_BATCH = 1024
#: Distances of that time stay in memory.
MAX_SECONDS = 60.0
PUBLIC_KEY = "pocqueue-bench"
#: How long to wait for the pool, which is asked for a warning's sake alone.
_POOL_TIMEOUT_S = 1.0


def bench(
    queue: Annotated[
        str, typer.Option(help="GPU queue whose device to measure, such as gpu0.")
    ] = "gpu0",
    model: Annotated[
        str | None, typer.Option(help="Model to measure [default: POCQUEUE_MODEL].")
    ] = None,
    seq_len: Annotated[int, typer.Option(help="Positions of one nonce's input.")] = 256,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Nonces of one forward pass [default: 32, or the best of --sweep]."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds to measure each figure for.")] = 5.0,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Find the best batch size: 1, 2, 4 and so on.")
    ] = False,
    max_batch: Annotated[
        int | None, typer.Option(help="Largest batch size of --sweep [default: 1024].")
    ] = None,
    r_target: Annotated[
        float | None,
        typer.Option(help="Say how many nonces of a window will be valid; above 0, up to 2."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a stacked bar to this PNG file.", metavar="FILE.png")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the engine of the settings on one GPU, or on the CPU, with a model.

    Loads the model in a process of its own; stop the worker that serves this GPU first. Of a vLLM
    server only whole engine calls can be measured.
    """
    from pocqueue.cli.bench_report import BenchReport
    from pocqueue.cli.histogram import check_plot
    from pocqueue.cli.stacked import save_plot
    from pocqueue.measure.bench import profile_in_child
    from pocqueue.settings import Settings

    view = console(stderr=True)
    with option_names():
        request, draft = _check(queue, seq_len, batch_size, seconds, sweep, max_batch, r_target)
        if plot is not None:
            check_plot(plot)
        settings = Settings.override(model=model)
        shared_with = _workers_beside(settings, queue)
        if shared_with:
            view.print(_warning(shared_with), style="yellow", markup=False)
        try:
            profile = profile_in_child(
                settings, queue, request, lambda line: view.print(line, markup=False)
            )
        except KeyboardInterrupt:
            view.print("Stopped; nothing is left running.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    if plot is not None:
        info = profile.info
        shape = f"{profile.batch_size} x {profile.seq_len}"
        save_plot(plot, profile, f"{info.model}, {info.engine}, {info.device_name}, {shape}")
    report = BenchReport(profile, draft.window_s, r_target, shared_with, plot)
    if as_json:
        print_json(report.to_dict())
    else:
        report.print()


def _check(
    queue: str,
    seq_len: int,
    batch_size: int | None,
    seconds: float,
    sweep: bool,
    max_batch: int | None,
    r_target: float | None,
) -> tuple[ProfileRequest, RoundSpec]:
    """Check all that can be before anything is loaded."""
    from pocqueue.engine.queue_names import parse_queue
    from pocqueue.errors import InvalidRound, SettingsError
    from pocqueue.measure.bench import DEFAULT_BATCH_SIZE, ProfileRequest
    from pocqueue.measure.calibration import made_up_blocks
    from pocqueue.poc.search import MAX_BATCH_SIZE
    from pocqueue.rounds.start import draft_spec

    if parse_queue(queue) is None:
        raise InvalidRound("queue", queue, "gpuN or HOST.gpuN, such as gpu0")
    if not 0.1 <= seconds <= MAX_SECONDS:
        raise InvalidRound("seconds", seconds, f"seconds from 0.1 to {MAX_SECONDS:g}")
    if max_batch is not None and not sweep:
        raise SettingsError(f"--max-batch is {max_batch}, which is for --sweep: give that, too.")
    if max_batch is not None and not 1 <= max_batch <= MAX_BATCH_SIZE:
        raise InvalidRound("max_batch", max_batch, f"a whole number from 1 to {MAX_BATCH_SIZE}")
    blocks = made_up_blocks()
    draft = draft_spec(
        block_hash=blocks[0],
        public_key=PUBLIC_KEY,
        seq_len=seq_len,
        batch_size=DEFAULT_BATCH_SIZE if batch_size is None else batch_size,
        **({} if r_target is None else {"r_target": r_target}),
    )
    request = ProfileRequest(
        batch_size=batch_size,
        seq_len=seq_len,
        seconds=seconds,
        max_batch=(max_batch or MAX_BATCH) if sweep else None,
        blocks=tuple(blocks),
        public_key=PUBLIC_KEY,
    )
    return request, draft


def _workers_beside(settings: Settings, queue: str) -> list[str]:
    """Return the queues of live workers that keep the same device busy, where the pool says so at once.

    Those of this host for the same queue, device or, as all share its processor, the CPU; for a vLLM
    server, those that use one.
    """
    from pocqueue.engine.kinds import is_remote
    from pocqueue.engine.queue_names import parse_queue
    from pocqueue.errors import StoreError
    from pocqueue.rounds.connection import connect, redis_url
    from pocqueue.rounds.pool import Pool

    parsed = parse_queue(queue)
    assert parsed is not None  # checked with the options
    try:
        url = redis_url(settings)
        client = connect(url, timeout_s=_POOL_TIMEOUT_S)
    except StoreError:
        return []
    found = []
    try:
        for gpu in Pool(client, url).live():
            own = parse_queue(gpu.queue)
            if is_remote(settings.engine) or gpu.info.is_remote:
                beside = settings.engine == gpu.info.engine
            else:
                same_queue = own is not None and own[1] == parsed[1] and settings.device == "auto"
                beside = gpu.host == settings.host_name and (
                    same_queue or gpu.info.device in {"cpu", settings.device}
                )
            if beside:
                found.append(gpu.queue)
    except StoreError:
        return []
    finally:
        client.close()
    return found


def _warning(queues: list[str]) -> str:
    names = ", ".join(queues)
    return (
        f"A live worker of the pool may use this device, too ({names}): figures will be too low while a round "
        "runs. Stop it first, or measure while the pool is idle."
    )
