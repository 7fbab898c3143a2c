"""What a profile says, measured on an engine in memory by a clock that the engine itself moves."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from pocqueue.engine.base import Engine, check_batch
from pocqueue.engine.memory import free_bytes
from pocqueue.engine.profiled import STAGES, MatmulParameters
from pocqueue.errors import EngineError, EngineUnavailable, InvalidRound
from pocqueue.measure.bench import Bench, ProfileRequest, room_guard
from pocqueue.measure.profile import MatrixRate, Profile, Sweep, SweepPoint
from pocqueue.measure.valid_rate import estimate_window
from pocqueue.poc.batch import Batch
from pocqueue.rounds.start import draft_spec
from tests.support.factories import make_info

#: A pass takes the first, and the second for each of its nonces.
PASS_S, NONCE_S = 0.01, 0.001
BLOCKS = ("block-1", "block-2", "block-3")
RATE = MatrixRate(1e8, 512, "float32", 1)


class CallsOnly(Engine):
    """An engine whose calls move a clock; no more of it can be measured.

    Args:
        max_batch_size: larger batches do not fit.
        failure: raised then.
    """

    def __init__(
        self,
        max_batch_size: int = 4096,
        failure: Exception | None = None,
    ) -> None:
        self.now = 0.0
        self.info = make_info()
        self.calls: list[tuple[Batch, Batch | None]] = []
        self._max_batch_size = max_batch_size
        self._failure = failure or EngineError("It does not fit into the memory.")

    @override
    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        check_batch(self.info, batch)
        if batch.batch_size > self._max_batch_size:
            raise self._failure
        self.calls.append((batch, upcoming))
        self.now += PASS_S + NONCE_S * batch.batch_size
        return [(nonce % 10) / 10 for nonce in batch.nonces]

    @override
    def close(self) -> None:
        """Nothing is held."""


class Timed(CallsOnly):
    """One whose parts can be timed, too: the model takes 0.9 of a call, the other stages 0.02 each."""

    @override
    def timer(self) -> Timed:
        return self

    def time_stages(self, batch: Batch, num_batches: int) -> dict[str, float]:
        call_s = PASS_S + NONCE_S * batch.batch_size
        self.now += num_batches * call_s
        return {stage: call_s * (0.9 if stage == "forward" else 0.02) for stage in STAGES}

    def time_forward(self, batch: Batch, num_batches: int) -> float:
        took = 0.9 * num_batches * (PASS_S + NONCE_S * batch.batch_size)
        self.now += took
        return took

    def num_matmul_parameters(self) -> MatmulParameters | None:
        return MatmulParameters(1000, 512)


@pytest.fixture
def engine() -> Timed:
    """An engine whose parts can be timed."""
    return Timed()


def bench(
    engine: CallsOnly, room: Callable[[Engine], Callable[[], bool]] = room_guard, **changes: Any
) -> Bench:
    """A measurement by the engine's own clock, on a device whose rate is known."""
    return Bench(
        engine=engine,
        request=request(**changes),
        on_progress=silent,
        matrix_rate=lambda _info: RATE,
        clock=lambda: engine.now,
        room=room,
    )


def request(**changes: Any) -> ProfileRequest:
    """Ask for a second of batches of 10 x 8, without a sweep."""
    fields: dict[str, Any] = {
        "round": draft_spec(block_hash=BLOCKS[0], public_key="key", seq_len=8),
        "batch_size": 10,
        "seconds": 1.0,
        "max_batch": None,
        "blocks": BLOCKS,
    }
    return ProfileRequest(**(fields | changes))


def silent(_line: str) -> None:
    """Tell nobody."""


