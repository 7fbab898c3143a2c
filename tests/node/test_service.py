"""The small node's state: rounds begin, change, end, fail and go on after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from functools import partial
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from pocqueue.errors import (
    DelegationError,
    EngineUnavailable,
    InvalidRound,
    ModelConflict,
    NodeStateError,
    NoLiveGpu,
    OutboxError,
)
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.outbox import OUTBOX_NAME, Outbox
from pocqueue.node.service import NodeService
from pocqueue.node.signing import verify_body
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import Keys
from pocqueue.settings import DelegationSettings
from tests.support.callback_receiver import Receiver, answering
from tests.support.delegation_server import TOKEN, Work as Gpus, live_gpus
from tests.support.fake_engine import FakeEngine, distance_of, valid_below
from tests.support.fixtures import SettingsFactory
from tests.support.node import (
    TroubledOutbox,
    batch,
    big_node,
    delegating,
    honest,
    legacy_big_node,
    made_up,
    make_round,
    node_at_work,
    nonces_in,
    received,
    shows,
)
from tests.support.waiting import until


@pytest.fixture
def chain(receiver: Receiver) -> Receiver:
    """Where signed batches go."""
    return receiver


def sent(chain: Receiver) -> list[int]:
    """Return the nonces that the chain took, each signed."""
    for body in chain.accepted:
        verify_body(body)
    return nonces_in(chain.accepted)


async def word(service: NodeService) -> str:
    return str((await service.report.status())["status"])


# Delegated


async def test_a_round_on_our_big_node(
    backend: Backend, settings_for: SettingsFactory, chain: Receiver
) -> None:
    """From the request to signed batches at the chain, and to the stop; the status as in docs/wire.md."""
    live_gpus(backend, 2)
    with big_node(settings_for()) as url:
        async with node_at_work(settings_for(), delegating(url)) as node:
            assert await word(node) == "STOPPED"
            await node.generate(make_round(chain.url))
            status = await node.report.status()
            seed = {"status": "GENERATING", "is_model_initialized": True}
            seed |= {"delegation_mode": True, "gpu_count": 2}
            assert seed.items() <= status.items()
            session_id = status["session_id"]
            work = Gpus(backend, session_id)
            for _ in range(3):
                await asyncio.to_thread(work.batch)
            await until(lambda: len(sent(chain)) == 6)
            await asyncio.to_thread(work.batch)
            assert await node.stop()
            await until(lambda: len(sent(chain)) == 8)
            assert sent(chain) == work.nonces
            assert {body["signer"] for body in chain.accepted} == {node.key.public_hex}
            await shows(node, status="STOPPED", total_nonces=8, poll_lag_seconds=None)
            assert not await node.stop()
    assert not backend.store.status(session_id).state.is_active


async def test_a_round_on_a_legacy_big_node(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Polled, drained to the end, once each; the token is in no status and no log."""
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegating(big.url)) as node,
    ):
        big.pages.extend([[batch(0, 1)], [], [batch(2), batch(2, 3)]])
        await node.generate(make_round(chain.url))
        await until(lambda: len(sent(chain)) == 4)
        big.pages.append([batch(4)])
        await node.stop()
        await until(lambda: len(sent(chain)) == 5)
        assert sent(chain) == [0, 1, 2, 3, 4]
        assert big.stopped == ["old-1"]
        assert TOKEN not in str(await node.report.status())


async def test_same_round_again_changes_nothing(settings_for: SettingsFactory) -> None:
    """Nor do two requests at once; another round ends the one before."""
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegating(big.url)) as node,
    ):
        await asyncio.gather(*(node.generate(make_round()) for _ in range(3)))
        assert big.started == 1
        await node.generate(make_round(block_hash="block-2"))
        assert big.started == 2
        await until(lambda: big.stopped == ["old-1"])
        status = await node.report.status()
        assert (status["block_hash"], status["session_id"]) == ("block-2", "old-2")
        await node.init(make_round(block_hash="block-2"))
        assert await word(node) == "GENERATING"
        await node.init(make_round(block_hash="block-3"))
        assert await word(node) == "IDLE"
        await until(lambda: big.stopped == ["old-1", "old-2"])
        await node.generate()
        assert big.started == 3


