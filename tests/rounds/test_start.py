"""Which model a session or a round gets: by name, by dimensions, or none, with both sides named."""

from __future__ import annotations

from typing import Any

import pytest

from pocqueue.errors import InvalidRound, ModelConflict, NoLiveGpu
from pocqueue.poc.distance.scheme import Distance
from pocqueue.poc.search import ANY_BATCH_SIZE
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.spec import RoundSpec
from pocqueue.rounds.start import ModelWish, choose_model, decided, draft_spec, fitted
from tests.support.factories import FINGERPRINT, OTHER_FINGERPRINT, make_gpu, make_info

LLAMA: dict[str, Any] = {
    "model": "llama",
    "fingerprint": OTHER_FINGERPRINT,
    "hidden_size": 2048,
    "vocab_size": 8192,
    "num_layers": 16,
    "num_heads": 16,
    "num_kv_heads": 16,
}
OLD_PARAMS: dict[str, Any] = {
    "dim": 2048,
    "n_layers": 16,
    "n_heads": 16,
    "n_kv_heads": 16,
    "vocab_size": 8192,
}


def gpu_of(queue: str = "gpu0", *, draining: bool = False, **changes: Any) -> Gpu:
    """Make a live GPU with a model like the twin."""
    return make_gpu(queue, info=make_info(**changes), draining=draining)


BOTH = [gpu_of("gpu0"), gpu_of("gpu1", **LLAMA)]


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (ModelWish(model="twin"), "twin"),
        (ModelWish(model="llama"), "llama"),
        (ModelWish(model="fedcba98"), "llama"),
        (ModelWish(model="llama@float32"), "llama"),
        (ModelWish(**OLD_PARAMS), "llama"),
        (ModelWish(dim=2048), "llama"),
        (ModelWish(dim=16), "twin"),
        (ModelWish(model="llama", **OLD_PARAMS), "llama"),
        # The twin's layers are not known: what cannot be told decides nothing.
        (ModelWish(dim=16, n_layers=99), "twin"),
    ],
)
def test_a_wish_decides_among_several(wish: ModelWish, name: str) -> None:
    """By name or by dimensions."""
    assert choose_model(BOTH, wish).info.model == name


def test_the_only_model_needs_no_name() -> None:
    """Of several GPUs with the same one."""
    chosen = choose_model([gpu_of("gpu0"), gpu_of("gpu1")], ModelWish())
    assert (chosen.info.model, chosen.warning) == ("twin", "")


@pytest.mark.parametrize("field", list(OLD_PARAMS))
def test_each_dimension_counts(field: str) -> None:
    """One that differs is named with both values."""
    wish = ModelWish(**OLD_PARAMS | {field: 7})
    with pytest.raises(ModelConflict) as caught:
        choose_model([gpu_of(**LLAMA)], wish)
    message = str(caught.value)
    assert f"{field} 7" in message
    assert f"{field} {OLD_PARAMS[field]}" in message
    assert "llama (fedcba987654@float32@twin)" in message


@pytest.mark.parametrize(
    "wish", [ModelWish(model="other"), ModelWish(dim=1), ModelWish(model="twin", dim=17)]
)
def test_another_model_is_refused(wish: ModelWish) -> None:
    """Both sides are named, and what to do."""
    with pytest.raises(ModelConflict) as caught:
        choose_model(BOTH, wish)
    message = str(caught.value)
    assert str(wish) in message
    assert "twin (" in message
    assert "llama (" in message
    assert "DELEGATION_ANY_MODEL=1" in message


@pytest.mark.parametrize(
    ("gpus", "wish"),
    [
        (BOTH, ModelWish()),
        ([gpu_of("gpu0"), gpu_of("gpu1", dtype="bfloat16")], ModelWish(model="twin")),
        ([gpu_of("gpu0"), gpu_of("gpu1", engine="vllm")], ModelWish(dim=16)),
    ],
)
def test_an_open_choice_is_refused(gpus: list[Gpu], wish: ModelWish) -> None:
    """With the choices; dtype and runtime count as well, since distances differ by them."""
    with pytest.raises(ModelConflict, match=r"params\.model") as caught:
        choose_model(gpus, wish)
    assert str(caught.value).count("(") >= 2


