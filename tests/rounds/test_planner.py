"""What the scheduler decides, in values and in simulated time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pocqueue.rounds.planner import (
    DELIVERY_S,
    DEPTH,
    MAX_LAG_S,
    find_lost,
    plan,
    range_size,
)
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.records import Assignment, OutstandingRange, RoundStatus
from tests.support.factories import (
    NOW_MS,
    OTHER_FINGERPRINT,
    make_gpu,
    make_info,
    make_range,
    make_spec,
    make_status,
)
from tests.support.simulation import STEP_S, Simulation, jain_index, vtime_after


def _plan(
    rounds: list[RoundStatus], gpus: list[Gpu], outstanding: list[OutstandingRange] | None = None
) -> list[Assignment]:
    return plan(rounds, gpus, outstanding or [], NOW_MS)


def _where(assignments: list[Assignment]) -> list[tuple[str, int]]:
    return [(a.queue, a.num_nonces) for a in assignments]


# Depth and size


def test_an_idle_gpu_gets_one_range_to_run_and_one_to_wait() -> None:
    """Two ranges of a second each, addressed to the worker that lives now."""
    assignments = _plan([make_status()], [make_gpu(rate=100.0)])
    assert _where(assignments) == [("gpu0", 100), ("gpu0", 100)]
    assert {(a.round_id, a.worker) for a in assignments} == {("round-1", "worker-of-gpu0")}


def test_a_gpu_with_one_range_gets_one_more_and_with_two_none() -> None:
    """The queue is never deeper than two, whoever the ranges belong to."""
    one, two = make_range(range_id=1), make_range(range_id=2, round_id="a closed one")
    assert len(_plan([make_status()], [make_gpu()], [one])) == 1
    assert _plan([make_status()], [make_gpu()], [one, two]) == []


def test_every_idle_gpu_comes_before_any_second_range() -> None:
    """First something to run for each, then something to wait."""
    gpus = [make_gpu(f"gpu{i}") for i in range(3)]
    queues = [a.queue for a in _plan([make_status()], gpus)]
    assert queues == ["gpu0", "gpu1", "gpu2"] * DEPTH


def test_without_rounds_or_without_gpus_nothing_is_sent() -> None:
    """The empty cases are empty."""
    assert _plan([], [make_gpu()]) == []
    assert _plan([make_status()], []) == []


@pytest.mark.parametrize(
    ("rate", "batch_size", "seconds", "nonces"),
    [
        (100.0, 10, 1.0, 100),
        (105.0, 10, 1.0, 100),
        (109.999, 10, 1.0, 100),
        (3.0, 10, 1.0, 10),
        (0.0, 10, 1.0, 10),
        (100.0, 10, 0.05, 10),
        (100.0, 32, 0.0, 32),
        (1e6, 4096, 1.0, 244 * 4096),
        (0.3 * 10 / 0.1, 10, 1.0, 30),
    ],
)
def test_a_range_is_whole_batches_of_about_the_time(
    rate: float, batch_size: int, seconds: float, nonces: int
) -> None:
    """Whole batches, rounded down, at least one."""
    assert range_size(rate, batch_size, seconds) == nonces


@given(st.floats(0, 1e7), st.integers(1, 4096), st.floats(0, 60))
def test_a_range_never_takes_longer_than_asked_unless_it_is_one_batch(
    rate: float, batch_size: int, seconds: float
) -> None:
    """Rounding is down, but never to nothing."""
    nonces = range_size(rate, batch_size, seconds)
    assert nonces % batch_size == 0
    assert nonces >= batch_size
    assert nonces == batch_size or nonces <= rate * seconds * (1 + 1e-6) + 1e-6
    assert nonces + batch_size > rate * seconds - 1e-6


def test_gpus_of_different_speed_get_ranges_of_the_same_time() -> None:
    """A GPU ten times as fast gets ten times the nonces."""
    gpus = [make_gpu("gpu0", rate=1000.0), make_gpu("gpu1", rate=100.0)]
    assert _where(_plan([make_status()], gpus)) == [
        ("gpu0", 1000),
        ("gpu1", 100),
        ("gpu0", 1000),
        ("gpu1", 100),
    ]


def test_the_length_of_a_range_is_a_setting() -> None:
    """`range_s` scales it."""
    assignments = plan([make_status()], [make_gpu(rate=100.0)], [], NOW_MS, range_s=2.5)
    assert [a.num_nonces for a in assignments] == [250, 250]


def test_a_gpu_of_unknown_rate_gets_single_batches() -> None:
    """Nothing is known of it: the shortest range there is, charged as a full one."""
    assignments = _plan([make_status()], [make_gpu(rate=None)])
    assert _where(assignments) == [("gpu0", 10), ("gpu0", 10)]
    assert [vtime_after(a) for a in assignments] == [1.0, 2.0]


def test_a_shape_never_run_is_sized_from_one_that_was() -> None:
    """By positions per second, halved to be on the safe side, and only a part of a range: a guess."""
    gpu = make_gpu(rates={"16x10": 100.0})
    assert gpu.rate(8, 10) == 100.0
    assert gpu.rate(32, 10) == 25.0
    assert [a.num_nonces for a in _plan([make_status()], [gpu])] == [20, 20]


# Who gets nothing


@pytest.mark.parametrize(
    "gpu",
    [
        make_gpu(draining=True),
        make_gpu(seen_ms=NOW_MS - 4000),
        make_gpu(info=make_info(fingerprint=OTHER_FINGERPRINT)),
        make_gpu(info=make_info(max_seq_len=7)),
        make_gpu(info=make_info(dtype="bfloat16")),
        make_gpu(pass_s=120.1),
    ],
    ids=["draining", "dead", "another model", "model too short", "another arithmetic", "hangs"],
)
def test_a_gpu_that_cannot_run_the_round_gets_nothing(gpu: Gpu) -> None:
    """Draining, silent, another model or arithmetic, too short for seq_len, hanging in a pass."""
    status = make_status(spec=make_spec(model_dtype="float32"))
    assert _plan([status], [gpu]) == []
    assert len(_plan([status], [gpu, make_gpu("gpu1")])) == DEPTH


def test_a_round_keeps_to_one_runtime() -> None:
    """Torch and vLLM differ by more than the fraud test allows; one vLLM and another on two GPUs too."""
    gpus = [
        make_gpu("gpu0", info=make_info(engine="torch")),
        make_gpu("gpu1", info=make_info(engine="vllm")),
        make_gpu("gpu2", info=make_info(engine="vllm-server")),
        make_gpu("gpu3", info=make_info(engine="vllm", tensor_parallel=2)),
    ]

    def queues(runtime: str | None) -> set[str]:
        status = make_status(spec=make_spec(model_runtime=runtime))
        return {a.queue for a in _plan([status], gpus)}

    assert queues("torch") == {"gpu0"}
    assert queues("vllm") == {"gpu1", "gpu2"}
    assert queues("vllm-x2") == {"gpu3"}
    assert queues(None) == {"gpu0", "gpu1", "gpu2", "gpu3"}


def test_a_round_of_no_particular_arithmetic_runs_on_any() -> None:
    """A specification may leave the dtype open."""
    gpus = [make_gpu("gpu0"), make_gpu("gpu1", info=make_info(dtype="bfloat16"))]
    assert {a.queue for a in _plan([make_status()], gpus)} == {"gpu0", "gpu1"}


def test_the_limits_themselves_are_eligible() -> None:
    """A heartbeat just short of its time to live, and a model of exactly seq_len positions."""
    gpu = make_gpu(seen_ms=NOW_MS - 3999, info=make_info(max_seq_len=8), pass_s=120.0)
    assert len(_plan([make_status()], [gpu])) == DEPTH


def test_the_name_of_a_model_does_not_matter() -> None:
    """Two hosts may call one model differently; the fingerprint decides."""
    gpu = make_gpu(info=make_info(model="/models/twin"))
    assert len(_plan([make_status()], [gpu])) == DEPTH


def test_each_gpu_works_on_the_rounds_of_its_model() -> None:
    """Two models, two rounds, two GPUs: no crossing."""
    other = make_spec(model_fingerprint=OTHER_FINGERPRINT)
    rounds = [make_status("a"), make_status("b", spec=other)]
    gpus = [make_gpu("gpu0"), make_gpu("gpu1", info=make_info(fingerprint=OTHER_FINGERPRINT))]
    assert {(a.queue, a.round_id) for a in _plan(rounds, gpus)} == {("gpu0", "a"), ("gpu1", "b")}


# The deadline


@pytest.mark.parametrize(
    ("left_ms", "nonces"),
    [
        (5000, [100, 100]),
        (1500, [100, 50]),
        (1000, [100]),
        (1100, [100]),
        (1101, [100, 10]),
        (450, [40]),
        (101, [10]),
        (100, []),
        (50, []),
        (1, []),
        (0, []),
        (-1, []),
    ],
)
def test_ranges_shrink_towards_the_deadline_and_none_ends_its_first_batch_after_it(
    left_ms: int, nonces: list[int]
) -> None:
    """The last ranges fit what is left; one whose first batch, 0.1 s, does not is not sent."""
    status = make_status(deadline_ms=NOW_MS + left_ms)
    assert [a.num_nonces for a in _plan([status], [make_gpu(rate=100.0)])] == nonces


def test_what_is_ahead_in_the_queue_counts_towards_the_deadline() -> None:
    """A GPU that is busy beyond the deadline gets nothing; one that is free just before, a bit."""
    status = make_status(deadline_ms=NOW_MS + 800)
    busy = make_range(done=10)  # 90 nonces left: 0.9 s
    assert _plan([status], [make_gpu()], [busy]) == []
    nearly = make_range(done=50)  # 0.5 s
    assert [a.num_nonces for a in _plan([status], [make_gpu()], [nearly])] == [30]
    too_late = make_range(done=25)  # 0.75 s; the batch would be done 50 ms after the deadline
    assert _plan([status], [make_gpu()], [too_late]) == []


def test_a_gpu_too_slow_for_a_batch_leaves_the_end_of_a_round_to_faster_ones() -> None:
    """A second before the deadline, a batch takes it two; its time goes to a round with more."""
    ending = make_status("ending", deadline_ms=NOW_MS + 1000, vtime=0.0)
    longer = make_status("longer", vtime=500.0)
    slow, fast = make_gpu("gpu0", rate=5.0), make_gpu("gpu1", rate=1000.0)
    assert _plan([ending], [slow]) == []
    first = {a.queue: a.round_id for a in _plan([ending, longer], [slow, fast])[:2]}
    assert first == {"gpu0": "longer", "gpu1": "ending"}


def test_work_of_an_unknown_rate_counts_as_a_full_range_ahead() -> None:
    """Where the rate is not known, a range is taken to last what it should."""
    gpu = make_gpu(rate=None)
    assert _plan([make_status(deadline_ms=NOW_MS + 1000)], [gpu], [make_range()]) == []
    assert len(_plan([make_status(deadline_ms=NOW_MS + 1001)], [gpu], [make_range()])) == 1


def test_a_round_with_more_time_takes_what_one_at_its_end_cannot_use() -> None:
    """The second place goes to the round that can still begin then."""
    ending = make_status("ending", deadline_ms=NOW_MS + 500, vtime=0.0)
    longer = make_status("longer", vtime=1.0)
    assignments = _plan([ending, longer], [make_gpu()])
    assert [(a.round_id, a.num_nonces) for a in assignments] == [("ending", 50), ("longer", 100)]


# max_nonces


def test_no_more_is_given_than_a_round_asked_for() -> None:
    """The last range is what is left, not a whole batch."""
    status = make_status(spec=make_spec(max_nonces=125))
    assignments = _plan([status], [make_gpu("gpu0"), make_gpu("gpu1")])
    assert _where(assignments) == [("gpu0", 100), ("gpu1", 25)]


def test_what_is_counted_given_up_or_out_is_not_given_again() -> None:
    """125 asked for: 40 counted, 30 given up, 50 of a range still out leave 5."""
    status = make_status(spec=make_spec(max_nonces=125), checked=40, abandoned=30)
    out = make_range(start=100, stop=160, done=110)
    assert _where(_plan([status], [make_gpu()], [out])) == [("gpu0", 5)]


def test_a_round_that_is_all_given_out_leaves_the_gpus_to_others() -> None:
    """It waits for its ranges; the next round goes on."""
    full = make_status("full", spec=make_spec(max_nonces=100), checked=100, vtime=0.0)
    other = make_status("other", vtime=50.0)
    assert {a.round_id for a in _plan([full, other], [make_gpu()])} == {"other"}


# Fair shares, step by step


def test_the_round_with_the_least_gpu_time_goes_next() -> None:
    """And after it has caught up, the other one."""
    rounds = [make_status("a", vtime=5.0), make_status("b", vtime=4.5)]
    assignments = _plan(rounds, [make_gpu("gpu0")])
    assert [(a.round_id, vtime_after(a)) for a in assignments] == [("b", 5.5), ("a", 6.0)]


def test_a_double_share_is_charged_half() -> None:
    """Virtual time is GPU seconds over the share."""
    status = make_status(spec=make_spec(share=2.0), vtime=1.0)
    assert [vtime_after(a) for a in _plan([status], [make_gpu()])] == [1.5, 2.0]


def test_virtual_time_is_told_by_nonce() -> None:
    """So that a range cut short by the store is charged for what it has."""
    status = make_status(spec=make_spec(share=2.0), vtime=1.0)
    first, second = _plan([status], [make_gpu(rate=100.0)])
    assert (first.vtime_floor, second.vtime_floor) == (1.0, 1.5)
    assert first.vtime_per_nonce == second.vtime_per_nonce == pytest.approx(1 / 100 / 2)
    assert vtime_after(first) == pytest.approx(1.0 + 100 * first.vtime_per_nonce)
    (unknown, _) = _plan([status], [make_gpu(rate=None)])
    assert unknown.num_nonces * unknown.vtime_per_nonce == pytest.approx(0.5)


def test_a_newcomer_starts_level_with_the_one_furthest_back() -> None:
    """It neither waits for the past nor gets it paid out."""
    rounds = [make_status("a", vtime=100.0), make_status("b", vtime=100.9), make_status("new")]
    gpus = [make_gpu(f"gpu{i}") for i in range(3)]
    first = _plan(rounds, gpus)[:3]
    assert [(a.round_id, vtime_after(a)) for a in first] == [
        ("new", 101.0),
        ("a", 101.0),
        ("b", 101.9),
    ]


def test_a_round_that_begins_a_moment_later_catches_up() -> None:
    """What lies on the GPUs for others undone does not count as their lead."""
    first = make_status("first", vtime=2.0)
    lying = [make_range(round_id="first", range_id=i, stop=100, queue="gpu0") for i in range(2)]
    rounds, gpus = [first, make_status("new")], [make_gpu("gpu0"), make_gpu("gpu1")]
    assert [(a.round_id, vtime_after(a)) for a in _plan(rounds, gpus, lying)] == [
        ("new", 1.0),
        ("new", 2.0),
    ]


def test_a_round_that_could_not_run_is_paid_back_a_few_seconds_only() -> None:
    """Its lag is cut to MAX_LAG_S for every GPU that is ready."""
    rounds = [make_status("ahead", vtime=1000.0), make_status("behind", vtime=3.0)]
    gpus = [make_gpu("gpu0"), make_gpu("gpu1")]
    assert vtime_after(_plan(rounds, gpus)[0]) == 1000.0 - 2 * MAX_LAG_S + 1.0


def test_ties_go_to_the_older_round_then_by_id() -> None:
    """The same input gives the same plan, whatever order it comes in."""
    old = make_status("z", created_ms=NOW_MS - 10)
    rounds = [make_status("b"), make_status("a"), old]
    gpus = [make_gpu(f"gpu{i}") for i in range(3)]
    order = [a.round_id for a in _plan(rounds, gpus)[:3]]
    assert order == ["z", "a", "b"]
    assert [a.round_id for a in _plan(rounds[::-1], gpus)[:3]] == order


# Fair shares in simulated time


def _pool(*rates: float) -> dict[str, Gpu]:
    return {f"gpu{i}": make_gpu(f"gpu{i}", rate=rate) for i, rate in enumerate(rates)}


def test_equal_rounds_get_equal_gpu_time_on_gpus_of_very_different_speed() -> None:
    """Three rounds, GPUs of 1000, 300 and 100 nonces a second, a minute."""
    sim = Simulation(_pool(1000.0, 300.0, 100.0))
    for name in ("a", "b", "c"):
        sim.join(name, make_spec(window_s=3600))
    shares = sim.run(60)
    assert jain_index(list(shares.values())) > 0.99
    assert sum(shares.values()) == pytest.approx(180, rel=0.01)


def test_shares_of_one_two_and_four_get_gpu_time_in_that_proportion() -> None:
    """Unequal shares divide GPU seconds, not nonces."""
    sim = Simulation(_pool(1000.0, 100.0))
    for share in (1, 2, 4):
        sim.join(f"share-{share}", make_spec(window_s=3600, share=share))
    shares = sim.run(70)
    by_share = [shares[f"share-{share}"] / share for share in (1, 2, 4)]
    assert jain_index(by_share) > 0.98
    assert shares["share-4"] == pytest.approx(80, rel=0.1)


def test_rounds_of_different_shape_still_get_equal_time() -> None:
    """A round with long inputs does fewer nonces in the same GPU seconds."""
    gpus = {
        f"gpu{i}": make_gpu(f"gpu{i}", rates={"8x10": 100.0 * speed, "256x32": 16.0 * speed})
        for i, speed in enumerate((1, 10))
    }
    sim = Simulation(gpus)
    sim.join("short", make_spec(window_s=3600))
    sim.join("long", make_spec(window_s=3600, seq_len=256, batch_size=32))
    shares = sim.run(60)
    # A single batch of the long one takes the slow GPU two seconds.
    assert jain_index(list(shares.values())) > 0.99


def test_a_newcomer_is_served_at_once_and_starves_nobody() -> None:
    """From the moment it joins both get about half, in every stretch of ten seconds."""
    sim = Simulation(_pool(1000.0, 100.0))
    sim.join("first", make_spec(window_s=3600))
    alone = sim.run(30)
    assert alone["first"] == pytest.approx(60, rel=0.01)
    sim.join("second", make_spec(window_s=3600))
    sim.run(2.1)
    assert sim.shares().get("second", 0.0) > 0, "a new round begins within two seconds"
    for _ in range(5):
        both = sim.run(10)
        assert 6 < both["first"] < 14
        assert 6 < both["second"] < 14


def test_many_newcomers_one_after_another_do_not_stop_the_first_round() -> None:
    """A round that restarts its rivals again and again gains nothing by it."""
    sim = Simulation(_pool(300.0, 300.0))
    sim.join("steady", make_spec(window_s=3600))
    sim.run(10)
    for i in range(10):
        sim.join(f"brief-{i}", make_spec(window_s=3600))
        steady = sim.run(6)["steady"]
        assert steady > 3.5, f"about half of 12 GPU seconds; newcomer {i} left {steady}"
        sim.leave(f"brief-{i}")


def test_when_a_round_leaves_the_others_take_all_of_its_time() -> None:
    """No GPU is idle while a round is there."""
    sim = Simulation(_pool(1000.0, 100.0))
    sim.join("a", make_spec(window_s=3600))
    sim.join("b", make_spec(window_s=3600))
    sim.run(20)
    sim.leave("b")
    assert sim.run(10)["a"] == pytest.approx(20, rel=0.01)
    assert max(sim.idle_s.values()) < 0.2


def test_a_round_whose_gpus_were_away_does_not_take_everything_afterwards() -> None:
    """Only the big GPUs can run it; back after two minutes, they are shared again within seconds."""
    rates = {"8x10": 500.0, "4x10": 500.0}
    gpus = {f"gpu{i}": make_gpu(f"gpu{i}", rates=rates) for i in range(3)}
    gpus["gpu2"] = replace(gpus["gpu2"], info=make_info(max_seq_len=4))
    sim = Simulation(gpus, away={"gpu0", "gpu1"})
    sim.join("long", make_spec(window_s=3600))
    sim.join("short", make_spec(window_s=3600, seq_len=4))
    alone = sim.run(120)
    assert alone.get("long", 0.0) == 0.0
    assert alone["short"] == pytest.approx(120, rel=0.01)
    sim.away.clear()
    # Its lag is cut to MAX_LAG_S for each of three GPUs, and shrinks by a second every second.
    sim.run(3 * MAX_LAG_S + 5)
    both = sim.run(40)
    assert jain_index(list(both.values())) > 0.99
    assert both["long"] + both["short"] == pytest.approx(120, rel=0.01)


def test_every_nonce_asked_for_is_given_exactly_once() -> None:
    """The ranges of a bounded round cover 0 … N-1 and no more."""
    sim = Simulation(_pool(1000.0, 90.0, 7.0))
    sim.join("bounded", make_spec(window_s=3600, max_nonces=12_345))
    sim.join("endless", make_spec(window_s=3600))
    sim.run(60)
    assert sim.rounds["bounded"].checked == 12_345
    assert sim.rounds["bounded"].next_index == 12_345
    assert sum(num for _, name, num in sim.begun if name == "bounded") == 12_345


def test_gpus_work_up_to_the_deadline_and_not_beyond_it() -> None:
    """The last ranges of a ten-second round are cut short; nothing is computed for nothing."""
    sim = Simulation(_pool(1000.0, 100.0, 10.0))
    sim.join("short", make_spec(window_s=10.0))
    sim.run(10)
    spent = _by_gpu(sim)
    sim.run(5)
    assert _by_gpu(sim) == spent, "something ended after the deadline"
    # Each is idle for no longer than a batch takes it, and the step in which that was found.
    for queue, batch_s in {"gpu0": 0.01, "gpu1": 0.1, "gpu2": 1.0}.items():
        assert 10.0 - batch_s - STEP_S - 1e-6 <= spent[queue] <= 10.0 + 1e-6


def _by_gpu(sim: Simulation) -> dict[str, float]:
    total: dict[str, float] = {}
    for (_, queue), spent in sim.spent_s.items():
        total[queue] = total.get(queue, 0.0) + spent
    return total


# Properties of any plan

_ROUND_IDS = ("a", "b", "c")


@st.composite
def _rounds(draw: st.DrawFn) -> list[RoundStatus]:
    rounds = []
    for round_id in _ROUND_IDS[: draw(st.integers(1, 3))]:
        limit = draw(st.none() | st.integers(1, 2000))
        spec = make_spec(
            seq_len=draw(st.sampled_from([8, 1024, 2048])),
            batch_size=draw(st.sampled_from([1, 10, 32])),
            share=draw(st.sampled_from([0.01, 1.0, 3.0])),
            model_fingerprint=draw(st.sampled_from([OTHER_FINGERPRINT, "0123456789abcdef" * 4])),
            max_nonces=limit,
        )
        rounds.append(
            make_status(
                round_id,
                spec=spec,
                created_ms=NOW_MS - draw(st.integers(0, 3)),
                deadline_ms=NOW_MS + draw(st.integers(-100, 5000)),
                checked=draw(st.integers(0, limit or 1000)),
                vtime=draw(st.none() | st.floats(0, 1e6)),
            )
        )
    return rounds


@st.composite
def _gpus(draw: st.DrawFn) -> list[Gpu]:
    return [
        make_gpu(
            f"gpu{i}",
            rates=draw(
                st.dictionaries(
                    st.sampled_from(["8x10", "1024x32", "8x1"]), st.floats(0, 1e5), max_size=2
                )
            ),
            draining=draw(st.booleans()),
            pass_s=draw(st.sampled_from([0.0, 0.0, 119.0, 1e9])),
            seen_ms=NOW_MS - draw(st.sampled_from([0, 3999, 4000])),
            info=make_info(
                fingerprint=draw(st.sampled_from([OTHER_FINGERPRINT, "0123456789abcdef" * 4]))
            ),
        )
        for i in range(draw(st.integers(0, 4)))
    ]


@st.composite
def _outstanding(draw: st.DrawFn) -> list[OutstandingRange]:
    return [
        make_range(
            round_id=draw(st.sampled_from([*_ROUND_IDS, "closed"])),
            range_id=i,
            done=draw(st.integers(0, 99)),
            queue=draw(st.sampled_from(["gpu0", "gpu1", "gpu9"])),
        )
        for i in range(draw(st.integers(0, 4)))
    ]


@given(_rounds(), _gpus(), _outstanding())
def test_any_plan_keeps_every_promise(
    rounds: list[RoundStatus], gpus: list[Gpu], outstanding: list[OutstandingRange]
) -> None:
    """Depth, eligibility, deadline, bounds and idle GPUs, for whatever comes."""
    by_id = {status.round_id: status for status in rounds}
    by_queue = {gpu.queue: gpu for gpu in gpus}
    ahead_s = dict.fromkeys(by_queue, 0.0)
    counts: Counter[str] = Counter()

    def seconds(round_id: str, gpu: Gpu, num: int) -> float:
        status = by_id.get(round_id)
        rate = gpu.rate(status.spec.seq_len, status.spec.batch_size) if status else 0.0
        return num / rate if rate > 0 else 1.0

    given_out: Counter[str] = Counter()
    for out in outstanding:
        given_out[out.round_id] += out.left
        if out.queue in by_queue:
            counts[out.queue] += 1
            ahead_s[out.queue] += seconds(out.round_id, by_queue[out.queue], out.left)
    idle_before = {queue for queue in by_queue if counts[queue] == 0}

    assignments = plan(rounds, gpus, outstanding, NOW_MS)
    assert assignments == plan(rounds, gpus, outstanding, NOW_MS)

    for a in assignments:
        gpu, status = by_queue[a.queue], by_id[a.round_id]
        assert gpu.is_live
        assert not gpu.draining
        assert not gpu.hangs
        assert a.worker == gpu.worker
        assert status.spec.model_fingerprint == gpu.info.fingerprint
        assert status.spec.seq_len <= gpu.info.max_seq_len
        # By its best: a shape it never ran is no reason to leave it idle.
        least_s = gpu.least_batch_s(status.spec.seq_len, status.spec.batch_size)
        done_s = ahead_s[a.queue] + least_s
        assert NOW_MS + done_s * 1000 < status.deadline_ms
        ahead_s[a.queue] += seconds(a.round_id, gpu, a.num_nonces)
        counts[a.queue] += 1
        assert counts[a.queue] <= DEPTH
        assert a.num_nonces >= 1
        given_out[a.round_id] += a.num_nonces
        limit = status.spec.max_nonces
        if limit is None:
            assert a.num_nonces % status.spec.batch_size == 0
        else:
            assert status.checked + given_out[a.round_id] <= limit

    first_of = {a.queue for a in assignments}
    for gpu in gpus:
        usable = [
            status
            for status in rounds
            if status.spec.max_nonces is None
            and status.spec.model_fingerprint == gpu.info.fingerprint
            and status.spec.seq_len <= gpu.info.max_seq_len
            and status.deadline_ms
            > NOW_MS + gpu.least_batch_s(status.spec.seq_len, status.spec.batch_size) * 1000
        ]
        ready = gpu.is_live and not gpu.draining and not gpu.hangs
        if ready and gpu.queue in idle_before and usable:
            assert gpu.queue in first_of, "an idle GPU is left idle although a round could use it"

    for round_id in by_id:
        mine = [a for a in assignments if a.round_id == round_id]
        vtimes = [vtime_after(a) for a in mine]
        assert vtimes == sorted(vtimes)
        assert [a.vtime_floor for a in mine[1:]] == pytest.approx(vtimes[:-1])


# Lost ranges


@pytest.mark.parametrize(
    ("gpu", "why"),
    [
        (None, "left the pool"),
        (make_gpu(worker="another"), "restarted"),
        (make_gpu(seen_ms=NOW_MS - 4000), "silent for 4.0 s"),
        (make_gpu(seen_ms=NOW_MS - 60_000, held=("round-1:1",)), "silent for 60.0 s"),
    ],
    ids=["left", "restarted", "dead", "dead with the range in hand"],
)
def test_the_range_of_a_worker_that_is_gone_is_lost_as_a_failure(gpu: Gpu | None, why: str) -> None:
    """It may have died of it, so it counts as an attempt."""
    out = make_range()
    others = [make_gpu("gpu1")]
    lost = find_lost([out], [*others, gpu] if gpu else others, NOW_MS)
    assert [(item.range, item.failed) for item in lost] == [(out, True)]
    assert why in lost[0].why


def test_silence_is_no_death_where_nobody_could_be_heard() -> None:
    """Redis was away. Who left, was restarted or hangs is known all the same."""
    out = make_range()
    silent = make_gpu(seen_ms=NOW_MS - 60_000)
    assert find_lost([out], [silent], NOW_MS, trust_silence=False) == []
    assert len(find_lost([out], [silent], NOW_MS)) == 1
    known = [[], [make_gpu(worker="another", seen_ms=NOW_MS - 60_000)], [make_gpu(pass_s=121.0)]]
    for gpus in known:
        (lost,) = find_lost([out], gpus, NOW_MS, trust_silence=False)
        assert lost.failed
    unsent = make_range(assigned_ms=NOW_MS - round(1000 * DELIVERY_S) - 1)
    (lost,) = find_lost([unsent], [make_gpu()], NOW_MS, trust_silence=False)
    assert "message" in lost.why


def test_a_hanging_gpu_loses_what_it_holds_as_a_failure() -> None:
    """The one that runs and the one that waits; its heartbeat goes on as if nothing had been."""
    ranges = [make_range(range_id=1), make_range(range_id=2)]
    gpu = make_gpu(pass_s=120.1, held=("round-1:1", "round-1:2"))
    lost = find_lost(ranges, [gpu], NOW_MS)
    assert [(item.range, item.failed) for item in lost] == [(out, True) for out in ranges]
    assert "hangs since 120 s" in lost[0].why
    assert find_lost(ranges, [replace(gpu, pass_s=120.0)], NOW_MS) == []


def _out_for(ms: int, **gpu_changes: Any) -> bool:
    """Say whether a range that was sent so long ago counts as lost."""
    out = make_range(assigned_ms=NOW_MS - ms)
    lost = find_lost([out], [make_gpu(**gpu_changes)], NOW_MS)
    assert all(not item.failed and "message" in item.why for item in lost)
    return bool(lost)


def test_a_message_that_never_arrived_is_found_by_a_worker_that_does_not_have_it() -> None:
    """After three seconds; no failure of the nonces."""
    assert _out_for(round(1000 * DELIVERY_S) + 1)
    assert _out_for(round(1000 * DELIVERY_S) + 1, held=("round-1:2",))
    assert not _out_for(round(1000 * DELIVERY_S))
    assert not _out_for(0)


def test_what_the_worker_holds_is_not_lost_however_long_it_takes() -> None:
    """A slow batch is no reason to search it twice."""
    assert not _out_for(600_000, held=("round-1:1",))


def test_a_full_worker_may_have_the_message_still_in_its_queue() -> None:
    """With both hands full it has not asked for the next message yet."""
    assert not _out_for(600_000, held=("round-2:1", "round-2:2"))
    assert _out_for(600_000, held=("round-2:1",))


def test_a_heartbeat_from_before_the_message_says_nothing_about_it() -> None:
    """Only one that was said well after the range was sent counts."""
    assert not _out_for(3500, seen_ms=NOW_MS - 3500)
    assert not _out_for(3500, seen_ms=NOW_MS - 2000)
    assert _out_for(3500, seen_ms=NOW_MS - 1999)


def test_only_the_lost_ranges_are_returned() -> None:
    """Each range is judged by its own queue."""
    held = make_range(range_id=1, queue="gpu0")
    gone = make_range(range_id=2, queue="gpu1", worker="worker-of-gpu1")
    gpus = [make_gpu("gpu0"), make_gpu("gpu1", seen_ms=NOW_MS - 5000)]
    assert [item.range for item in find_lost([held, gone], gpus, NOW_MS)] == [gone]
    assert find_lost([], gpus, NOW_MS) == []


def test_a_gpu_that_stalled_once_still_gets_work() -> None:
    """What a stall made of its rate does not make every later batch seem too long for the window."""
    stalled = make_gpu(rate=0.01, best_rates={"8x10": 100.0})
    assert [a.num_nonces for a in _plan([make_status()], [stalled])] == [10]


def test_a_newcomer_is_served_although_only_one_place_is_free_at_a_time() -> None:
    """It stands level with the round that was there before, and goes first."""
    before = make_status("before", vtime=7.0, created_ms=NOW_MS - 5000)
    newcomer = make_status("newcomer")
    busy = [make_range(round_id="before")]
    assert [a.round_id for a in _plan([before, newcomer], [make_gpu()], busy)] == ["newcomer"]
