"""A small node and a big node that lies, over HTTP: what it gets through, and honest ones that are spared."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pocqueue.errors import DelegationError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.service import NodeService
from pocqueue.node.trust import TRUST_NAME, TrustFile
from pocqueue.settings import DelegationSettings
from tests.support.callback_receiver import Receiver, receiving
from tests.support.factories import OTHER_FINGERPRINT
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.node import (
    LegacyBigNode,
    batch,
    delegating,
    legacy_big_node,
    make_round,
    node_at_work,
    nonces_in,
    shows,
)
from tests.support.waiting import until

#: Spread of distances with the vocabulary of `FakeEngine`, and that of float error between engines.
SPREAD, NOISE = 0.125, 0.125 * 0.0102


@pytest.fixture
def chain(receiver: Receiver) -> Receiver:
    """Where signed batches go."""
    return receiver


def normal(seed: str) -> float:
    """Return a number of the standard normal distribution, the same for the same seed."""
    return random.Random(seed).gauss(0, 1)  # noqa: S311 - made to repeat


def true_distance(nonce: int) -> float:
    """Return the distance of a nonce, as with random logits: one in ten is below 1."""
    return 1.0 + SPREAD * (normal(f"distance {nonce}") + 1.2816)


def with_float_error(nonce: int) -> float:
    """Return it as another kind of engine computes it."""
    return true_distance(nonce) + NOISE * normal(f"error {nonce}")


def found(
    num: int, distance: Callable[[int], float], lie: Callable[[int, float], float] | None = None
) -> list[dict[str, Any]]:
    """Return valid nonces as a big node hands them out, in batches of 100; `lie` changes distances."""
    claims: list[tuple[int, float]] = []
    nonce = 0
    while len(claims) < num:
        claim = distance(nonce)
        if lie is not None:
            claim = lie(nonce, claim)
        if claim < 1.0:
            claims.append((nonce, claim))
        nonce += 1
    parts = (claims[at : at + 100] for at in range(0, num, 100))
    return [batch(*(n for n, _ in part)) | {"dist": [d for _, d in part]} for part in parts]


def make_up(nonce: int, distance: float) -> float:
    """Claim valid distances, spread as true ones are, for one invalid nonce in 45: a fifth of the claims."""
    if distance < 1.0 or nonce % 45:
        return distance
    return next(d for i in range(1000) if (d := true_distance(10**9 + nonce + i)) < 1.0)


def shave(nonce: int, distance: float) -> float:
    """Take off half of the spread, of a fifth."""
    return distance - SPREAD / 2 if nonce % 5 == 0 else distance


async def round_of(
    node: NodeService, big: LegacyBigNode, chain: Receiver, pages: list[list[dict[str, Any]]]
) -> dict[str, Any]:
    """Have a node follow a session with these pages to its end; return its status."""
    big.pages.extend(pages)
    await node.generate(make_round(chain.url))
    await until(lambda: not big.pages)
    await node.stop()
    await shows(node, poll_lag_seconds=None, waiting=0)
    return await node.report.status()


#: Engines of one kind and of two: what the operator says, and what the big node computes.
LIKE: tuple[dict[str, Any], Callable[[int], float]] = ({}, true_distance)
UNLIKE: tuple[dict[str, Any], Callable[[int], float]] = (
    {"runtime": "vllm", "dtype": "bfloat16"},
    with_float_error,
)


@pytest.mark.parametrize(("operator", "distance"), [LIKE, UNLIKE])
async def test_an_honest_big_node(
    operator: dict[str, Any],
    distance: Callable[[int], float],
    settings_for: SettingsFactory,
    chain: Receiver,
) -> None:
    """Everything is sent, each once."""
    pages = [found(4000, distance)]
    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(),
            delegating(big.url, **operator),
            work="engine",
            engine=FakeEngine(true_distance),
        ) as node,
    ):
        status = await round_of(node, big, chain, pages)
        assert (status["fraud_detected"], status["error"]) == (False, None)
        assert status["distrusted"] == []
        assert status["sampled_nonces"] > 100
        assert nonces_in(chain.accepted) == nonces_in(pages[0])


@pytest.mark.parametrize("lie", [make_up, shave])
@pytest.mark.parametrize(("operator", "distance"), [LIKE, UNLIKE])
async def test_a_lying_big_node(
    operator: dict[str, Any],
    distance: Callable[[int], float],
    lie: Callable[[int, float], float],
    settings_for: SettingsFactory,
    chain: Receiver,
) -> None:
    """Not one nonce of its page is sent."""
    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(),
            delegating(big.url, **operator),
            work="engine",
            engine=FakeEngine(true_distance),
        ) as node,
    ):
        status = await round_of(node, big, chain, [found(2000, distance, lie)])
        assert status["fraud_detected"]
        assert "an honest node has that many with probability" in status["error"]
        assert status["distrusted"] == [big.url]
        assert chain.accepted == []
        assert big.stopped


@pytest.mark.parametrize(
    ("claim", "named"),
    [
        ({"model_runtime": "vllm"}, ["'vllm'", "'twin'"]),
        ({"model_dtype": "bfloat16"}, ["'bfloat16'", "'float32'"]),
        ({"model_fingerprint": OTHER_FINGERPRINT}, ["fedcba987654", "twin"]),
    ],
)
async def test_claims_of_another_engine(
    claim: dict[str, str], named: list[str], settings_for: SettingsFactory, chain: Receiver
) -> None:
    """Refused at the start, with both named; the session is stopped, and the node is no cheat for that."""
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegating(big.url), work="engine") as node,
    ):
        await until(lambda: node.engine is not None and node.engine.info is not None)
        big.claims = claim
        big.pages.append([batch(0, 1)])
        with pytest.raises(DelegationError) as caught:
            await node.generate(make_round(chain.url))
        assert all(name in str(caught.value) for name in named)
        assert big.stopped == ["old-1"]
        status = await node.report.status()
        assert (status["error"], status["distrusted"]) == (str(caught.value), [])
        big.claims = {}
        await node.generate()
        await until(lambda: nonces_in(chain.accepted) == [0, 1])


async def test_claims_of_another_engine_while_ours_is_loaded(
    settings_for: SettingsFactory, chain: Receiver
) -> None:
    """Its pages are held until it is known what ours is; then local work takes over."""
    loaded = threading.Event()

    def load(*_: object) -> FakeEngine:
        loaded.wait(60)
        return FakeEngine(true_distance)

    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(),
            delegating(big.url, fallback="local"),
            work="engine",
            host=EngineHost(settings_for(), load),
        ) as node,
    ):
        big.claims = {"model_runtime": "vllm"}
        big.pages.append([batch(0, 1)])
        await node.generate(make_round(chain.url))
        await until(lambda: not big.pages)
        assert chain.accepted == []
        loaded.set()
        await shows(node, delegation_mode=False)
        assert "this node expects 'twin'" in (await node.report.status())["error"]
        await until(lambda: big.stopped == ["old-1"])


async def test_a_page_waits_for_its_sample(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Nothing of it is sent before that, and the node answers meanwhile."""
    judged = threading.Event()

    def wait(_: int) -> None:
        judged.wait(60)

    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(),
            delegating(big.url),
            work="engine",
            engine=FakeEngine(true_distance, wait),
        ) as node,
    ):
        pages = [found(2000, true_distance)]
        big.pages.extend(pages)
        await node.generate(make_round(chain.url))
        await until(lambda: not big.pages)
        await asyncio.sleep(0.1)
        status = await node.report.status()
        assert (status["total_nonces"], status["outbox"]["waiting"]) == (0, 0)
        assert chain.accepted == []
        judged.set()
        await until(lambda: nonces_in(chain.accepted) == nonces_in(pages[0]))