async def test_what_cannot_start(settings_for: SettingsFactory) -> None:
    """The big node's sentence, for the caller and in the status; the round is still at hand."""
    async with legacy_big_node() as big:
        wrong = delegating(big.url, auth_token=SecretStr("not-the-token-of-it"))
        async with node_at_work(settings_for(), wrong) as node:
            with pytest.raises(NodeStateError, match="PoW is not running"):
                await node.generate()
            with pytest.raises(DelegationError) as caught:
                await node.generate(make_round())
            assert str(caught.value) == "Failed to start delegation session: Invalid auth token"
            assert caught.value.status == 400
            status = await node.report.status()
            assert (status["status"], status["error"]) == ("IDLE", str(caught.value))
            ours = {"delegation_url": big.url, "delegation_auth_token": TOKEN}
            await node.generate(make_round(block_hash="block-2", **ours))
            assert (await node.report.status())["error"] is None


async def test_a_session_that_is_known_already(settings_for: SettingsFactory) -> None:
    """Two rounds never share a session, whatever a big node says."""
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegating(big.url)) as node,
    ):
        await node.generate(make_round())
        big.started = 0
        with pytest.raises(DelegationError, match="session old-1, which is another one"):
            await node.generate(make_round(block_hash="block-2"))
        await until(lambda: big.stopped == ["old-1"])


async def test_a_big_node_that_goes_away(settings_for: SettingsFactory, chain: Receiver) -> None:
    """In the middle of a session, and at the moment of a stop."""
    async with contextlib.AsyncExitStack() as at_end:
        away = contextlib.AsyncExitStack()
        big = await away.enter_async_context(legacy_big_node())
        port = int(big.url.rpartition(":")[2])
        node = await at_end.enter_async_context(node_at_work(settings_for(), delegating(big.url)))
        big.pages.append([batch(0)])
        await node.generate(make_round(chain.url))
        await until(lambda: sent(chain) == [0])
        await away.aclose()

        async def has_error() -> bool:
            return (await node.report.status())["error"] is not None

        await until(has_error)
        status = await node.report.status()
        assert status["status"] == "GENERATING"
        assert status["error"].startswith("Connection refused. Check that")
        await node.stop()
        back = await at_end.enter_async_context(legacy_big_node(port))
        back.pages.append([batch(1)])
        await until(lambda: sent(chain) == [0, 1])
        await until(lambda: back.stopped == ["old-1"])


async def test_fraud_ends_a_session(settings_for: SettingsFactory, chain: Receiver) -> None:
    """What waits is held, nothing more is sent, and the status says why; nobody takes over unasked."""
    chain.gate.clear()
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegating(big.url)) as node,
    ):
        big.pages.extend([[batch(0)], [batch(1)]])
        await node.generate(make_round(chain.url))
        await until(lambda: chain.received)
        await shows(node, waiting=2)
        big.pages.append([batch(2, block_hash="other")])
        await until(lambda: big.stopped == ["old-1"])
        await shows(node, status="STOPPED")
        # The first message is under way.
        chain.gate.set()
        await shows(node, held=1)
        assert sent(chain) == [0]
        status = await node.report.status()
        assert (status["status"], status["fraud_detected"]) == ("STOPPED", True)
        assert status["error"] == "a batch is of another round (block 'other')"