def make_profile(**changes: Any) -> Profile:
    """Make a profile: batches of 10 x 8 that take 20 ms, 18 of them in the model."""
    fields: dict[str, Any] = {
        "info": make_info(),
        "batch_size": 10,
        "seq_len": 8,
        "engine_s": (0.02, 0.04, 0.01),
        "forward_s": (0.018, 0.03, 0.0095),
        "stages_s": {"seeds": 0.0, "inputs": 0.001, "forward": 0.017, "distances": 0.001},
        "parameters": MatmulParameters(1000, 512),
        "matrix": RATE,
        "distances": {"block-1": [1.0, 1.2], "block-2": [1.1, float("nan")]},
    }
    return Profile(**(fields | changes))


def test_the_work_of_a_nonce_is_that_of_its_matrices() -> None:
    """Two FLOP a parameter and position; the output layer for one position."""
    assert MatmulParameters(1000, 512).flop(8) == 2 * (1000 * 8 + 512)


def test_a_profile_reports_medians_and_the_median_ratio_of_turns() -> None:
    """Rates of the middle turn; a turn's ratio compares what was measured side by side."""
    found = make_profile()
    assert found.nonces_per_s == pytest.approx(500)
    assert found.forward_nonces_per_s == pytest.approx(10 / 0.018)
    assert found.ratio == pytest.approx(0.9)
    assert found.flop_per_nonce == 17024
    assert found.share_of_rate(found.nonces_per_s) == pytest.approx(500 * 17024 / 1e8)
    assert found.rest_s == pytest.approx(0.001)
    assert found.overlap_s == 0


def test_stages_that_overlap_leave_no_rest() -> None:
    """What they take together beyond a batch runs beside something else."""
    found = make_profile(engine_s=(0.015,), forward_s=(0.015,))
    assert found.rest_s == 0
    assert found.overlap_s == pytest.approx(0.004)


def test_what_is_unknown_stays_unknown() -> None:
    """Packed weights give no FLOP; a server gives whole calls alone."""
    packed = make_profile(parameters=None)
    assert packed.flop_per_nonce is None
    assert packed.share_of_rate(1.0) is None
    served = make_profile(forward_s=(), stages_s={}, parameters=None, matrix=None)
    assert (served.forward_nonces_per_s, served.ratio) == (None, None)
    assert served.rest_s == served.batch_s
    assert served.to_dict()["ratio"] is None


def test_a_profile_is_fit_for_json() -> None:
    """With what follows from it, and without thousands of distances."""
    sweep = Sweep((SweepPoint(1, 0.01), SweepPoint(2, 0.01)), "enough")
    found = json.loads(json.dumps(make_profile(sweep=sweep).to_dict()))
    assert found["nonces_per_s"] == pytest.approx(500)
    assert found["num_distances"] == 4
    assert "distances" not in found
    assert found["sweep"]["best_batch_size"] == 2
    assert found["sweep"]["points"][1]["nonces_per_s"] == pytest.approx(200)
    assert found["parameters"]["per_token"] == 1000


def test_the_best_batch_is_the_smallest_of_those_alike() -> None:
    """Nobody wants twice the batch for a percent."""
    rates = {1: 100.0, 2: 180.0, 4: 199.0, 8: 200.0, 16: 150.0}
    points = tuple(SweepPoint(size, size / rate) for size, rate in rates.items())
    assert Sweep(points, "enough").best.batch_size == 4
    assert Sweep(points[:2], "enough").best.batch_size == 2


def test_engine_and_model_are_measured_in_turns(engine: Timed) -> None:
    """As long as asked for, on one block a turn; the other figures as the engine gives them."""
    found = bench(engine).run()
    assert len(found.engine_s) == len(found.forward_s) == 8
    assert found.engine_s == pytest.approx([0.02] * 8)
    assert found.ratio == pytest.approx(0.9)
    assert sum(found.stages_s.values()) == pytest.approx(0.96 * 0.02)
    assert found.rest_s == pytest.approx(0.04 * 0.02)
    assert set(found.distances) == set(BLOCKS)
    assert (found.matrix, found.parameters) == (RATE, MatmulParameters(1000, 512))