def test_any_model_takes_the_one_that_most_have() -> None:
    """With a warning that names both; a model that was asked for is taken without one."""
    gpus = [gpu_of("gpu0"), gpu_of("gpu1", **LLAMA), gpu_of("gpu2", **LLAMA)]
    chosen = choose_model(gpus, ModelWish(model="other"), any_model=True)
    assert chosen.info.model == "llama"
    assert "'other'" in chosen.warning
    assert "llama (" in chosen.warning
    assert choose_model(gpus, ModelWish(model="twin"), any_model=True).warning == ""


@pytest.mark.parametrize("gpus", [[], [gpu_of(draining=True)]])
def test_without_a_gpu_there_is_no_choice(gpus: list[Gpu]) -> None:
    """Those that drain take nothing new."""
    with pytest.raises(NoLiveGpu):
        choose_model(gpus, ModelWish())


# Rounds


def test_without_a_live_gpu_the_message_says_how_to_start_one() -> None:
    """None at all, or only such that take nothing new."""
    for gpus in ([], [make_gpu(draining=True)]):
        with pytest.raises(NoLiveGpu, match="celery -A pocqueue worker -Q gpu0"):
            choose_model(gpus, ModelWish())


def test_the_only_deployed_model_is_chosen_by_itself() -> None:
    """However many GPUs serve it, and by name, fingerprint or the beginning of that."""
    gpus = [make_gpu("gpu0"), make_gpu("gpu1")]
    names = (None, "twin", FINGERPRINT, FINGERPRINT[:8], "twin@float32", f"{FINGERPRINT}@float32")
    for model in names:
        assert choose_model(gpus, ModelWish(model)).info == make_info()


def test_a_model_that_nobody_deployed_is_refused_with_those_there_are() -> None:
    """Names what was asked for and what could be."""
    with pytest.raises(
        ModelConflict, match=r"asked for 'llama'; deployed is twin .*POCQUEUE_MODEL"
    ):
        choose_model([make_gpu()], ModelWish("llama"))
    for model in (FINGERPRINT[:7], "twin@float16"):
        with pytest.raises(ModelConflict, match=f"asked for '{model}'"):
            choose_model([make_gpu()], ModelWish(model))


def test_several_deployed_models_have_to_be_told_apart() -> None:
    """By name, or by fingerprint where two hosts gave one name to different weights."""
    second = make_info(fingerprint=OTHER_FINGERPRINT)
    gpus = [make_gpu("gpu0"), make_gpu("gpu1", info=second)]
    for model in (None, "twin"):
        with pytest.raises(ModelConflict) as caught:
            choose_model(gpus, ModelWish(model))
        assert FINGERPRINT[:12] in str(caught.value)
        assert OTHER_FINGERPRINT[:12] in str(caught.value)
    assert choose_model(gpus, ModelWish(OTHER_FINGERPRINT[:8])).info == second


def test_one_model_in_two_arithmetics_has_to_be_told_apart() -> None:
    """Their distances differ, so a round keeps to one of them."""
    half = make_info(dtype="bfloat16")
    gpus = [make_gpu("gpu0"), make_gpu("gpu1", info=half)]
    with pytest.raises(ModelConflict, match="@DTYPE") as caught:
        choose_model(gpus, ModelWish("twin"))
    assert f"{FINGERPRINT[:12]}@bfloat16" in str(caught.value)
    assert choose_model(gpus, ModelWish("twin@bfloat16")).info == half
    assert choose_model(gpus, ModelWish(f"{FINGERPRINT[:8]}@float32")).info == make_info()


def test_one_model_by_two_runtimes_has_to_be_told_apart() -> None:
    """A served vLLM and one of a worker's own are the same; torch is another."""
    vllm = make_info(engine="vllm")
    gpus = [make_gpu("gpu0", info=make_info(engine="torch")), make_gpu("gpu1", info=vllm)]
    with pytest.raises(ModelConflict, match="@RUNTIME"):
        choose_model(gpus, ModelWish("twin"))
    assert choose_model(gpus, ModelWish("twin@vllm")).info == vllm
    assert choose_model(gpus, ModelWish("twin@float32@torch")).info == make_info(engine="torch")
    served = make_gpu("gpu2", info=make_info(engine="vllm-server"))
    assert choose_model([gpus[1], served], ModelWish("twin")).info.runtime == "vllm"