async def test_local_work_takes_over_after_fraud(
    settings_for: SettingsFactory, chain: Receiver
) -> None:
    """Found by recomputing a sample; although the cheat does not even answer to a stop."""
    engine = FakeEngine(made_up)
    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(),
            delegating(big.url, fallback="local"),
            work="engine",
            engine=engine,
        ) as node,
    ):
        chain.gate.clear()
        big.pages.append([batch(*range(2000))])
        await node.generate(make_round(chain.url))
        await until(lambda: engine.batches)
        big.failures = iter([503] * 10_000)
        await shows(node, delegation_mode=False)
        status = await node.report.status()
        assert status["delegation_mode"] is False
        assert status["error"].startswith("The big node's session was fraud: ")
        assert "recomputed nonces are invalid" in status["error"]
        # Its page was not sent, nor signed: the sample is judged before that.
        assert status["outbox"]["held"] == 0
        chain.gate.set()
        families = text_string_to_metric_families((await node.report.metrics()).decode())
        values = {s.name: s.value for family in families for s in family.samples}
        assert values["pocqueue_node_fraud_total"] == 1
        assert values["pocqueue_node_sampled_nonces_total"] > 0


async def test_local_work_takes_over_a_lost_session(
    settings_for: SettingsFactory, chain: Receiver
) -> None:
    """A big node that forgot it has nothing more to give, and the round is not over; it goes on where that stood."""
    engine, delegation = FakeEngine(honest), partial(delegating, fallback="local")
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegation(big.url), work="engine", engine=engine) as node,
    ):
        big.pages.append([batch(*range(0, 400, 2))])
        await node.generate(make_round(chain.url))
        await until(lambda: len(sent(chain)) == 200)
        big.failures = iter([404] * 10_000)
        await until(lambda: len(sent(chain)) > 220)
        assert sent(chain)[200:220] == list(range(399, 419))
        status = await node.report.status()
        assert (status["delegation_mode"], status["status"]) == (False, "GENERATING")
        assert status["error"] == "The big node's session ended early: Session not found"


async def test_queues_that_take_over_go_on_where_the_big_node_stood(
    backend: Backend, settings_for: SettingsFactory, chain: Receiver
) -> None:
    """What was kept is not searched again; so it is when the node's own round is lost, too."""
    live_gpus(backend)
    delegation = partial(delegating, fallback="local")
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegation(big.url), work="queue") as node,
    ):
        big.pages.append([batch(*range(0, 400, 2))])
        await node.generate(make_round(chain.url))
        await until(lambda: len(sent(chain)) == 200)
        big.failures = iter([404] * 10_000)
        found = list(range(0, 400, 2))
        for _ in range(2):
            await until(backend.store.active_ids)
            [round_id] = backend.store.active_ids()
            await shows(node, session_id=round_id)
            work = Gpus(backend, round_id)
            for _ in range(3):
                await asyncio.to_thread(work.batch)
            assert work.nonces[0] == found[-1] + 1
            found += work.nonces
            await until(lambda: len(sent(chain)) == len(found))  # noqa: B023
            backend.store.close(round_id, RoundState.STOPPED, "by hand")
            await shows(node, status="STOPPED")
            await node.generate(make_round(chain.url))
        assert sent(chain) == found


