"""The served model: what goes to the workers, what comes back, and what may go wrong."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from types import SimpleNamespace

import pytest

from pocqueue.engine.vllm.ranks import BatchLimits
from pocqueue.errors import EngineError, EngineUnavailable, InvalidRound
from pocqueue.poc.batch import Batch
from pocqueue.served.model import ServedModel
from tests.support.engine_client import (
    MAX_BATCH_SIZE,
    MAX_SEQ_LEN,
    EngineTwin,
    distance_of,
)
from tests.support.factories import make_info
from tests.support.waiting import until


@pytest.fixture
def twin() -> EngineTwin:
    return EngineTwin()


@pytest.fixture
async def model(twin: EngineTwin) -> ServedModel:
    return ServedModel(twin, make_info(max_seq_len=MAX_SEQ_LEN), BatchLimits(MAX_BATCH_SIZE))


def expected(nonces: list[int]) -> list[float]:
    return [distance_of("block-1", "key-1", nonce) for nonce in nonces]


async def ask(model: ServedModel, nonces: list[int]) -> list[float]:
    return await model.values(Batch("block-1", "key-1", tuple(nonces), 4, 8))


async def test_a_batch_is_one_call_by_name(model: ServedModel, twin: EngineTwin) -> None:
    """Block hash, key, nonces and shape go in, and the time a pass may take."""
    assert await ask(model, [5, 3, 9]) == expected([5, 3, 9])
    assert twin.calls == [
        ("poc_values", (Batch("block-1", "key-1", (5, 3, 9), 4, 8).to_wire(), None))
    ]


async def test_the_workers_are_told_of_the_next_batch(model: ServedModel, twin: EngineTwin) -> None:
    """One that they could not run is left out; it is refused when it is asked for."""
    batch = Batch("block-1", "key-1", (5,), 4, 8)
    await model.values(batch, Batch("block-2", "key-2", (6, 7), 4, 8))
    await model.values(batch, Batch("block-2", "key-2", (6, 7), 4, 10**6))
    told = [args[1] for _, args in twin.calls]
    assert told == [Batch("block-2", "key-2", (6, 7), 4, 8).to_wire(), None]


async def test_any_rank_may_have_the_logits(model: ServedModel, twin: EngineTwin) -> None:
    """Ranks without them have no distances."""
    twin.ranks = lambda distances: [{"values": None}, {"values": distances}]
    assert await ask(model, [1, 2]) == expected([1, 2])


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_another_number_of_distances_is_the_engines_fault(
    model: ServedModel, twin: EngineTwin, count: int
) -> None:
    """None at all, where no rank has the logits; too few; too many."""
    twin.ranks = lambda _: [{"values": [0.5] * count or None}]
    with pytest.raises(EngineError, match="no rank gave values for 2 nonces"):
        await ask(model, [1, 2])


async def test_a_rank_that_fails_is_heard(model: ServedModel, twin: EngineTwin) -> None:
    """Though another one has distances; what it says is an answer, not an exception."""
    twin.ranks = lambda distances: [{"values": distances}, {"error": "It does not fit."}]
    with pytest.raises(EngineError, match="It does not fit"):
        await ask(model, [1])


async def test_a_model_with_buffers_for_so_many_tokens_is_asked_for_no_more(
    twin: EngineTwin,
) -> None:
    """A mixture of experts; the message says which batch would do."""
    model = ServedModel(twin, make_info(), BatchLimits(MAX_BATCH_SIZE, max_tokens=20))
    model.check(2, 10)
    with pytest.raises(InvalidRound, match="batch_size is 4; allowed: at most 2 with seq_len 8"):
        model.check(4, 8)


async def test_nan_passes(model: ServedModel, twin: EngineTwin) -> None:
    """What it means is for the caller to say."""
    twin.is_nan = lambda nonce: nonce == 2
    distances = await ask(model, [1, 2, 3])
    assert [math.isnan(distance) for distance in distances] == [False, True, False]


async def test_no_nonces_take_no_pass(model: ServedModel, twin: EngineTwin) -> None:
    """The answer is empty."""
    assert await ask(model, []) == []
    assert twin.calls == []


@pytest.mark.parametrize(
    ("nonces", "batch_size", "seq_len", "field"),
    [
        ([1, 2, 3], 2, 8, "nonces"),
        ([1], MAX_BATCH_SIZE + 1, 8, "batch_size"),
        ([1], 0, 8, "batch_size"),
        ([1], 4, MAX_SEQ_LEN + 1, "seq_len"),
    ],
)
async def test_what_the_model_cannot_run_does_not_reach_it(
    model: ServedModel,
    twin: EngineTwin,
    nonces: list[int],
    batch_size: int,
    seq_len: int,
    field: str,
) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRound) as caught:
        await model.values(Batch("block-1", "key-1", tuple(nonces), batch_size, seq_len))
    assert caught.value.field == field
    assert twin.calls == []


async def test_a_dead_engine_is_not_asked(model: ServedModel, twin: EngineTwin) -> None:
    """The error says what to do."""
    model.check_alive()
    twin.errored = True
    with pytest.raises(EngineUnavailable, match=r"engine is dead\. Restart the server"):
        await ask(model, [1])
    with pytest.raises(EngineUnavailable, match="engine is dead"):
        model.check_alive()
    assert twin.calls == []


async def test_an_engine_that_dies_is_unavailable(model: ServedModel, twin: EngineTwin) -> None:
    """Not merely failed: asking again would not help."""
    twin.dies = True
    with pytest.raises(EngineUnavailable, match=r"engine died \(EngineDeadError\)"):
        await ask(model, [1])


async def test_what_workers_raise_is_told_and_cut(model: ServedModel, twin: EngineTwin) -> None:
    """vLLM's texts may hold a whole traceback."""
    twin.failure = RuntimeError("CUDA out of memory " + "x" * 1000)
    with pytest.raises(EngineError, match="The engine failed: CUDA out of memory") as caught:
        await ask(model, [1])
    assert not isinstance(caught.value, EngineUnavailable)
    assert len(str(caught.value)) < 600
    twin.failure = None
    assert await ask(model, [1]) == expected([1])


