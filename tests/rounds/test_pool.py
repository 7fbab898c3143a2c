"""GPUs as values: rates, records, and which deployed model a round takes."""

from __future__ import annotations

import json

import pytest

from pocqueue.errors import NoLiveGpu
from pocqueue.rounds.pool import Gpu, choose_model, shape_key
from tests.support.factories import FINGERPRINT, NOW_MS, OTHER_FINGERPRINT, make_gpu, make_info


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


def test_without_a_live_gpu_the_message_says_how_to_start_one() -> None:
    """None at all, or only such that take nothing new."""
    for gpus in ([], [make_gpu(draining=True)]):
        with pytest.raises(NoLiveGpu, match="celery -A pocqueue worker -Q gpu0"):
            choose_model(gpus, None)


def test_the_only_deployed_model_is_chosen_by_itself() -> None:
    """However many GPUs serve it, and by name, fingerprint or the beginning of that."""
    gpus = [make_gpu("gpu0"), make_gpu("gpu1")]
    names = (None, "twin", FINGERPRINT, FINGERPRINT[:8], "twin@float32", f"{FINGERPRINT}@float32")
    for model in names:
        assert choose_model(gpus, model) == make_info()


def test_a_model_that_nobody_deployed_is_refused_with_those_there_are() -> None:
    """Names what was asked for and what could be."""
    with pytest.raises(NoLiveGpu, match=r"model is 'llama', .* allowed: twin\."):
        choose_model([make_gpu()], "llama")
    for model in (FINGERPRINT[:7], "twin@float16"):
        with pytest.raises(NoLiveGpu, match=f"model is '{model}'"):
            choose_model([make_gpu()], model)


def test_several_deployed_models_have_to_be_told_apart() -> None:
    """By name, or by fingerprint where two hosts gave one name to different weights."""
    second = make_info(fingerprint=OTHER_FINGERPRINT)
    gpus = [make_gpu("gpu0"), make_gpu("gpu1", info=second)]
    for model in (None, "twin"):
        with pytest.raises(NoLiveGpu) as caught:
            choose_model(gpus, model)
        assert FINGERPRINT[:12] in str(caught.value)
        assert OTHER_FINGERPRINT[:12] in str(caught.value)
    assert choose_model(gpus, OTHER_FINGERPRINT[:8]) == second


def test_one_model_in_two_arithmetics_has_to_be_told_apart() -> None:
    """Their distances differ, so a round keeps to one of them."""
    half = make_info(dtype="bfloat16")
    gpus = [make_gpu("gpu0"), make_gpu("gpu1", info=half)]
    with pytest.raises(NoLiveGpu, match="@DTYPE") as caught:
        choose_model(gpus, "twin")
    assert f"{FINGERPRINT[:12]}@bfloat16" in str(caught.value)
    assert choose_model(gpus, "twin@bfloat16") == half
    assert choose_model(gpus, f"{FINGERPRINT[:8]}@float32") == make_info()


def test_one_model_by_two_runtimes_has_to_be_told_apart() -> None:
    """A served vLLM and one of a worker's own are the same; torch is another."""
    vllm = make_info(engine="vllm")
    gpus = [make_gpu("gpu0", info=make_info(engine="torch")), make_gpu("gpu1", info=vllm)]
    with pytest.raises(NoLiveGpu, match="@RUNTIME"):
        choose_model(gpus, "twin")
    assert choose_model(gpus, "twin@vllm") == vllm
    assert choose_model(gpus, "twin@float32@torch") == make_info(engine="torch")
    served = make_gpu("gpu2", info=make_info(engine="vllm-server"))
    assert choose_model([gpus[1], served], "twin").runtime == "vllm"