async def test_a_fallback_at_the_start(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Local work begins, and the status says why; where it cannot either, both reasons are given."""
    away = delegating("http://127.0.0.1:9", fallback="local")
    async with node_at_work(settings_for(), away, work="engine") as node:
        await node.generate(make_round(chain.url))
        status = await node.report.status()
        assert (status["status"], status["delegation_mode"]) == ("GENERATING", False)
        assert status["error"].startswith("Failed to start delegation session: Connection refused.")
        await until(lambda: len(sent(chain)) > 20)
        with pytest.raises(DelegationError, match="Local work cannot take over: seq_len is 2000"):
            await node.generate(make_round(chain.url, seq_len=2000, block_hash="block-2"))


# Local


async def test_a_round_with_an_engine(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Its valid nonces, in order; validating ends it, and generating begins again without those that were kept."""
    engine = FakeEngine()
    async with node_at_work(settings_for(), engine=engine) as node:
        await node.generate(make_round(chain.url, params={"model": "twin", "dim": 16}))
        assert {"delegation_mode": False, "gpu_count": 1}.items() <= (
            await node.report.status()
        ).items()
        await until(lambda: len(sent(chain)) > 50)
        await node.validate_phase()
        assert await word(node) == "VALIDATING"
        kept = sent(chain)[:20]
        assert kept == valid_below(1.0, range(100))[:20]
        first = (await node.report.status())["session_id"]
        num_batches = len(engine.batches)
        await node.generate()
        await until(lambda: len(engine.batches) > num_batches + 1)
        computed = [nonce for batch in engine.batches for nonce in batch]
        assert all(computed.count(nonce) == 1 for nonce in kept)
        status = await node.report.status()
        assert status["status"] == "GENERATING"
        assert status["session_id"] != first
        with pytest.raises(ModelConflict, match="dim 1792"):
            await node.generate(make_round(block_hash="block-2", params={"dim": 1792}))
    assert not engine.overlapped


async def test_a_receiver_that_takes_nothing(settings_for: SettingsFactory) -> None:
    """The status says which, and why: of what waits, and of what was refused."""
    async with answering(404) as url, node_at_work(settings_for()) as node:
        await node.generate(make_round(url))
        refused = (
            f"Batches were refused by {url}: HTTP 404, nothing is there: check the path of the "
            "callback URL. `pocqueue node outbox list` shows them."
        )
        await shows(node, error=refused, status="GENERATING")
        await node.generate(make_round("http://nowhere.invalid/v1", block_hash="block-2"))
        waits = "Batches wait for http://nowhere.invalid: no answer (its name is not found)."
        await shows(node, error=waits, status="GENERATING")


async def test_a_round_has_one_window(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Asked for again when that is over, the same nonces are not searched and sent again."""
    async with node_at_work(settings_for(), DelegationSettings(window_seconds=0.3)) as node:
        await node.generate(make_round(chain.url))
        await shows(node, status="STOPPED")
        session_id = (await node.report.status())["session_id"]
        await node.generate(make_round(chain.url))
        status = await node.report.status()
        assert (status["status"], status["session_id"]) == ("STOPPED", session_id)
        await node.generate(make_round(chain.url, block_hash="block-2"))
        assert (await node.report.status())["session_id"] != session_id


@pytest.mark.parametrize("step_s", [4000.0, -4000.0])
async def test_a_clock_that_is_set(
    step_s: float, settings_for: SettingsFactory, chain: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not end the round that runs, whose repeat is the same search."""
    now = time.time
    async with node_at_work(settings_for()) as node:
        await node.generate(make_round(chain.url))
        await until(lambda: sent(chain))
        monkeypatch.setattr(time, "time", lambda: now() + step_s)
        before = await node.report.status()
        await until(lambda: len(sent(chain)) > before["total_nonces"] + 20)
        await node.generate(make_round(chain.url))
        after = await node.report.status()
        assert (after["status"], after["session_id"]) == ("GENERATING", before["session_id"])
        assert len(sent(chain)) == len(set(sent(chain)))


async def test_a_clock_that_is_set_back_does_not_lengthen_a_round(
    settings_for: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends when its window is over."""
    now = time.time
    async with node_at_work(settings_for(), DelegationSettings(window_seconds=0.5)) as node:
        await node.generate(make_round())
        monkeypatch.setattr(time, "time", lambda: now() - 4000)
        await shows(node, status="STOPPED")


async def test_a_round_that_ended_a_moment_early_has_had_its_window(
    settings_for: SettingsFactory,
) -> None:
    """The big node's clock is another one: the end of its window may come before that of ours."""
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegating(big.url, window_seconds=1.5)) as node,
    ):
        big.ends = True
        await node.generate(make_round())
        await shows(node, status="STOPPED")
        assert (await node.report.status())["error"] is None
        await node.generate(make_round())
        assert await word(node) == "STOPPED"
        assert big.started == 1


async def test_a_verdict(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Signed, at the chain once; of an honest proof and of a made-up one."""
    async with node_at_work(settings_for()) as node:
        proof = received(batch(*valid_below(1.0, range(100))))
        with pytest.raises(NodeStateError, match="PoW is not running"):
            await node.validate(proof)
        with pytest.raises(NodeStateError, match="PoW is not running"):
            await node.validate_phase()
        await node.validate_phase(make_round(chain.url))
        assert not (await node.validate(proof)).fraud_detected
        lie = received(batch(*(n for n in range(40) if distance_of(n) > 1)))
        assert (await node.validate(lie)).fraud_detected
        await until(lambda: len(chain.accepted) == 2)
        assert [body["fraud_detected"] for body in chain.accepted] == [False, True]
        assert {path for path, _ in chain.received} == {"/v1/poc-batches/validated"}
        for body in chain.accepted:
            verify_body(body)
        with pytest.raises(InvalidRound, match="dist is 'a list of 1'"):
            await node.validate(received(batch(0, 1) | {"dist": [0.5]}))


async def test_no_validation_without_an_engine(settings_for: SettingsFactory) -> None:
    """In the words of docs/wire.md if it delegates."""
    async with node_at_work(settings_for(), delegating("http://127.0.0.1:9")) as node:
        for ask in (node.validate_phase(make_round()), node.validate(received(batch(0)))):
            with pytest.raises(NodeStateError) as caught:
                await ask
            assert str(caught.value) == "Validation phase not supported in delegation mode"
    async with node_at_work(settings_for(), work="none") as node:
        with pytest.raises(NodeStateError, match="set POCQUEUE_NODE_WORK=engine"):
            await node.validate_phase(make_round())
        with pytest.raises(NodeStateError, match="neither delegates nor works itself"):
            await node.generate(make_round())


async def test_a_stop_while_the_engine_is_loaded(settings_for: SettingsFactory) -> None:
    """It does not wait for that; those who asked before it are told, those after it are served."""
    loaded = threading.Event()

    def load(*_: object) -> FakeEngine:
        loaded.wait(60)
        return FakeEngine()

    host = EngineHost(settings_for(), load)
    async with node_at_work(settings_for(), host=host) as node:
        assert await word(node) == "LOADING"
        asked = [asyncio.create_task(node.generate(make_round())) for _ in range(2)]
        await until(lambda: node.round is not None)
        assert await node.stop()
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            assert str(answer) == "The round was stopped before the engine was loaded"
        assert node.round is None
        later = asyncio.create_task(node.generate(make_round()))
        loaded.set()
        await later
        assert await word(node) == "GENERATING"


async def test_an_engine_that_cannot_be_loaded(settings_for: SettingsFactory) -> None:
    """Nothing can be done by a node that has nothing else; one that delegates goes on."""

    def load(*_: object) -> FakeEngine:
        raise RuntimeError("no such model")

    async with node_at_work(settings_for(), host=EngineHost(settings_for(), load)) as node:
        with pytest.raises(EngineUnavailable, match="no such model"):
            await node.generate(make_round())
        assert node.report.unhealthy == "The engine of this node cannot be used: no such model"
        with pytest.raises(EngineUnavailable, match="no such model"):
            await node.validate(received(batch(0)))
        await node.stop()
        assert await word(node) == "NOT_LOADED"
    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(),
            delegating(big.url),
            work="engine",
            host=EngineHost(settings_for(), load),
        ) as node,
    ):
        await node.generate(make_round())
        assert node.report.unhealthy is None
        assert "no such model" in (await node.report.status())["error"]


async def test_a_round_on_the_queues(
    backend: Backend, settings_for: SettingsFactory, chain: Receiver
) -> None:
    """The node's own GPU pool, as a big node of its own."""
    async with node_at_work(settings_for(), work="queue") as node:
        with pytest.raises(NoLiveGpu):
            await node.generate(make_round(chain.url))
        live_gpus(backend, 2)
        await node.generate()
        status = await node.report.status()
        assert (status["gpu_count"], status["delegation_mode"]) == (2, False)
        work = Gpus(backend, status["session_id"])
        await asyncio.to_thread(work.batch)
        await until(lambda: sent(chain) == work.nonces)
        await node.stop()
        await until(lambda: not backend.store.status(status["session_id"]).state.is_active)


async def test_a_round_of_its_own_gpus_that_ends_early(
    backend: Backend, settings_for: SettingsFactory, chain: Receiver
) -> None:
    """Stopped by hand, or by a clock of Redis's host that was set: said, and begun again if it is asked for."""
    live_gpus(backend)
    async with node_at_work(settings_for(), work="queue") as node:
        await node.generate(make_round(chain.url))
        first = (await node.report.status())["session_id"]
        backend.store.close(first, RoundState.EXPIRED, "")
        await shows(node, status="STOPPED")
        assert "'expired') 3" in str((await node.report.status())["error"])
        await node.generate(make_round(chain.url))
        status = await node.report.status()
        assert (status["status"], status["error"]) == ("GENERATING", None)
        assert status["session_id"] != first


# Restarts


@pytest.mark.parametrize("origin", ["delegation", "queue", "engine"])
async def test_a_search_goes_on_after_a_restart(
    origin: str, backend: Backend, settings_for: SettingsFactory, chain: Receiver
) -> None:
    """From its cursor, with its counts, as the round at hand; nothing is lost, nothing twice."""
    live_gpus(backend)
    with big_node(settings_for()) as url:
        delegation = delegating(url) if origin == "delegation" else DelegationSettings()
        work = "auto" if origin == "delegation" else origin
        async with node_at_work(settings_for(), delegation, work=work) as node:
            await node.generate(make_round(chain.url))
            session_id = (await node.report.status())["session_id"]
            gpus = Gpus(backend, session_id) if origin != "engine" else None
            if gpus is not None:
                await asyncio.to_thread(gpus.batch)
            await until(lambda: sent(chain))
        if gpus is not None:
            gpus.batch()
        before = len(sent(chain))
        async with node_at_work(settings_for(), delegation, work=work) as node:
            status = await node.report.status()
            assert (status["status"], status["session_id"]) == ("GENERATING", session_id)
            assert status["block_hash"] == "block-1"
            await until(lambda: len(sent(chain)) > before)
            await node.generate(make_round(chain.url))
            assert (await node.report.status())["session_id"] == session_id
            await node.stop()
            await shows(node, status="STOPPED")
            await shows(node, waiting=0)
    found = sent(chain)
    assert len(found) == len(set(found))
    assert found == (gpus.nonces if gpus else valid_below(1.0, range(found[-1] + 1)))


async def test_the_last_of_several_rounds_goes_on(settings_for: SettingsFactory) -> None:
    """The stop of the one before may not have arrived when the node went down."""
    settings = settings_for()
    async with legacy_big_node() as big:
        async with node_at_work(settings, delegating(big.url)) as node:
            await node.generate(make_round())
        with Outbox(settings.state_dir / OUTBOX_NAME) as outbox:
            [first] = outbox.open_sessions()
            request = first.request.replace("block-1", "block-2")
            outbox.open_session("old-2", "delegation", request)
            outbox.open_session("spoilt", "delegation", "{}")
            outbox.open_session("verdict-1", "engine", "{}")
        async with node_at_work(settings, delegating(big.url)) as node:
            assert (await node.report.status())["block_hash"] == "block-2"
            await until(lambda: big.stopped == ["old-1"])
        with Outbox(settings.state_dir / OUTBOX_NAME) as outbox:
            found = [outbox.session(name) for name in ("old-2", "spoilt", "verdict-1")]
            assert [kept and kept.state for kept in found] == ["open", "closed", "closed"]


async def test_a_stop_outlasts_a_restart(settings_for: SettingsFactory) -> None:
    """One that the big node did not hear of is told to it afterwards; nothing is searched again."""
    settings = settings_for()
    async with legacy_big_node() as big:
        async with node_at_work(settings, delegating(big.url)) as node:
            await node.generate(make_round())
            big.failures = itertools.repeat(503)
            await node.stop()
        assert big.stopped == []
        big.failures = iter(())
        async with node_at_work(settings, delegating(big.url)) as node:
            await until(lambda: big.stopped == ["old-1"])
            assert await word(node) == "STOPPED"
            assert node.round is None


async def test_a_search_of_long_ago_is_read_to_its_end(
    backend: Backend, settings_for: SettingsFactory, chain: Receiver
) -> None:
    """After its deadline too, although it is no round at hand any more."""
    live_gpus(backend)
    settings = settings_for()
    with big_node(settings) as url:
        soon = delegating(url, window_seconds=0.3)
        async with node_at_work(settings, soon) as node:
            await node.generate(make_round(chain.url))
            session_id = (await node.report.status())["session_id"]
        Gpus(backend, session_id).batch()
        deadline_ms = int(
            backend.client.hget(Keys.of_round(session_id, "round"), "created_ms") or 0
        )
        await until(lambda: time.time() * 1000 > deadline_ms + 400)
        backend.store.expire(session_id)
        async with node_at_work(settings, soon) as node:
            assert await word(node) == "STOPPED"
            await until(lambda: sent(chain) == [0, 1])


async def test_a_setting_that_is_missing_after_a_restart(
    settings_for: SettingsFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """The session stays open, and goes on once the setting is back."""
    settings = settings_for()
    async with legacy_big_node() as big:
        async with node_at_work(settings, delegating(big.url)) as node:
            await node.generate(make_round())
        async with node_at_work(settings, work="none") as node:
            assert await word(node) == "STOPPED"
        assert "DELEGATION_URL and DELEGATION_AUTH_TOKEN are not set any more" in caplog.text
        async with node_at_work(settings, delegating(big.url)) as node:
            assert await word(node) == "GENERATING"


async def test_a_reply_under_way_at_the_end(settings_for: SettingsFactory, chain: Receiver) -> None:
    """What a legacy big node hands out while the node is told to end is kept, and sent by the next run."""
    settings = settings_for()
    async with legacy_big_node() as big:
        async with contextlib.AsyncExitStack() as first:
            node = await first.enter_async_context(node_at_work(settings, delegating(big.url)))
            big.gate.clear()
            big.pages.append([batch(0, 1)])
            await node.generate(make_round(chain.url))
            await until(lambda: not big.pages)
            closing = asyncio.create_task(first.aclose())
            await asyncio.sleep(0)
            big.gate.set()
            await closing
        async with node_at_work(settings, delegating(big.url)):
            await until(lambda: sent(chain) == [0, 1])


# Trouble


async def test_an_outbox_that_cannot_be_used(settings_for: SettingsFactory) -> None:
    """A session that was begun is ended again, as its results would not be read."""
    settings = settings_for()
    outbox = TroubledOutbox(settings.state_dir / OUTBOX_NAME)
    async with (
        legacy_big_node() as big,
        node_at_work(settings, delegating(big.url), outbox=outbox) as node,
    ):
        outbox.trouble = 10_000
        with pytest.raises(OutboxError, match="cannot be used"):
            await node.generate(make_round())
        assert big.stopped == ["old-1"]
        outbox.trouble = 0


async def test_metrics_are_readable(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Every name that the dashboard uses, with the values of a round."""
    async with node_at_work(settings_for(), engine=FakeEngine(honest)) as node:
        await node.generate(make_round(chain.url))
        await until(lambda: len(sent(chain)) > 50)
        await node.stop()
        await shows(node, status="STOPPED")

        async def read() -> dict[str, Any]:
            text = (await node.report.metrics()).decode()
            samples = [
                one for family in text_string_to_metric_families(text) for one in family.samples
            ]
            return {"|".join((one.name, *one.labels.values())): one.value for one in samples}

        async def all_taken() -> bool:
            # Counted once it is written that a batch was taken.
            found = await read()
            taken = found["pocqueue_node_delivery_seconds_count"]
            return not found["pocqueue_node_outbox_messages|waiting"] and taken == len(
                chain.accepted
            )

        await until(all_taken)
        found = await read()
        assert found["pocqueue_node_nonces_total|engine"] == len(sent(chain))
        assert found["pocqueue_node_delivered_total"] == len(chain.accepted)
        assert found["pocqueue_node_poll_lag_seconds"] == 0