async def test_a_page_has_a_bound(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Nothing of a larger one is looked at; the session is given up, and may be started again."""
    async with (
        legacy_big_node() as big,
        node_at_work(settings_for(), delegating(big.url)) as node,
    ):
        big.pages.append([batch(*range(200_001)), batch(*range(200_001, 400_001))])
        await node.generate(make_round(chain.url))
        await until(lambda: big.stopped == ["old-1"])
        await shows(node, status="STOPPED", fraud_detected=False, total_nonces=0)
        assert (
            "400,001 nonces at once; allowed are 400,000" in (await node.report.status())["error"]
        )
        big.pages.append([batch(0)])
        await node.generate()
        await until(lambda: nonces_in(chain.accepted) == [0])


async def test_a_cheat_is_not_used_again(settings_for: SettingsFactory, chain: Receiver) -> None:
    """Not for the same round, another one, or after a restart, whatever way its URL is written."""
    settings = settings_for()
    trust = TrustFile(settings.state_dir / TRUST_NAME)
    async with legacy_big_node() as big:
        big.pages.append([batch(0, block_hash="other")])
        async with node_at_work(settings, delegating(big.url)) as node:
            await node.generate(make_round(chain.url))
            await shows(node, fraud_detected=True)
            await until(lambda: big.stopped == ["old-1"])
            for wanted in (make_round(chain.url), make_round(chain.url, block_hash="block-2")):
                with pytest.raises(DelegationError, match="it cheated"):
                    await node.generate(wanted)
            status = await node.report.status()
            assert f"pocqueue node trust clear {big.url}" in status["error"]
        async with node_at_work(settings, delegating(big.url.upper() + "/")) as node:
            assert (await node.report.status())["distrusted"] == [big.url]
            with pytest.raises(DelegationError, match="it cheated"):
                await node.generate(make_round(chain.url))
            assert big.started == 1
            assert trust.clear("http://elsewhere:9090") == []
            assert trust.clear(f"{big.url}/") == [big.url]
            big.pages.append([batch(0)])
            await node.generate()
            await until(lambda: nonces_in(chain.accepted) == [0])
            assert (await node.report.status())["distrusted"] == []


@pytest.mark.parametrize("fallback", ["none", "local"])
async def test_a_session_that_ends_early(
    fallback: str, settings_for: SettingsFactory, chain: Receiver
) -> None:
    """Said in the status, local work takes over if it may, and the same request sends nothing twice."""
    engine = FakeEngine(lambda nonce: 0.5 if nonce % 2 == 0 else 1.5)
    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(),
            delegating(big.url, fallback=fallback),
            work="engine",
            engine=engine,
        ) as node,
    ):
        big.ends = True
        big.pages.append([batch(*range(0, 600, 2))])
        await node.generate(make_round(chain.url))
        if fallback == "local":
            await until(lambda: len(nonces_in(chain.accepted)) > 320)
            status = await node.report.status()
            assert (status["status"], status["delegation_mode"]) == ("GENERATING", False)
            assert status["error"].startswith("The big node's session ended early: Session over (")
        else:
            await shows(node, status="STOPPED")
            status = await node.report.status()
            assert (
                "before the end of its window, although nobody here stopped it" in status["error"]
            )
            big.pages.append([batch(*range(0, 604, 2))])
            await node.generate(make_round(chain.url))
            await until(lambda: big.started == 2 and len(nonces_in(chain.accepted)) > 301)
        sent = nonces_in(chain.accepted)
        assert len(sent) == len(set(sent))
        assert sent[:302] == list(range(0, 604, 2))


async def test_a_round_again_after_a_restart(
    settings_for: SettingsFactory, chain: Receiver
) -> None:
    """Or after a stop: what was kept of it is not sent again, and what is new is."""
    settings = settings_for()
    async with legacy_big_node() as big:
        big.ends = True
        for number in range(3):
            async with node_at_work(settings, delegating(big.url)) as node:
                for more in (1, 2):
                    last = 20 * number + 10 * more
                    big.pages.append([batch(*range(last))])
                    await node.generate(make_round(chain.url))
                    await until(lambda last=last: len(nonces_in(chain.accepted)) == last)  # type: ignore[misc]
                    await node.stop()
                    await shows(node, status="STOPPED", waiting=0)
        assert nonces_in(chain.accepted) == list(range(60))


async def test_fraud_leaves_nothing_out(settings_for: SettingsFactory, chain: Receiver) -> None:
    """What a cheat handed out is held, and so is found again by local work."""
    engine = FakeEngine(lambda _: 0.5)
    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(), delegating(big.url, fallback="local"), work="engine", engine=engine
        ) as node,
    ):
        big.pages.extend([[batch(0, 1)], [batch(2, block_hash="other")]])
        chain.gate.clear()
        await node.generate(make_round(chain.url))
        await shows(node, delegation_mode=False)
        chain.gate.set()
        await until(lambda: set(nonces_in(chain.accepted)) >= set(range(50)))


async def test_fraud_and_then_nothing_twice(settings_for: SettingsFactory, chain: Receiver) -> None:
    """What the receiver had before the fraud was found does not come again from local work."""
    engine = FakeEngine(lambda _: 0.5)
    async with (
        legacy_big_node() as big,
        node_at_work(
            settings_for(), delegating(big.url, fallback="local"), work="engine", engine=engine
        ) as node,
    ):
        big.pages.append([batch(0, 1)])
        await node.generate(make_round(chain.url))
        await until(lambda: nonces_in(chain.accepted) == [0, 1])
        await shows(node, waiting=0)
        big.pages.append([batch(2, block_hash="other")])
        await shows(node, delegation_mode=False)
        await until(lambda: len(nonces_in(chain.accepted)) >= 50)
        sent = nonces_in(chain.accepted)
        assert sent == list(range(len(sent)))


async def test_another_receiver_gets_everything(
    settings_for: SettingsFactory, chain: Receiver
) -> None:
    """The first one had what was sent to it; a request that names another one begins anew."""
    async with receiving() as other, legacy_big_node() as big:
        big.ends = True
        async with node_at_work(settings_for(), delegating(big.url)) as node:
            for receiver in (chain, other):
                big.pages.append([batch(*range(20))])
                await node.generate(make_round(receiver.url))
                await until(lambda receiver=receiver: len(nonces_in(receiver.accepted)) == 20)  # type: ignore[misc]
                await shows(node, status="STOPPED")


def test_spread_of_the_formula() -> None:
    """The tests above stand on it."""
    distances = [true_distance(nonce) for nonce in range(20_000)]
    assert sum(d < 1.0 for d in distances) / 20_000 == pytest.approx(0.1, abs=0.01)
    assert math.isclose(SPREAD, 1 / math.sqrt(2 * 32))
    assert DelegationSettings().runtime is None
