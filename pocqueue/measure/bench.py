"""Measuring an engine: in turns with its model alone and with its stages, and by batch size.

A measurement takes about as long as asked for, or a few batches where those take longer.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from pocqueue.engine.base import Engine, OnProgress
from pocqueue.engine.kinds import is_remote
from pocqueue.engine.profiled import Profiled
from pocqueue.errors import EngineError, EngineUnavailable, InvalidRound
from pocqueue.logs import log_to_stderr
from pocqueue.measure.memory import MemoryGuard
from pocqueue.measure.profile import Profile, Sweep, SweepPoint
from pocqueue.poc.batch import Batch, batches_of
from pocqueue.poc.config import PoCConfig
from pocqueue.processes.function import run_in_child
from pocqueue.settings import Settings

#: Of a round that does not say.
DEFAULT_BATCH_SIZE = 32
#: A figure is the median of so many turns, at most, and a turn has so many batches, at least. Where others
#: disturb one of them the others stand.
_MAX_TURNS = 8
_BATCHES_A_TURN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What to measure."""

    batch_size: int | None  #: None: the best one of the sweep, else `DEFAULT_BATCH_SIZE`
    seq_len: int
    seconds: float  #: for each figure
    max_batch: int | None  #: largest batch size of the sweep; None: no sweep
    blocks: tuple[str, ...]  #: block hashes, one a turn; then again from the first
    public_key: str

    def config(self, batch_size: int, block: int = 0) -> PoCConfig:
        """Return a round with such batches, of one of the blocks."""
        return PoCConfig(
            block_hash=self.blocks[block % len(self.blocks)],
            block_height=0,
            public_key=self.public_key,
            r_target=2.0,
            batch_size=batch_size,
            seq_len=self.seq_len,
        )


def profile_engine(engine: Engine, request: ProfileRequest, on_progress: OnProgress) -> Profile:
    """Measure an engine; one that is not `Profiled` by its calls alone.

    Raises:
        InvalidRound: the model or the engine does not take such batches.
        EngineError: as the engine does; not where a size of the sweep is too large.
    """
    profiled = engine if isinstance(engine, Profiled) else None
    matrix = parameters = sweep = None
    if profiled is not None:
        # Here and not above: commands read profiles without torch.
        from pocqueue.measure.matrix_rate import measure_matrix_rate

        on_progress("Measuring what the device can multiply")
        matrix = measure_matrix_rate(engine.info)
        parameters = profiled.num_matmul_parameters()
    if request.max_batch is not None:
        sweep = sweep_batch_sizes(engine, request, request.max_batch, on_progress)
    batch_size = request.batch_size or (
        DEFAULT_BATCH_SIZE if sweep is None else sweep.best.batch_size
    )
    on_progress(f"Measuring batches of {batch_size} x {request.seq_len}")
    batch_s = _warm_up(engine, request.config(batch_size))
    num_turns, num_batches = _plan(request.seconds, batch_s)
    engine_s, forward_s, stages, distances = [], [], [], {}
    for turn in range(num_turns):
        config = request.config(batch_size, turn)
        seconds, found = _call_engine(engine, config, num_batches)
        engine_s.append(seconds)
        distances[config.block_hash] = found
        if profiled is not None:
            batch = Batch.of(config, range(batch_size))
            forward_s.append(profiled.time_forward(batch, num_batches) / num_batches)
            stages.append(profiled.time_stages(batch, num_batches))
    return Profile(
        info=engine.info,
        batch_size=batch_size,
        seq_len=request.seq_len,
        engine_s=tuple(engine_s),
        forward_s=tuple(forward_s),
        stages_s=_medians(stages),
        parameters=parameters,
        matrix=matrix,
        distances=distances,
        sweep=sweep,
    )


