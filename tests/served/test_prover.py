"""The prover of rounds: gate and state go together, whatever the engine or the callers do."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pocqueue.errors import EngineError, EngineUnavailable, InvalidRound
from pocqueue.poc.backoff import Backoff
from pocqueue.poc.proofs import Proofs, ReceivedBatch
from pocqueue.served.prover import NoRound, Prover, RoundRunning
from tests.support.callback_receiver import receiving
from tests.support.engine_client import (
    EngineTwin,
    distance_of,
    found,
    passes_over,
    round_of,
    serving,
)
from tests.support.waiting import until

BUSY = {"GENERATING", "VALIDATING"}


@pytest.fixture
def twin() -> EngineTwin:
    return EngineTwin()


#: Callback queues that try again at once.
QUICK: dict[str, Any] = {"backoff": Backoff(0.001, 0.004)}


def start(prover: Prover, **changes: object) -> None:
    prover.init(round_of(**changes))
    prover.generate()


def proof(nonces: list[int], values: list[float] | None = None) -> ReceivedBatch:
    """Return a proof for the round at hand, an honest one unless its values are given."""
    if values is None:
        values = [distance_of("block-1", "key-2", nonce) for nonce in nonces]
    return ReceivedBatch("key-2", "block-1", 7, 0, Proofs(nonces, values))


async def test_gate_is_closed_exactly_while_a_round_is_busy(twin: EngineTwin) -> None:
    """After every order of four commands, refused ones included."""
    async with serving(twin) as prover:
        commands = {
            "init": lambda: prover.init(round_of()),
            "generate": prover.generate,
            "validate": prover.validate,
            "stop": prover.stop,
        }
        for sequence in itertools.product(commands, repeat=4):
            for name in sequence:
                before = prover.status()["state"]
                try:
                    commands[name]()
                except RoundRunning:
                    assert (name, before) == ("init", "GENERATING")
                except NoRound:
                    assert before in {"IDLE", "STOPPED"}
                state = prover.status()["state"]
                assert prover.gate.closed is (state in BUSY), sequence
        prover.stop()
        assert not prover.gate.closed


async def test_a_round_goes_on_where_it_stood(twin: EngineTwin) -> None:
    """After validating, and after a stop: no nonce twice, and none left out but those of a lost batch."""
    async with serving(twin) as prover:
        twin.hold_after = 3
        start(prover)
        await until(lambda: twin.running)
        prover.validate()
        twin.gate.set()
        await passes_over(twin)
        assert prover.status()["total_checked"] == 8
        twin.hold_after = 5
        prover.generate()
        await until(lambda: twin.running)
        prover.stop()
        twin.gate.set()
        await passes_over(twin)
        assert twin.batches == [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(5)]
        assert prover.status()["total_checked"] == 12


async def test_a_batch_of_a_stopped_round_does_not_count_for_the_next(twin: EngineTwin) -> None:
    """The next round waits for the engine, and starts with its own first nonce."""
    async with serving(twin) as prover:
        twin.hold_after = 1
        start(prover)
        await until(lambda: twin.running)
        prover.stop()
        twin.hold_after = 3
        start(prover, block_hash="block-2", r_target=2.0)
        twin.gate.set()
        await until(lambda: prover.status()["total_checked"] == 4)
        assert found(prover) == {
            nonce: distance_of("block-2", "key-1", nonce) for nonce in range(4)
        }
        assert twin.most_running == 1


async def test_a_dead_engine_starts_no_round(twin: EngineTwin) -> None:
    """Nothing changes and the gate stays as it is; a stop works all the same."""
    async with serving(twin) as prover:
        prover.init(round_of())
        twin.errored = True
        before = prover.status() | {"elapsed_seconds": 0, "rate_per_second": 0}
        commands: list[Callable[[], None]] = [
            lambda: prover.init(round_of()),
            prover.generate,
            prover.validate,
        ]
        for command in commands:
            with pytest.raises(EngineUnavailable, match="engine is dead"):
                command()
        assert prover.status() | {"elapsed_seconds": 0, "rate_per_second": 0} == before
        assert not prover.gate.closed
        prover.stop()
        assert prover.status()["state"] == "STOPPED"


async def test_a_batch_that_failed_is_tried_again(twin: EngineTwin) -> None:
    """The search goes on with its nonces, and the next trouble has as many tries."""
    trouble = [RuntimeError("CUDA out of memory")] * 2
    async with serving(twin) as prover:
        twin.failures = iter([None, *trouble, None, *trouble])
        start(prover, r_target=2.0)
        await until(lambda: prover.status()["total_checked"] >= 16)
        assert not prover.status()["failed"]
        firsts = [batch[0] for batch in twin.batches[:8]]
        assert firsts == [0, 4, 4, 4, 8, 8, 8, 12]
        assert list(found(prover))[:16] == list(range(16))


async def test_a_dead_engine_is_not_tried_again(twin: EngineTwin) -> None:
    """The round has failed at once, and the gate opens."""
    async with serving(twin, retry_pauses_s=(1e9,)) as prover:
        twin.dies = True
        start(prover)
        await until(lambda: prover.status()["failed"])
        assert len(twin.batches) == 1
        assert not prover.gate.closed


async def test_a_search_that_vllm_cancels_has_failed(twin: EngineTwin) -> None:
    """It must not seem to go on, behind a closed gate."""
    async with serving(twin) as prover:
        twin.failure = asyncio.CancelledError()
        start(prover)
        await until(lambda: prover.status()["failed"])
        assert "dropped the batch" in prover.status()["error"]
        assert not prover.gate.closed


async def test_wrong_number_of_distances_fails_the_round(twin: EngineTwin) -> None:
    """Nothing of such a batch counts."""
    async with serving(twin) as prover:
        twin.ranks = lambda distances: [{"values": distances[1:]}]
        start(prover)
        await until(lambda: prover.status()["failed"])
        assert "no rank gave values for 4 nonces" in prover.status()["error"]
        assert prover.status()["total_checked"] == 0
        assert not prover.gate.closed


@pytest.mark.parametrize("phase", ["generate", "validate"])
async def test_a_check_that_fails_ends_the_round(twin: EngineTwin, phase: str) -> None:
    """Searching or validating, the engine is the same."""
    async with serving(twin) as prover:
        prover.init(round_of())
        getattr(prover, phase)()
        twin.failure, twin.fails_for = RuntimeError("broken"), "key-2"
        with pytest.raises(EngineError, match="broken"):
            await prover.check(proof([1, 2]))
        status = prover.status()
        assert (status["state"], status["failed"]) == ("STOPPED", True)
        assert "broken" in status["error"]
        assert not prover.gate.closed


async def test_a_check_that_fails_outside_a_round_fails_alone(twin: EngineTwin) -> None:
    """There is no round to end."""
    async with serving(twin) as prover:
        prover.init(round_of())
        twin.failure = RuntimeError("broken")
        with pytest.raises(EngineError, match="broken"):
            await prover.check(proof([1, 2]))
        assert (prover.status()["state"], prover.status()["failed"]) == ("IDLE", False)


async def test_a_check_of_an_older_round_ends_no_newer_one(twin: EngineTwin) -> None:
    """Though that one validates by the time the failure is known."""
    async with serving(twin) as prover:
        prover.init(round_of())
        prover.validate()
        twin.gate.clear()
        checking = asyncio.create_task(prover.check(proof([1, 2])))
        await until(lambda: twin.running)
        prover.init(round_of(block_hash="block-2"))
        prover.validate()
        twin.failure = RuntimeError("broken")
        twin.gate.set()
        with pytest.raises(EngineError, match="broken"):
            await checking
        assert prover.status()["state"] == "VALIDATING"
        assert prover.gate.closed


async def test_a_proof_that_is_none_ends_nothing(twin: EngineTwin) -> None:
    """The caller's mistake is the caller's."""
    async with serving(twin) as prover:
        with pytest.raises(NoRound, match="No round configured"):
            await prover.check(proof([1]))
        prover.init(round_of())
        prover.validate()
        with pytest.raises(InvalidRound, match="dist"):
            await prover.check(proof([1, 2], [0.5]))
        assert prover.status()["state"] == "VALIDATING"
        assert twin.calls == []


async def test_the_searching_goes_on_beside_checks(twin: EngineTwin) -> None:
    """One pass at a time, and proofs get theirs in between."""
    async with serving(twin) as prover:
        start(prover)
        verdicts = await asyncio.gather(
            *(prover.check(proof(list(range(first, first + 6)))) for first in (0, 100, 200))
        )
        assert [verdict.computed for verdict in verdicts] == [
            verdict.proofs.values for verdict in verdicts
        ]
        done = prover.status()["total_checked"]
        await until(lambda: prover.status()["total_checked"] > done)
        assert twin.most_running == 1


@pytest.mark.parametrize("end", ["failed", "overdue", "stopped"])
async def test_the_next_round_has_a_clean_slate(twin: EngineTwin, end: str) -> None:
    """However the one before ended."""
    async with serving(twin, max_round_s=0.02 if end == "overdue" else 60) as prover:
        start(prover)
        if end != "overdue":
            await until(lambda: prover.status()["total_checked"])
        if end == "failed":
            twin.failure = RuntimeError("broken")
        if end == "stopped":
            prover.stop()
        await until(lambda: prover.status()["state"] == "STOPPED")
        assert prover.status()["failed"] is (end != "stopped")
        prover.init(round_of())
        status = prover.status()
        assert (status["state"], status["failed"], status["error"]) == ("IDLE", False, None)
        assert (status["total_checked"], found(prover)) == (0, {})


async def test_a_round_overdue_says_so_with_its_results(twin: EngineTwin) -> None:
    """Searched or validated: it ends as failed, its nonces stay readable, the gate opens."""
    async with serving(twin, max_round_s=0.02) as prover:
        twin.hold_after = 3
        start(prover, r_target=2.0)
        await until(lambda: not prover.gate.closed)
        status = prover.status()
        assert (status["state"], status["failed"]) == ("STOPPED", True)
        assert "nobody stopped the round" in status["error"]
        assert list(found(prover)) == list(range(status["total_checked"]))
        prover.init(round_of())
        prover.validate()
        assert prover.gate.closed
        await until(lambda: not prover.gate.closed)
        assert "nobody stopped the round" in prover.status()["error"]


@pytest.mark.parametrize("end", ["stop", "init", "failure"])
async def test_the_time_of_a_round_ends_with_it(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Or it would end a later one. It counts from when the gate closed, whatever phase follows."""
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    timers: list[asyncio.TimerHandle] = []

    def noting(delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        timer = call_later(delay, callback, *args)
        if delay == 54321.0:
            timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_later", noting)
    async with serving(twin, max_round_s=54321.0) as prover:
        start(prover)
        prover.generate()
        prover.validate()
        assert [timer.cancelled() for timer in timers] == [False]
        if end == "stop":
            prover.stop()
        elif end == "init":
            prover.init(round_of())
        else:
            twin.failure = RuntimeError("broken")
            with pytest.raises(EngineError):
                await prover.check(proof([1]))
        assert [timer.cancelled() for timer in timers] == [True]


async def test_closing_ends_the_round_and_delivers(twin: EngineTwin) -> None:
    """With a batch at hand, and callbacks that wait."""
    async with receiving() as receiver, serving(twin, **QUICK) as prover:
        receiver.gate.clear()
        twin.hold_after = 4
        start(prover, r_target=2.0, callback_url=receiver.url)
        await until(lambda: twin.running)
        receiver.gate.set()
        await prover.close()
        assert [n for body in receiver.accepted for n in body["nonces"]] == list(range(12))
        assert prover.status()["state"] == "STOPPED"
        assert not prover.gate.closed


async def test_closing_twice_or_before_a_round_is_fine(twin: EngineTwin) -> None:
    """A server may be stopped at any time."""
    async with serving(twin) as prover:
        await prover.close()
        await prover.close()
        assert twin.calls == []


async def test_callbacks_hold_the_target_and_all_valid_nonces(twin: EngineTwin) -> None:
    """A receiver that fails twice gets everything all the same, in order, each once."""
    async with receiving() as receiver, serving(twin, **QUICK) as prover:
        receiver.statuses = iter([503, 500])
        twin.hold_after = 6
        start(prover, callback_url=receiver.url, node_id=1, node_count=3)
        await until(lambda: twin.running)
        prover.stop()
        nonces = list(found(prover))
        assert nonces
        await until(lambda: sum(len(body["nonces"]) for body in receiver.accepted) >= len(nonces))
        assert [nonce for body in receiver.accepted for nonce in body["nonces"]] == nonces
        assert len(receiver.received) == len(receiver.accepted) + 2
        assert {path for path, _ in receiver.received} == {"/v1/poc-batches/generated"}
        first = receiver.accepted[0]
        assert first == {
            "public_key": "key-1",
            "block_hash": "block-1",
            "block_height": 7,
            "nonces": first["nonces"],
            "dist": [distance_of("block-1", "key-1", nonce) for nonce in first["nonces"]],
            "node_id": 1,
            "r_target": 1.0,
        }


async def test_an_outage_over_the_end_of_a_round_loses_nothing(twin: EngineTwin) -> None:
    """What was found goes out together once the receiver is back, beside the next round's."""
    async with receiving() as receiver:
        url, port = receiver.url, int(receiver.url.split(":")[2].split("/")[0])
    async with serving(twin, **QUICK) as prover:
        for block_hash in ("block-1", "block-2"):
            twin.hold_after = len(twin.batches) + 50
            start(prover, block_hash=block_hash, r_target=2.0, callback_url=url)
            await until(lambda: twin.running)
            prover.stop()
            twin.gate.set()
            await passes_over(twin)
        async with receiving(port=port) as receiver:
            await until(lambda: sum(len(body["nonces"]) for body in receiver.accepted) == 2 * 196)
            for block_hash in ("block-1", "block-2"):
                bodies = [body for body in receiver.accepted if body["block_hash"] == block_hash]
                assert [n for body in bodies for n in body["nonces"]] == list(range(196))
            assert len(receiver.accepted) < 20


async def test_a_round_that_goes_on_after_a_stop_delivers(twin: EngineTwin) -> None:
    """Though what it found before is still under way."""
    async with receiving() as receiver, serving(twin, **QUICK) as prover:
        twin.hold_after = 3
        start(prover, r_target=2.0, callback_url=receiver.url)
        await until(lambda: twin.running)
        prover.stop()
        twin.hold_after = 6
        prover.generate()
        twin.gate.set()
        await until(lambda: len(twin.batches) == 6 and twin.running)
        nonces = list(found(prover))
        assert len(nonces) > 8
        await until(lambda: sum(len(body["nonces"]) for body in receiver.accepted) == len(nonces))
        assert sorted(n for body in receiver.accepted for n in body["nonces"]) == nonces


async def test_a_receiver_that_is_gone_does_not_stop_the_search(twin: EngineTwin) -> None:
    """Nor the stop of the round, nor the next one."""
    async with receiving() as receiver:
        url = receiver.url
    async with serving(twin, flush_s=0.01, **QUICK) as prover:
        start(prover, callback_url=url)
        await until(lambda: prover.status()["total_checked"] >= 100)
        assert not prover.status()["failed"]
        prover.stop()
        start(prover, callback_url=url)
        await until(lambda: prover.status()["total_checked"] >= 100)


async def test_a_verdict_is_told_in_both_ways_of_speaking(twin: EngineTwin) -> None:
    """The fields of a validated batch, vLLM's names beside them, null for NaN."""
    twin.is_nan = lambda nonce: nonce == 3
    async with receiving() as receiver, serving(twin, **QUICK) as prover:
        prover.init(round_of(callback_url=receiver.url, r_target=2.0))
        prover.validate()
        verdict = await prover.check(proof([1, 2, 3]))
        await until(lambda: receiver.accepted)
        [(path, body)] = receiver.received
        claimed = [distance_of("block-1", "key-2", nonce) for nonce in (1, 2, 3)]
        computed = [*claimed[:2], None]
        assert path == "/v1/poc-batches/validated"
        assert body == {
            "public_key": "key-2",
            "block_hash": "block-1",
            "block_height": 7,
            "nonces": [1, 2, 3],
            "dist": computed,
            "computed_distances": computed,
            "received_dist": claimed,
            "received_distances": claimed,
            "valid": [True, True, False],
            "node_id": 0,
            "r_target": 2.0,
            "fraud_threshold": 0.01,
            "n_invalid": 1,
            "probability_honest": verdict.probability_honest,
            "fraud_detected": True,
        }


async def test_a_search_that_waited_takes_no_nonces_of_a_later_round(twin: EngineTwin) -> None:
    """Rounds come and go while a batch hangs; the last one still begins with its first nonce."""
    async with serving(twin) as prover:
        twin.gate.clear()
        start(prover)
        await until(lambda: twin.running)
        for _ in range(3):
            prover.stop()
            start(prover, block_hash="the next", r_target=2.0)
        twin.gate.set()
        await until(lambda: prover.status()["total_checked"] >= 8)
        assert list(found(prover))[:8] == list(range(8))


async def test_a_proof_is_not_checked_beyond_its_round(twin: EngineTwin) -> None:
    """Neither for another block, nor on and on after a stop."""
    async with serving(twin) as prover:
        prover.init(round_of())
        prover.validate()
        twin.gate.clear()
        check = asyncio.ensure_future(prover.check(proof(list(range(40)))))
        await until(lambda: twin.running)
        prover.init(round_of(block_hash="another"))
        twin.gate.set()
        with pytest.raises(NoRound, match="The round ended while the proof was checked"):
            await check
        assert len(twin.batches) == 1


async def test_a_round_that_failed_can_go_on(twin: EngineTwin) -> None:
    """Started again, it is no longer a failed one."""
    async with serving(twin) as prover:
        twin.failure = RuntimeError("broken")
        start(prover)
        await until(lambda: prover.status()["failed"])
        twin.failure = None
        assert len(twin.batches) == 3
        prover.generate()
        assert (prover.status()["failed"], prover.status()["error"]) == (False, None)
        await until(lambda: prover.status()["total_checked"])
        assert twin.batches[3] == [0, 1, 2, 3]


async def test_requests_that_were_answered_early_are_waited_for(twin: EngineTwin) -> None:
    """What runs in the background counts, where vLLM tells of it."""
    unfinished = 1
    twin.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: unfinished)
    async with serving(twin) as prover:
        start(prover)
        await until(lambda: prover.model.num_unfinished() == 1)
        assert not twin.batches
        unfinished = 0
        await until(lambda: twin.batches)
