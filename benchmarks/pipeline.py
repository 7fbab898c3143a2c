"""What a worker's pipeline leaves of a model's speed: the runner against the forward pass alone.

    python -m benchmarks.pipeline

Everything is in one process and takes turns: the runner as workers have it (two task threads, one engine
thread, commits to a real Redis), the same with the reference maths, and the forward pass on embeddings
in memory, logits included. Celery and the scheduler are not in it: `queue_efficiency` has the whole way.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from benchmarks.artifacts import reflections
from benchmarks.effort import FULL, Effort
from benchmarks.shapes import SHAPES, write_model
from benchmarks.stats import Figure, Sample
from pocqueue.engine import EngineOptions
from pocqueue.engine.base import Engine
from pocqueue.engine.devices import device_for_queue
from pocqueue.engine.torch_model.engine import TorchEngine
from pocqueue.poc.batch import Batch
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import Assignment
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.spec import RoundSpec, RoundState
from pocqueue.settings import Settings
from workers.range_runner import RangeRunner, single_thread

#: In the order A B C C B A: a noisy machine's moods fall on all sides.
NUM_TURNS = 8
#: Length of a turn at the speed of the forward pass.
TURN_S = 1.2
#: The scheduler's aim.
RANGE_S = 0.6


@dataclass(frozen=True)
class Case:
    """A model and the shape of its batches."""

    title: str
    model: str
    batch_size: int
    seq_len: int
    target: float  #: least ratio of the worker to its forward pass
    judged: bool = True  #: whether to measure with the reference maths, too
    #: Fields of its rounds that say what is computed.
    proof: Mapping[str, Any] = field(default_factory=lambda: {"r_target": 1.38})
    reflected: bool = False  #: whether to measure the share of the reflections, too


class WatchedEngine(Engine):
    """An engine that keeps how long it waited for each of its calls, in seconds."""

    def __init__(self, engine: TorchEngine) -> None:
        self.info = engine.info
        self.waits: list[float] = []
        self._engine = engine
        self._free_since = time.perf_counter()

    @override
    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        self.waits.append(time.perf_counter() - self._free_since)
        values = self._engine.values(batch, upcoming)
        self._free_since = time.perf_counter()
        return values

    @override
    def close(self) -> None:
        self._engine.close()


class PipelineBench:
    """One model in this process, under a runner with the fast maths and one with the reference's.

    Args:
        case: what to run.
        settings: for the engine.
        backend: a Redis without a scheduler.
        turn_s: length of a turn at the speed of the forward pass.
    """

    def __init__(
        self, case: Case, settings: Settings, backend: Backend, turn_s: float = TURN_S
    ) -> None:
        self.case = case
        self._store = backend.store
        self._engine_thread = single_thread("engine")
        self._tasks = ThreadPoolExecutor(2, thread_name_prefix="task")
        fast, judged = self._engine_thread.submit(_load, settings, case.model).result()
        self._engine, self._timer = fast, fast.timer()
        self._watched = WatchedEngine(fast)
        #: Of the fast maths: what the engine waited for each range that was there already.
        self.gaps: list[float] = []
        self.fast, self.judged = (
            RangeRunner(engine, self._store, "w0", print, engine_thread=self._engine_thread)
            for engine in (self._watched, judged)
        )
        self._batch = Batch.of(self._spec(1), range(case.batch_size))
        self.num_batches = 4
        self.num_batches = max(2, round(turn_s / (case.batch_size / self.forward()) / 4))

    @property
    def threads(self) -> str:
        """Say what the maths runs on."""
        import torch

        from pocqueue.poc.kernels import kernels_for

        kernels = kernels_for(self._engine.info.device)
        return f"{kernels.name}, {torch.get_num_threads()} threads"

    def forward(self) -> float:
        """Return nonces per second of the forward pass alone."""
        seconds: float = self._run(self._timer.time_forward, self._batch, self.num_batches)
        return self.num_batches * self.case.batch_size / seconds

    def worker(self, runner: RangeRunner) -> float:
        """Return nonces per second of a runner that has a range waiting whenever one ends."""
        size = self.case.batch_size
        per_range = max(1, round(self.num_batches * RANGE_S / TURN_S)) * size
        total = self.num_batches * size
        self._watched.waits.clear()
        round_id = self._store.create(self._spec(total))
        ids = []
        wanted = Assignment(round_id, "gpu0", "w0", per_range)
        while assigned := self._store.assign_ranges([wanted])[0]:
            ids.append(assigned.range_id)
        began = time.perf_counter()
        said = list(self._tasks.map(lambda range_id: runner.run(round_id, range_id), ids))
        seconds = time.perf_counter() - began
        status = self._store.status(round_id)
        if status.state is not RoundState.COMPLETED or status.checked != total:
            raise RuntimeError(f"The runner did not search its ranges: {said}")
        self.gaps += self._watched.waits[:: per_range // size][1:]
        return total / seconds

    def reflections(self, num_turns: int) -> Figure:
        """Measure what the reflections take of a pass."""
        figure: Figure = self._run(
            reflections, self._engine, self._batch, num_turns, self.case.title
        )
        return figure

    def close(self) -> None:
        """Free the model."""
        self._tasks.shutdown()
        self._run(self._engine.close)
        self.fast.close()
        self.judged.close()

    def _run(self, function: Any, *arguments: Any) -> Any:
        """Call in the engine thread: torch's team of threads belongs to one."""
        return self._engine_thread.submit(function, *arguments).result()

    def _spec(self, num_nonces: int) -> RoundSpec:
        return RoundSpec.build(
            block_hash=f"pipeline-{time.time_ns()}",
            public_key="bench",
            **self.case.proof,
            window_s=600.0,
            batch_size=self.case.batch_size,
            seq_len=self.case.seq_len,
            max_nonces=num_nonces,
            model=self._engine.info.model,
            model_fingerprint=self._engine.info.fingerprint,
        )


