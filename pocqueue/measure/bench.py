"""Measuring an engine: in turns with its model alone and with its stages, and by batch size.

A measurement takes about as long as asked for, or a few batches if those take longer.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pocqueue.engine.base import Engine, EngineInfo, OnProgress
from pocqueue.engine.memory import free_bytes
from pocqueue.errors import EngineError, EngineUnavailable, InvalidRound
from pocqueue.measure.child import with_engine_in_child
from pocqueue.measure.profile import MatrixRate, Profile, Sweep, SweepPoint
from pocqueue.poc.batch import Batch, batches_of
from pocqueue.poc.scheme import ProofSearch
from pocqueue.rounds.spec import RoundSpec
from pocqueue.settings import Settings

#: Of a round that does not say.
DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What to measure."""

    round: RoundSpec  #: key, sequence length and proof; block and batch size are those of the turn
    batch_size: int | None  #: None: the best one of the sweep, else `DEFAULT_BATCH_SIZE`
    seconds: float  #: for each figure
    max_batch: int | None  #: largest batch size of the sweep; None: no sweep
    blocks: tuple[str, ...]  #: block hashes, one a turn; then again from the first

    def search(self, batch_size: int, turn: int = 0) -> RoundSpec:
        """Return what is searched in a turn, in batches of this size."""
        block_hash = self.blocks[turn % len(self.blocks)]
        return self.round.model_copy(update={"block_hash": block_hash, "batch_size": batch_size})


def profile_in_child(
    settings: Settings, queue: str, request: ProfileRequest, on_progress: OnProgress
) -> Profile:
    """Measure the engine of a GPU queue in a process of its own; see `with_engine_in_child`.

    Raises:
        EngineError, InvalidRound, SettingsError: as that and `Bench.run` do.
    """
    work = functools.partial(_profile, request)
    return with_engine_in_child(settings, work, on_progress, queue=queue)


def _profile(request: ProfileRequest, engine: Engine, on_progress: OnProgress) -> Profile:
    # Here and not above: commands read profiles without torch.
    from pocqueue.measure.matrix_rate import measure_matrix_rate

    return Bench(engine, request, on_progress, measure_matrix_rate).run()