async def test_a_core_that_hangs_is_given_up(twin: EngineTwin) -> None:
    """Though nobody in there tells that the time is up."""
    model = ServedModel(twin, make_info(), BatchLimits(MAX_BATCH_SIZE), pass_timeout_s=0.01)
    twin.gate.clear()
    with pytest.raises(EngineUnavailable, match="no answer to a batch within 0 s"):
        await ask(model, [1])
    await until(lambda: twin.running == 0)


async def test_an_engine_that_dies_during_a_batch_is_noticed(twin: EngineTwin) -> None:
    """vLLM leaves the calls that a dead engine had without an answer."""
    model = ServedModel(twin, make_info(), BatchLimits(MAX_BATCH_SIZE), look_every_s=0.01)
    twin.gate.clear()
    call = asyncio.ensure_future(ask(model, [1]))
    await until(lambda: twin.running)
    twin.errored = True
    with pytest.raises(EngineUnavailable, match="engine is dead"):
        await call


async def test_workers_free_their_scratch_once_nothing_comes(twin: EngineTwin) -> None:
    """A while after the last batch, and again after the next ones."""
    model = ServedModel(twin, make_info(), BatchLimits(MAX_BATCH_SIZE), idle_s=0.01)
    await ask(model, [1])
    await ask(model, [2])
    await until(lambda: twin.released == 1)
    await ask(model, [3])
    await until(lambda: twin.released == 2)
    await model.close()


async def test_what_runs_beside_batches_has_its_share_of_the_time(twin: EngineTwin) -> None:
    """Between two batches at least as long as the first one took, for a half."""
    spans: list[tuple[float, float]] = []
    twin.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: 1)
    model = ServedModel(twin, make_info(), BatchLimits(MAX_BATCH_SIZE), decode_share=0.5)

    def slow() -> None:
        began = time.monotonic()
        while time.monotonic() < began + 0.005:
            pass
        spans.append((began, time.monotonic()))

    twin.on_batch = slow
    for _ in range(5):
        await model.take_turn()
        try:
            await ask(model, [1])
        finally:
            model.turn.release()
    for (began, ended), (following, _) in itertools.pairwise(spans):
        assert following - ended >= ended - began


async def test_nothing_that_runs_needs_no_share(twin: EngineTwin) -> None:
    """A turn that waits for its end begins then."""
    running = 1
    twin.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: running)
    share = 1 - 1e-9  # a rest of years
    model = ServedModel(twin, make_info(), BatchLimits(MAX_BATCH_SIZE), decode_share=share)
    await model.take_turn()
    await ask(model, [1])
    model.turn.release()
    turns = [asyncio.create_task(model.take_turn()) for _ in range(3)]
    for _ in range(50):
        await asyncio.sleep(0)
    turns[0].cancel()  # which must not leave the turn taken
    for _ in range(50):
        await asyncio.sleep(0)
    assert not turns[1].done()
    running = 0
    await turns[1]
    assert not turns[2].done()
    model.turn.release()
    await turns[2]


async def test_a_call_that_vllm_drops_is_an_error(model: ServedModel, twin: EngineTwin) -> None:
    """Not a cancellation, which would end a search as if somebody had stopped it."""
    twin.failure = asyncio.CancelledError()
    with pytest.raises(EngineUnavailable, match="dropped the batch"):
        await ask(model, [1])


async def test_a_caller_who_is_cancelled_stays_so(model: ServedModel, twin: EngineTwin) -> None:
    """Its cancellation is nobody's error."""
    twin.gate.clear()
    task = asyncio.create_task(ask(model, [1]))
    await until(lambda: twin.running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
