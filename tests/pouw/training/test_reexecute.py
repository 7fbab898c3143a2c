"""Honest maps pass, cheats do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pocqueue.pouw.slots.maps import SignMap, decode_map, encode_map
from pocqueue.pouw.slots.task import LapSlot
from pocqueue.pouw.slots.weights import Weights, weights_bytes, weights_from
from pocqueue.pouw.training.iterate import iterate, signs_of
from pocqueue.pouw.training.messages import Verdict
from pocqueue.pouw.training.models import Model
from pocqueue.pouw.training.reexecute import judge, reexecute
from pocqueue.pouw.training.samples import sample_rows
from tests.pouw.training.in_step import InStep, task_of

Rows = npt.NDArray[np.int64]
#: Of a lap in the middle of training; the last one is judged.
NUM_SLOTS = 8 * 4 + 4


@pytest.fixture(scope="module", params=["MLP", "CNN"])
def miners(request: pytest.FixtureRequest) -> InStep:
    """Return two miners in the middle of a lap."""
    found = InStep(task_of(request.param), 2)
    found.run(NUM_SLOTS)
    return found


def _verdict(miners: InStep, published: bytes, number: int = 0) -> Verdict:
    miner = miners.miners[number]
    lap = miners.laps[miner]
    return reexecute(miners.model, lap, miner=miner, lane=0, published=published)


def _residual(miners: InStep) -> Weights:
    """Return what the first miner had left over before the slot that is judged."""
    lap = miners.laps[miners.miners[0]]
    residual: bytes | None = None
    for slot in lap[:-1]:
        residual = iterate(
            miners.model,
            slot.theta,
            residual,
            slot=slot.slot,
            miner=miners.miners[0],
            lane=0,
            parts=1,
        ).residual
    if residual is None:
        return np.zeros(miners.task.num_weights, dtype=np.float32)
    return weights_from(residual)


def _cheat_with(
    miners: InStep,
    gradient: Callable[[Model, Weights, Rows], Weights],
    theta: bytes | None = None,
) -> bytes:
    """Return the map of an iteration that is honest but for its gradient."""
    last = miners.laps[miners.miners[0]][-1]
    weights = weights_from(last.theta if theta is None else theta)
    rows = sample_rows(miners.task, last.slot, miners.miners[0], 0, 1)
    left = _residual(miners) + gradient(miners.model, weights, rows)
    return encode_map(*signs_of(miners.task, left))


def test_honest_maps_pass(miners: InStep) -> None:
    """Each miner's last map is as recomputed, entry for entry; so is that of the test's own way."""
    for number, miner in enumerate(miners.miners):
        verdict = _verdict(miners, miners.results[miner].map, number)
        assert verdict.is_honest
        assert verdict.violations == 0
        assert verdict.compared > 0
    assert (
        _cheat_with(miners, lambda model, *of: model.gradient(*of)[0])
        == miners.results[miners.miners[0]].map
    )


def test_other_maps_are_fraud(miners: InStep) -> None:
    """Random ones, somebody else's, flipped signs, nothing at all."""
    task, own = miners.task, miners.results[miners.miners[0]].map
    entries = decode_map(own, task.num_weights, task.cap)
    generator = np.random.default_rng(1)
    somewhere = np.sort(generator.choice(task.num_weights, len(entries.indices), replace=False))
    cheats = [
        encode_map(somewhere, entries.signs),
        encode_map(entries.indices, -entries.signs),
        miners.results[miners.miners[1]].map,
        b"",
    ]
    for cheat in cheats:
        verdict = _verdict(miners, cheat)
        assert not verdict.is_honest
        assert 0 < verdict.violations <= verdict.compared


def test_less_work_is_fraud(miners: InStep) -> None:
    """An eighth of the samples left out, half of them, the weights of the slot before."""
    assert not _verdict(
        miners, _cheat_with(miners, lambda model, theta, rows: model.gradient(theta, rows[:56])[0])
    ).is_honest
    assert not _verdict(
        miners, _cheat_with(miners, lambda model, theta, rows: model.gradient(theta, rows[:32])[0])
    ).is_honest
    before = miners.laps[miners.miners[0]][-2].theta
    cheat = _cheat_with(miners, lambda model, *of: model.gradient(*of)[0], theta=before)
    assert not _verdict(miners, cheat).is_honest