def peak_bytes() -> int:
    """Return the most memory, in bytes, that this process has had so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


#: Of the memory that is free, the share that twice the batch may be expected to need.
_MOST_MEMORY = 0.9


def room_guard(
    engine: Engine,
    peak: Callable[[], int] = peak_bytes,
    free: Callable[[], int | None] = free_bytes,
) -> Callable[[], bool]:
    """Return what says whether an engine may try twice the batch; yes if that is unknown.

    What batches have needed so far must be had once more. Linux kills whoever asks for too much memory. A GPU refuses what does not fit and goes on, so it is not
    watched, and nor are ranks and servers, which are processes of their own.
    """
    info, before = engine.info, peak()
    if engine.timer() is None or info.device != "cpu" or info.tensor_parallel > 1:
        return lambda: True

    def has_room() -> bool:
        available = free()
        return available is None or peak() - before < _MOST_MEMORY * available

    return has_room


#: A figure is the median of at most this many turns of at least this many batches: if another process
#: disturbs one turn, the others stand.
_MAX_TURNS = 8
#: How often to say how far a measurement is, whatever it has found.
TELL_EVERY_S = 10.0
_BATCHES_A_TURN = 4


@dataclass(eq=False)
class Bench:
    """Measures one engine; one without a timer by its calls alone."""

    engine: Engine
    request: ProfileRequest
    on_progress: OnProgress  #: told in one line each what is being done
    matrix_rate: Callable[[EngineInfo], MatrixRate]  #: measures what a device can multiply
    clock: Callable[[], float] = time.perf_counter  #: seconds
    #: Gives what says, during a sweep, whether twice the batch may be tried.
    room: Callable[[Engine], Callable[[], bool]] = room_guard

    def __post_init__(self) -> None:
        self._told_at = -math.inf

    def run(self) -> Profile:
        """Measure what was asked for.

        Raises:
            InvalidRound: the model or the engine does not take such batches.
            EngineError: as the engine does; not if a size of the sweep is too large.
        """
        engine, request = self.engine, self.request
        timer = engine.timer()
        matrix = parameters = sweep = None
        if timer is not None:
            self.on_progress("Measuring what the device can multiply")
            matrix = self.matrix_rate(engine.info)
            parameters = timer.num_matmul_parameters()
        if request.max_batch is not None:
            sweep = self.sweep(request.max_batch)
        batch_size = request.batch_size or (
            DEFAULT_BATCH_SIZE if sweep is None else sweep.best.batch_size
        )
        batch_s = self._warm_up(batch_size)
        num_turns, num_batches = self._plan(batch_s)
        self._told_at = -math.inf
        what = f"Measuring batches of {batch_size} x {request.round.seq_len}"
        self._tell(what, self._last_s(batch_s))
        engine_s, forward_s, stages, distances = [], [], [], {}
        for turn in range(num_turns):
            done = turn / num_turns
            self._tell(f"Turn {turn + 1} of {num_turns}", (1 - done) * self._last_s(batch_s))
            search = request.search(batch_size, turn)
            seconds, found = self._call(search, num_batches)
            engine_s.append(seconds)
            distances[search.block_hash] = found
            if timer is not None:
                batch = Batch.of(search, range(batch_size))
                forward_s.append(timer.time_forward(batch, num_batches) / num_batches)
                stages.append(timer.time_stages(batch, num_batches))
        return Profile(
            info=engine.info,
            batch_size=batch_size,
            seq_len=request.round.seq_len,
            engine_s=tuple(engine_s),
            forward_s=tuple(forward_s),
            stages_s={
                stage: statistics.median(turn[stage] for turn in stages)
                for stage in (stages[0] if stages else ())
            },
            parameters=parameters,
            matrix=matrix,
            distances=distances,
            sweep=sweep,
        )

    def sweep(self, max_batch: int) -> Sweep:
        """Measure batch sizes 1, 2, 4 … for as long as they fit into memory and take no longer than asked.

        Raises:
            InvalidRound, EngineError: not even one nonce can be run.
        """
        seconds, points = self.request.seconds, list[SweepPoint]()
        has_room = self.room(self.engine)
        end = f"{max_batch} is the largest that was asked for"
        batch_size = 1
        while batch_size <= max_batch:
            if points and not has_room():
                end = "twice the batch would not fit into the memory that is free"
                break
            try:
                batch_s = self._warm_up(batch_size)
                num_turns, num_batches = self._plan(batch_s)
                search, turns = self.request.search(batch_size), list[float]()
                for turn in range(num_turns):
                    left_s = (1 - turn / num_turns) * self._size_s(batch_s)
                    left_s += self._larger_s(batch_size, batch_s, max_batch)
                    self._tell(f"Batch size {batch_size}, turn {turn + 1} of {num_turns}", left_s)
                    turns.append(self._call(search, num_batches)[0])
            except EngineUnavailable:
                raise
            except (EngineError, InvalidRound) as exc:
                if not points:
                    raise
                end = str(exc).rstrip(".")
                break
            points.append(SweepPoint(batch_size, statistics.median(turns)))
            batch_s = points[-1].batch_s
            self._told_at = -math.inf
            self._tell(
                f"Batch size {batch_size}: {points[-1].nonces_per_s:,.1f} nonces/s",
                self._larger_s(batch_size, batch_s, max_batch),
            )
            if batch_s > seconds:
                end = f"one batch takes {batch_s:.1f} s, more than the {seconds:g} s for each"
                break
            batch_size *= 2
        return Sweep(tuple(points), end)

    def _tell(self, text: str, left_s: float) -> None:
        """Say what is being done and how long it all takes yet, unless something was said a moment ago."""
        now = self.clock()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self.on_progress(f"{text}; about {left_s:,.0f} s left")

    def _size_s(self, batch_s: float, num_figures: int = 1) -> float:
        """Return how long so many figures of one batch size take, warm-up and unmeasured batches included."""
        num_turns, num_batches = self._plan(batch_s)
        return batch_s * (2 + num_turns * (2 + num_figures * num_batches))

    def _last_s(self, batch_s: float) -> float:
        """Return how long the figures take that come after the sweep: calls, model and stages in turns."""
        return self._size_s(batch_s, 1 if self.engine.timer() is None else 3)

    def _larger_s(self, batch_size: int, batch_s: float, max_batch: int) -> float:
        """Return how long what comes after a size of the sweep takes, if twice the batch takes twice as long."""
        total = 0.0
        while batch_s <= self.request.seconds and 2 * batch_size <= max_batch:
            batch_size, batch_s = 2 * batch_size, 2 * batch_s
            total += self._size_s(batch_s)
        return total + self._last_s(batch_s)

    def _warm_up(self, batch_size: int) -> float:
        """Run two passes; return the seconds of the second."""
        self.engine.warm_up(batch_size, self.request.round.seq_len)
        began = self.clock()
        self.engine.warm_up(batch_size, self.request.round.seq_len)
        return self.clock() - began

    def _plan(self, batch_s: float) -> tuple[int, int]:
        """Return how many turns to measure in, and of how many batches each; at least one of one."""
        seconds = self.request.seconds
        num_turns = max(1, min(_MAX_TURNS, int(seconds / (_BATCHES_A_TURN * batch_s))))
        return num_turns, max(1, round(seconds / num_turns / batch_s))

    def _call(self, search: ProofSearch, num_batches: int) -> tuple[float, list[Any]]:
        """Call the engine as a worker does, each call knowing of the next one.

        Returns:
            Seconds a batch, and the values of all nonces, of the two batches more too: a first one,
            before which nothing was prefetched, and a last one, during which nothing is.
        """
        first, *others = batches_of(search, range((num_batches + 2) * search.batch_size))
        values = self.engine.values(first, others[0])
        began = self.clock()
        for batch, upcoming in itertools.pairwise(others):
            values += self.engine.values(batch, upcoming)
        took = self.clock() - began
        values += self.engine.values(others[-1])
        return took / num_batches, values


#: How long to wait for the pool, which is asked for a warning's sake alone.
_POOL_TIMEOUT_S = 1.0


def workers_beside(settings: Settings, queue: str) -> list[str]:
    """Return the queues of live workers that keep the same device busy, if the pool answers at once.

    Those of this host for the same queue, device or, as all share its processor, the CPU; for a vLLM
    server, those that use one.
    """
    from pocqueue.engine.base import is_remote
    from pocqueue.engine.devices import parse_queue
    from pocqueue.errors import StoreError
    from pocqueue.rounds.connection import connect, redis_url
    from pocqueue.rounds.pool import Gpu, Pool

    try:
        url = redis_url(settings)
        with contextlib.closing(connect(url, timeout_s=_POOL_TIMEOUT_S)) as client:
            gpus = Pool(client, url).live()
    except StoreError:
        return []

    def is_beside(gpu: Gpu) -> bool:
        if is_remote(settings.engine) or gpu.info.is_remote:
            return settings.engine == gpu.info.engine
        asked, own = parse_queue(queue), parse_queue(gpu.queue)
        assert asked is not None  # checked with the options
        same_queue = own is not None and own[1] == asked[1] and settings.device == "auto"
        return gpu.host == settings.host_name and (
            same_queue or gpu.info.device in {"cpu", settings.device}
        )

    return [gpu.queue for gpu in gpus if is_beside(gpu)]