def pipeline(effort: Effort = FULL) -> list[Figure]:
    """Measure every case that this machine's device is for."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="pocqueue-pipeline-") as folder:
        settings = Settings.load().model_copy(
            update={"state_dir": Path(folder), "redis_url": None, "engine": "torch"}
        )
        server = RedisServer(settings.state_dir)
        server.ensure()
        try:
            with Backend.open(settings) as backend:
                for case in _cases(Path(folder), effort):
                    bench = PipelineBench(case, settings, backend, TURN_S * effort.share)
                    try:
                        figures += _measure(bench, effort)
                    finally:
                        bench.close()
        finally:
            server.stop()
    return figures


def _cases(folder: Path, effort: Effort) -> list[Case]:
    import torch

    if torch.cuda.is_available():
        path = str(write_model(SHAPES["0.6b"], folder / "0.6b"))
        return _with_artifacts(
            Case("0.6 B parameters, 32x256", path, 32, 256, 0.97), reflected=True
        )
    if not effort.is_full:
        return _with_artifacts(Case("tiny model, 4x64", "embedded", 4, 64, 0.93))
    cases = _with_artifacts(Case("tiny model, 32x256", "embedded", 32, 256, 0.93))
    path = str(write_model(SHAPES["100m"], folder / "100m"))
    # On two cores a batch of the default shape would take ten seconds.
    return cases + _with_artifacts(
        Case("100 M parameters, 8x64", path, 8, 64, 0.97, judged=False), reflected=True
    )


def _with_artifacts(case: Case, *, reflected: bool = False) -> list[Case]:
    """Return a case of distances, and the same of artifacts."""
    artifacts = replace(
        case,
        title=f"{case.title}, artifacts",
        judged=False,
        proof={"scheme": "artifact"},
        reflected=reflected,
    )
    return [case, artifacts]


def _measure(bench: PipelineBench, effort: Effort) -> list[Figure]:
    forward: list[float] = []
    fast: list[float] = []
    judged: list[float] = []
    sides: list[Callable[[], None]] = [
        lambda: forward.append(bench.forward()),
        lambda: fast.append(bench.worker(bench.fast)),
    ]
    if bench.case.judged:
        sides.append(lambda: judged.append(bench.worker(bench.judged)))
    for turn in range(effort.runs(NUM_TURNS)):
        for side in sides if turn % 2 == 0 else reversed(sides):
            side()
    target, title = bench.case.target, bench.case.title
    worker = Sample(fast, "nonces/s")
    over_forward = _median_ratio(fast, forward)
    gaps = Sample([1000 * gap for gap in bench.gaps], "ms")
    figures = [
        Figure(
            f"worker over its forward pass, {title}, {bench.threads}",
            worker,
            Sample(forward, "nonces/s"),
            "forward pass in a loop, inputs in memory",
            over_forward,
            f"ratio at least {target}",
            over_forward >= target,
        ),
        Figure(
            f"gap between two ranges in the runner, {title}",
            gaps,
            None,
            "",
            gaps.median,
            "median at most 0.5 ms",
            gaps.median <= 0.5,
        ),
    ]
    if judged:
        over_judge = _median_ratio(fast, judged)
        figures.append(
            Figure(
                f"worker over the same with the reference maths, {title}",
                worker,
                Sample(judged, "nonces/s"),
                "the same worker with the reference maths",
                over_judge,
                "above 1",
                over_judge > 1,
            )
        )
    if bench.case.reflected:
        figures.append(bench.reflections(effort.runs(NUM_TURNS)))
    return figures


def _load(settings: Settings, model: str) -> tuple[TorchEngine, TorchEngine]:
    import torch

    from pocqueue.engine.torch_model.loader import load_model
    from pocqueue.poc.kernels.reference import ReferenceKernels

    device = device_for_queue("gpu0", settings.device)
    options = EngineOptions(model=model, device=device, state_dir=settings.state_dir)
    loaded, info = load_model(options, lambda _line: None)
    judged = TorchEngine(loaded, info, ReferenceKernels(torch.device(device)))
    return TorchEngine(loaded, info), judged


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    return Sample([a / b for a, b in zip(ours, theirs, strict=True)], "").median


if __name__ == "__main__":
    for figure in pipeline():
        print(figure.name, "|", figure.measured, "|", figure.against, "|", f"{figure.value:.4g}")