def test_every_measured_call_knows_of_the_next(engine: Timed) -> None:
    """As a worker's do; the two that differ are not timed, and their distances count as well."""
    found = bench(engine, seconds=0.1).run()
    calls = [call for call in engine.calls if call[0].block_hash == "block-1"]
    for (_, upcoming), (batch, _) in itertools.pairwise(calls):
        assert upcoming == batch
    assert calls[-1][1] is None
    assert [batch.nonces[0] for batch, _ in calls] == [*range(0, 10 * len(calls), 10)]
    assert len(found.distances["block-1"]) == 10 * len(calls)
    assert len(found.engine_s) == 1
    assert len(calls) == 5 + 2


def test_a_slow_engine_is_measured_once(engine: Timed) -> None:
    """A batch may take longer than there is time."""
    found = bench(engine, seconds=0.1, batch_size=4000).run()
    assert found.engine_s == pytest.approx([4.01])
    assert [batch.batch_size for batch, _ in engine.calls] == [4000] * 5


def test_an_engine_with_calls_alone_is_measured_by_those() -> None:
    """As a served model is: nothing else is said of it."""
    engine = CallsOnly()
    found = bench(engine).run()
    assert found.nonces_per_s == pytest.approx(500)
    assert (found.forward_s, found.stages_s, found.matrix, found.parameters) == ((), {}, None, None)


def test_the_sweep_decides_about_the_batch_size(engine: Timed) -> None:
    """Unless there is one already; without either it is a round's default."""
    found = bench(engine, batch_size=None, max_batch=100).run()
    assert found.sweep is not None
    assert [point.batch_size for point in found.sweep.points] == [1, 2, 4, 8, 16, 32, 64]
    assert [point.nonces_per_s for point in found.sweep.points] == pytest.approx(
        [size / (PASS_S + NONCE_S * size) for size in (1, 2, 4, 8, 16, 32, 64)]
    )
    assert found.batch_size == found.sweep.best.batch_size == 64
    assert "100" in found.sweep.end
    assert bench(engine, max_batch=2).run().batch_size == 10
    assert bench(engine, batch_size=None).run().batch_size == 32


@pytest.mark.parametrize(
    "failure",
    [EngineError("It does not fit into the memory."), InvalidRound("batch_size", 8, "1 to 7")],
    ids=["memory", "limit"],
)
def test_a_sweep_ends_where_the_engine_refuses(
    failure: Exception,
) -> None:
    """With the engine's words; what was measured stands."""
    engine = Timed(max_batch_size=7, failure=failure)
    sweep = bench(engine).sweep(64)
    assert [point.batch_size for point in sweep.points] == [1, 2, 4]
    assert sweep.end == str(failure).rstrip(".")


def test_a_sweep_ends_where_a_batch_takes_too_long(engine: Timed) -> None:
    """The next one would take twice as long."""
    sweep = bench(engine, seconds=0.1).sweep(4096)
    assert sweep.points[-1].batch_size == 128
    assert sweep.end == "one batch takes 0.1 s, more than the 0.1 s for each"


def test_a_sweep_without_one_size_is_an_error() -> None:
    """And so is a server that goes away, whatever was measured before."""
    engine = Timed(max_batch_size=0)
    with pytest.raises(EngineError, match="does not fit"):
        bench(engine).sweep(64)
    gone = CallsOnly(4, EngineUnavailable("It does not answer."))
    with pytest.raises(EngineUnavailable):
        bench(gone).sweep(64)


def test_a_sweep_ends_before_linux_would_end_it(engine: Timed) -> None:
    """On the CPU nobody refuses: whoever asks for too much is killed."""
    peaks = iter([1_000, 1_100, 1_200, 1_900])
    guard = functools.partial(room_guard, peak=lambda: next(peaks), free=lambda: 900)
    sweep = bench(engine, guard).sweep(64)
    assert [point.batch_size for point in sweep.points] == [1, 2, 4]
    assert "memory" in sweep.end