def test_less_exact_arithmetic_is_mostly_fraud() -> None:
    """Of eight maps by bfloat16 most are found: there is no promise for a single one."""
    miners, found = InStep(task_of("MLP"), 1), 0
    for _ in range(8):
        miners.run(9 if miners.slot else 4)

        def rounded(model: Model, theta: Weights, rows: Rows) -> Weights:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return model.gradient(theta, rows)[0]

        found += not _verdict(miners, _cheat_with(miners, rounded)).is_honest
    assert found >= 4


def test_slots_that_are_not_certified_do_not_count() -> None:
    """A lane whose message was left out goes on from the residual before it, and so does its judge."""
    miners = InStep(task_of("MLP"), 1)
    (miner,), model = miners.miners, miners.model
    lap: list[LapSlot] = []
    residual: bytes | None = None
    for slot in range(4):
        theta = miners.theta
        result = iterate(model, theta, residual, slot=slot, miner=miner, lane=0, parts=2)
        is_certified = slot != 1
        # Of a slot without a message nothing is needed, not even its weights.
        lap.append(
            LapSlot(slot, theta if is_certified else b"", result.map if is_certified else None, 2)
        )
        residual = result.residual if is_certified else residual
        miners.run(1)
    verdict = reexecute(model, lap, miner=miner, lane=0, published=result.map)
    assert verdict == Verdict(0, verdict.compared, 1.0, True, result.weights_end)
    all_counted = [*lap[:1], LapSlot(1, lap[0].theta, lap[0].map, 2), *lap[2:]]
    assert not reexecute(model, all_counted, miner=miner, lane=0, published=result.map).is_honest


def test_a_few_stray_entries_pass() -> None:
    """Two of 344 can be float noise, three cannot; a hair below tau is none, and no number is one."""
    task = task_of("MLP")
    left = np.zeros(task.num_weights, dtype=np.float32)
    left[:340] = 0.03
    own = signs_of(task, left)

    def with_strays(number: int) -> SignMap:
        indices = np.concatenate((own.indices, np.arange(1000, 1000 + number)))
        return SignMap(indices, np.ones(len(indices), dtype=np.int8))

    assert judge(task, left, own, b"").violations == 0
    two = judge(task, left, with_strays(2), b"")
    assert (two.violations, two.compared, two.is_honest) == (2, 342, True)
    assert two.probability == pytest.approx(0.0131, abs=1e-3)
    assert not judge(task, left, with_strays(3), b"").is_honest
    left[1000:1003] = np.float32(0.02 * 0.9995)
    assert judge(task, left, with_strays(3), b"").violations == 0
    left[1000:1003] = np.nan
    assert judge(task, left, with_strays(3), b"").violations == 3


def test_a_full_map_has_to_be_of_the_largest() -> None:
    """What is left out counts against the smallest that is in, not against tau."""
    task = task_of("MLP")
    left = np.linspace(0.03, 0.06, task.num_weights, dtype=np.float32)
    assert judge(task, left, signs_of(task, left), b"").violations == 0
    smallest = SignMap(np.arange(task.cap), np.ones(task.cap, dtype=np.int8))
    verdict = judge(task, left, smallest, b"")
    assert not verdict.is_honest
    assert verdict.violations <= verdict.compared <= task.num_weights


def test_weights_matter_in_each_slot_of_a_lap(miners: InStep) -> None:
    """An early slot's weights that are others' give another verdict."""
    lap = list(miners.laps[miners.miners[0]])
    other = weights_from(lap[0].theta) + np.float32(0.05)
    lap[0] = LapSlot(lap[0].slot, weights_bytes(other), lap[0].map, 1)
    published = miners.results[miners.miners[0]].map
    verdict = reexecute(miners.model, lap, miner=miners.miners[0], lane=0, published=published)
    assert not verdict.is_honest