def sweep_batch_sizes(
    engine: Engine, request: ProfileRequest, max_batch: int, on_progress: OnProgress
) -> Sweep:
    """Measure batch sizes 1, 2, 4 … for as long as they fit into memory and take no longer than asked.

    Raises:
        InvalidRound, EngineError: not even one nonce can be run.
    """
    guard = MemoryGuard(engine.info, in_process=isinstance(engine, Profiled))
    points: list[SweepPoint] = []
    for batch_size in itertools.takewhile(lambda size: size <= max_batch, _powers_of_two()):
        if points and not guard.has_room_for_twice():
            return Sweep(
                tuple(points), "twice the batch would not fit into the memory that is free"
            )
        config = request.config(batch_size)
        try:
            batch_s = _warm_up(engine, config)
            num_turns, num_batches = _plan(request.seconds, batch_s)
            turns = [_call_engine(engine, config, num_batches)[0] for _ in range(num_turns)]
            batch_s = statistics.median(turns)
        except EngineUnavailable:
            raise
        except (EngineError, InvalidRound) as exc:
            if not points:
                raise
            return Sweep(tuple(points), str(exc).rstrip("."))
        points.append(SweepPoint(batch_size, batch_s))
        on_progress(f"Batch size {batch_size}: {points[-1].nonces_per_s:,.1f} nonces/s")
        if batch_s > request.seconds:
            why = f"one batch takes {batch_s:.1f} s, more than the {request.seconds:g} s for each"
            return Sweep(tuple(points), why)
    return Sweep(tuple(points), f"{max_batch} is the largest that was asked for")


def profile_in_child(
    settings: Settings, queue: str, request: ProfileRequest, on_progress: OnProgress
) -> Profile:
    """Load the engine of a GPU queue in a process of its own and measure it there.

    Args:
        settings: engine, model, device and everything else that an engine takes.
        queue: names the device; of no meaning where a server has the model.
        request: what to measure.
        on_progress: told in one line each what is being done.

    Raises:
        EngineError, InvalidRound, SettingsError: as `profile_engine` and `load_engine` do; EngineError,
            too, where the process ends without an answer.
    """
    work = functools.partial(_load_and_profile, settings, queue, request)
    return run_in_child(f"Engine {settings.engine}", work, on_progress)


def _load_and_profile(
    settings: Settings, queue: str, request: ProfileRequest, on_progress: OnProgress
) -> Profile:
    from pocqueue.engine.local import load_local_engine, load_queue_engine

    if settings.log_level == "DEBUG":
        log_to_stderr(settings.log_level)
    if is_remote(settings.engine):
        # A worker waits for a server that starts; whoever types a command does not.
        engine = load_local_engine(settings, on_progress=on_progress)
    else:
        engine = load_queue_engine(queue, settings, on_progress)
    try:
        return profile_engine(engine, request, on_progress)
    finally:
        engine.close()


def _warm_up(engine: Engine, config: PoCConfig) -> float:
    """Run two passes; return the seconds of the second."""
    engine.warm_up(config.batch_size, config.seq_len)
    return _seconds(lambda: engine.warm_up(config.batch_size, config.seq_len))


def _call_engine(engine: Engine, config: PoCConfig, num_batches: int) -> tuple[float, list[float]]:
    """Call an engine as a worker does, each call knowing of the next one.

    Returns:
        Seconds a batch, and the distances of all nonces, of the two batches more too: a first one,
        before which nothing was made ready, and a last one, during which nothing is.
    """
    total = (num_batches + 2) * config.batch_size
    batches = list(batches_of(config, range(total)))
    distances = engine.values(batches[0], batches[1])

    def loop() -> None:
        for batch, following in itertools.pairwise(batches[1:]):
            distances.extend(engine.values(batch, following))

    took = _seconds(loop)
    distances.extend(engine.values(batches[-1]))
    return took / num_batches, distances


def _medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each stage over the turns; nothing for no turns."""
    stages = turns[0] if turns else ()
    return {stage: statistics.median(turn[stage] for turn in turns) for stage in stages}


def _plan(seconds: float, batch_s: float) -> tuple[int, int]:
    """Return how many turns to measure so long in, and of how many batches each; at least one of one."""
    num_turns = max(1, min(_MAX_TURNS, int(seconds / (_BATCHES_A_TURN * batch_s))))
    return num_turns, max(1, round(seconds / num_turns / batch_s))


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _powers_of_two() -> itertools.accumulate[int]:
    return itertools.accumulate(itertools.repeat(2), lambda size, two: size * two, initial=1)
