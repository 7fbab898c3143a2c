"""GPUs as values: rates, records, and which deployed model a round takes."""

from __future__ import annotations

import json

from pocqueue.rounds.pool import Gpu, shape_key
from tests.support.factories import NOW_MS, make_gpu


def test_a_gpu_is_live_until_it_was_silent_for_its_time_to_live() -> None:
    """The worker itself says how long that is."""
    assert make_gpu(seen_ms=NOW_MS - 3999).is_live
    assert not make_gpu(seen_ms=NOW_MS - 4000).is_live
    assert make_gpu(seen_ms=NOW_MS - 4000, ttl_ms=4001).is_live
    assert make_gpu(seen_ms=NOW_MS - 2500).silent_s == 2.5


def test_rates_are_by_shape_and_unknown_ones_estimated_from_the_first() -> None:
    """By positions per second, halved; nothing known is 0."""
    gpu = make_gpu(rates={shape_key(256, 32): 64.0, shape_key(8, 10): 1000.0})
    assert gpu.rate(256, 32) == 64.0
    assert gpu.rate(8, 10) == 1000.0
    assert gpu.rate(512, 32) == 64.0 * 256 / 512 / 2
    assert make_gpu(rate=None).rate(8, 10) == 0.0
    assert make_gpu(rates={"8x10": 0.0}).rate(8, 10) == 0.0


def test_a_gpu_hangs_after_two_minutes_or_twenty_of_its_slowest_batches() -> None:
    """Whichever is longer: a slow machine with a large batch is no broken one."""
    assert not make_gpu().hangs
    for rates in ({}, {"8x10": 100.0}, {"8x10": 0.0}):
        assert not make_gpu(rates=rates, pass_s=120.0).hangs
        assert make_gpu(rates=rates, pass_s=120.1).hangs
    slow = {"8x10": 100.0, "256x32": 4.0, "8x1": 0.5}  # a batch takes 0.1, 8 and 2 s
    assert not make_gpu(rates=slow, pass_s=160.0).hangs
    assert make_gpu(rates=slow, pass_s=160.1).hangs


def test_a_record_survives_json_and_takes_its_times_from_the_reader() -> None:
    """Stamps are the pool's, never the worker's."""
    gpu = make_gpu(
        "host.gpu1",
        held=("r:1", "r:2"),
        load=0.5,
        pass_s=1.5,
        draining=True,
        last_error="oops",
    )
    again = Gpu.from_json(gpu.to_json(), NOW_MS, NOW_MS)
    assert again == gpu
    assert json.loads(gpu.to_json())["seen_ms"] == 0


def test_a_record_of_a_newer_worker_is_read() -> None:
    """Fields that this version does not know are left out."""
    record = json.loads(make_gpu().to_json()) | {"temperature_c": 80}
    record["info"] |= {"quantisation": "none"}
    assert Gpu.from_json(json.dumps(record), NOW_MS, NOW_MS) == make_gpu()