def draft_of(**changes: Any) -> RoundSpec:
    return draft_spec(block_hash="block", public_key="key", seq_len=8, **changes)


def test_a_pass_that_no_gpu_holds_is_refused_with_what_they_hold() -> None:
    """The largest of the model's GPUs decides; the others are left out of such a round."""
    small, large = gpu_of("gpu0", max_pass_tokens=100), gpu_of("gpu1", max_pass_tokens=1000)
    for gpus in [small, large], [large, small]:
        info = choose_model(gpus, ModelWish()).info
        assert fitted(draft_of(batch_size=125), gpus, info).notes == []
        with pytest.raises(
            InvalidRound, match=r"batch_size is 126; allowed: at most 125 .*1000 tok"
        ):
            fitted(draft_of(batch_size=126), gpus, info)
    spec = decided(draft_of(batch_size=125), large.info)
    assert [spec.is_held_by(gpu.info) for gpu in (small, large)] == [False, True]
    unknown = [*gpus, gpu_of("gpu2")]
    assert fitted(draft_of(batch_size=4096), unknown, choose_model(unknown, ModelWish()).info)


def test_limits_of_an_engine_count_as_well() -> None:
    """Sequences of one pass, and a length that alone is too much."""
    gpus = [gpu_of(max_pass_nonces=64)]
    with pytest.raises(InvalidRound, match="batch_size is 65; allowed: 1 to 64"):
        fitted(draft_of(batch_size=65), gpus, gpus[0].info)
    with pytest.raises(InvalidRound, match="seq_len is 8; allowed: at most 5"):
        fitted(draft_of(batch_size=1), gpus, gpu_of(max_pass_tokens=5).info)


@pytest.mark.parametrize(
    ("rates", "size"),
    [
        ({}, 32),
        ({"8x10": 5.0, "8x64": 9.0, "8x128": 9.0, "16x512": 99.0}, 64),
    ],
)
def test_a_batch_size_above_the_limit_is_a_wish(rates: dict[str, float], size: int) -> None:
    """It becomes what did best at this length, or the default, and that is said."""
    gpus = [make_gpu(rate=None, best_rates=rates)]
    draft, notes = fitted(draft_of(batch_size=5000), gpus, gpus[0].info)
    assert decided(draft, gpus[0].info).batch_size == size
    assert notes == [f"batch_size 5000 is above 4096, so {size} is taken"]


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ([0], 32),
        ([8192], 8),
        ([100_000, 16_384], 16),
        ([0, 0, 1024], 32),
        ([8192, 500], 8),
    ],
)
def test_a_batch_size_that_nobody_asked_for_is_what_gpus_hold(limits: list[int], size: int) -> None:
    """The default at most; a GPU of less is not left out for it, unless it would hold up the others. Nothing is said."""
    gpus = [gpu_of(f"gpu{i}", max_pass_tokens=limit) for i, limit in enumerate(limits)]
    info = choose_model(gpus, ModelWish()).info
    open_draft = draft_of(batch_size=ANY_BATCH_SIZE).model_copy(update={"seq_len": 1024})
    assert fitted(open_draft, gpus, info).draft.batch_size == size
    assert fitted(open_draft, gpus, info).notes == []
    assert fitted(open_draft, [], info).draft.batch_size >= size
    narrow = gpu_of(max_pass_nonces=3)
    assert fitted(open_draft, [narrow], narrow.info).draft.batch_size == 3


def test_a_wish_is_no_more_than_gpus_hold() -> None:
    """Nor is what they once did best with, before they knew that it does not fit."""
    gpu = make_gpu(info=make_info(max_pass_tokens=80), rate=None, best_rates={"8x32": 9.0})
    draft, notes = fitted(draft_of(batch_size=5000), [gpu], gpu.info)
    assert draft.batch_size == 10
    assert notes == ["batch_size 5000 is above 4096, so 10 is taken"]


def test_a_target_above_every_distance_is_taken_and_said() -> None:
    """Older clients send 10."""
    gpus = [gpu_of()]
    draft, notes = fitted(draft_of(r_target=10.0), gpus, gpus[0].info)
    assert decided(draft, gpus[0].info).proof == Distance(r_target=10.0)
    assert notes == ["r_target is 10, and no distance is above 2: every nonce is valid"]