@pytest.mark.parametrize("changes", [{"device": "cuda:0"}, {"tensor_parallel": 2}])
def test_only_a_model_in_this_process_on_the_cpu_is_guarded(
    engine: Timed, changes: dict[str, Any]
) -> None:
    """GPUs refuse by themselves; other processes are not ours to measure."""
    assert not room_guard(engine, free=lambda: 0)()
    assert room_guard(CallsOnly(), free=lambda: 0)()
    engine.info = make_info(**changes)
    assert room_guard(engine, free=lambda: 0)()


def test_free_memory_is_what_the_machine_says() -> None:
    """More than a page, less than an exabyte."""
    free = free_bytes()
    assert free is not None
    assert 4096 < free < 2**60


def test_a_rate_of_none_in_a_hundred_is_at_most_that_of_the_exact_interval() -> None:
    """Clopper and Pearson's has a closed form there: 1 - 0.025^(1/n)."""
    found = estimate_window(10.0, 330.0, [[1.0] * 100], 0.5)
    assert (found.rate, found.rate_low) == (0.0, 0.0)
    assert found.rate_high == pytest.approx(1 - 0.025**0.01)
    assert (found.num_nonces, found.num_valid, found.num_valid_low) == (3300, 0.0, 0.0)
    assert found.num_valid_high == pytest.approx(3300 * found.rate_high)
    assert found.between_blocks is None


def test_the_ends_of_the_scale() -> None:
    """All valid, and none that is no number."""
    found = estimate_window(10.0, 1.0, [[0.1] * 50], 0.5)
    assert (found.rate, found.rate_high, found.num_valid_high) == (1.0, 1.0, 10.0)
    assert found.num_valid_low < 10.0
    assert estimate_window(10.0, 1.0, [[float("nan")] * 5], 0.5).rate == 0.0
    with pytest.raises(EngineError, match="no distances"):
        estimate_window(10.0, 1.0, [[]], 0.5)


def test_blocks_that_differ_widen_the_interval() -> None:
    """The next block is another one again."""
    twenty = [0.1] * 20 + [0.9] * 80
    alike = estimate_window(100.0, 330.0, [twenty, twenty], 0.5)
    samples = [[0.1] * 30 + [0.9] * 70, [0.1] * 10 + [0.9] * 90]
    apart = estimate_window(100.0, 330.0, samples, 0.5)
    assert alike.num_valid == apart.num_valid == pytest.approx(6600)
    assert apart.num_valid_low < alike.num_valid_low < 6600
    assert apart.num_valid_high > alike.num_valid_high > 6600


def test_the_interval_holds_what_it_promises() -> None:
    """Over many made-up windows, whose true rate is that of the sample's source."""
    rng = np.random.default_rng(7)
    rate, nonces, held = 0.05, 2000, 0
    for _ in range(400):
        found = estimate_window(100.0, 20.0, [rng.random(500).tolist()], rate)
        held += found.num_valid_low <= rng.binomial(nonces, rate) <= found.num_valid_high
    assert held / 400 >= 0.95


@pytest.mark.parametrize("changes", [{}, {"max_batch": 512, "batch_size": None}])
def test_the_time_left_is_told_every_ten_seconds(engine: Timed, changes: dict[str, Any]) -> None:
    """About right from the first time on, whatever is measured, and never much too short."""
    told: list[tuple[float, float]] = []

    def hear(line: str) -> None:
        if (found := re.search(r"; about ([\d,]+) s left$", line)) is not None:
            told.append((engine.now, float(found[1].replace(",", ""))))

    measured = bench(engine, seconds=40.0, **changes)
    measured.on_progress = hear
    measured.run()
    for now, left_s in told:
        assert engine.now - now <= 1.2 * left_s + 1
        assert left_s <= 2.5 * (engine.now - now) + 1
    times = [0.0, *(now for now, _ in told), engine.now]
    assert max(later - now for now, later in itertools.pairwise(times)) < 30
