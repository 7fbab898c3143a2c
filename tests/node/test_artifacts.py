"""Rounds of artifacts on a small node: from each of its three sources to the receiver, unsigned and exact."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pocqueue.node.page_check import Fraud, PageCheck
from pocqueue.node.round import NodeRound
from pocqueue.node.sources import EngineSource, Page
from pocqueue.rounds.backend import Backend
from tests.support.artifacts import (
    K_DIM,
    artifact_batch,
    artifact_of,
    artifact_round,
    artifacts_in,
    received_artifacts,
)
from tests.support.callback_receiver import Receiver
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.live_pool import live_pool
from tests.support.node import (
    big_node,
    delegating,
    host_of,
    make_request,
    node_at_work,
    shows,
)
from tests.support.waiting import until

#: What is the same in all bodies of `artifact_round`, as ARTIFACT's wire has it.
HEAD = {
    "public_key": "key-1",
    "block_hash": "block-1",
    "block_height": 7,
    "node_id": 1,
    "encoding": {"dtype": "f16", "k_dim": K_DIM, "endian": "le"},
}


def check_arrived(receiver: Receiver, stride: range) -> int:
    """Check that the receiver has the first so many nonces of a stride, exact and once; return how many."""
    assert {path for path, _ in receiver.received} == {"/v1/poc-batches/generated"}
    for body in receiver.accepted:
        assert body == HEAD | {"artifacts": body["artifacts"]}
    found = artifacts_in(receiver.accepted)
    assert sorted(found) == [(nonce, artifact_of(nonce)) for nonce in stride[: len(found)]]
    return len(found)


@pytest.mark.parametrize("source", ["engine", "queue", "big node"])
async def test_artifacts_of_each_source_arrive(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver, source: str
) -> None:
    """Of the node's own nonces, every one, none twice; nothing is signed, and nothing else is in a body."""
    settings = settings_for()
    wanted = artifact_round(receiver.url, node_id=1, node_count=3, n_groups=2, group_id=1)
    delegates = source == "big node"
    with (
        live_pool(backend, *(FakeEngine(artifact_of) for _ in range(2))),
        big_node(settings) as url,
    ):
        async with node_at_work(
            settings,
            delegating(url) if delegates else None,
            work="auto" if delegates else source,
            engine=FakeEngine(artifact_of),
        ) as node:
            await node.generate(wanted)
            await until(lambda: len(artifacts_in(receiver.accepted)) >= 100)
            await node.stop()
            # What was found by the stop is still read.
            await until(lambda: node.current is not None and node.current.over)
            await shows(node, status="STOPPED", waiting=0, refused=0, error=None)
            total = (await node.report.status())["total_nonces"]
            assert "pocqueue_node_signed_total 0.0" in (await node.report.metrics()).decode()
    assert check_arrived(receiver, range(4, 2**31, 6)) == total


async def test_an_engine_ends_with_the_last_nonce(settings_for: SettingsFactory) -> None:
    """No nonce is above 2^31 - 1, whoever searches."""
    engine = FakeEngine(artifact_of)
    host = host_of(settings_for(), engine)
    host.start()
    request = make_request(artifact_round(node_id=7, node_count=10))
    source = EngineSource(host, request)
    last = (2**31 - 1 - 7) // 10
    page = await source.read(str(last - 4))
    assert page.batches[0].proofs.nonces == [10 * index + 7 for index in range(last - 4, last + 1)]
    over = await source.read(page.cursor)
    assert (over.batches, over.over) == ([], True)
    await host.close()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (artifact_batch(4, block_hash="other"), "a batch is of another round"),
        (artifact_batch(7), "nonce 7 is not one of node 4 of 6"),
        (artifact_batch(4, 2**31 + 2), "nonce 2147483650 is not one of node 4 of 6"),
        (artifact_batch(4, -2), "nonce -2 is not one of node 4 of 6"),
        (artifact_batch(4, 16, vectors=[artifact_of(4)]), "not one artifact for each nonce"),
        (
            artifact_batch(4, vectors=["AAAA"]),
            "nonce 4 claims artifact 'AAAA', which is not base64",
        ),
        (artifact_batch(4, vectors=["!" * 8]), "which is not base64 of k_dim float16, all finite"),
        (artifact_batch(4, vectors=["AHwAAAAAAAA="]), "claims artifact 'AHwAAAAAAAA='"),
        (artifact_batch(4, vectors=["AH4AAAAAAAA="]), "claims artifact 'AH4AAAAAAAA='"),
    ],
)
def test_claims_that_cannot_be_are_fraud(bad: dict[str, Any], said: str) -> None:
    """Another round's, another group's, above 31 bits, too short, not base64, infinite, NaN."""
    check = PageCheck(_share(), is_trusted=False, seen=set())
    page = Page("1", [received_artifacts(artifact_batch(4)), received_artifacts(bad)], over=False)
    with pytest.raises(Fraud) as caught:
        check.keep_new(page)
    assert said in str(caught.value)


def test_nonces_in_any_order_are_kept_once() -> None:
    """Two GPUs commit in turns; a page may be read twice."""
    check = PageCheck(_share(), is_trusted=False, seen=set())
    page = Page("1", [received_artifacts(artifact_batch(16, 4, 16, 10**6 * 6 + 4))], over=False)
    [kept] = check.keep_new(page)
    assert kept.nonces == [16, 4, 10**6 * 6 + 4]
    assert check.keep_new(page) == []


def _share() -> NodeRound:
    return artifact_round(node_id=1, node_count=3, n_groups=2, group_id=1)


async def test_a_request_for_the_same_artifacts_changes_nothing(
    settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """By what they are judged is not what they are."""
    engine = FakeEngine(artifact_of)
    async with node_at_work(settings_for(), work="engine", engine=engine) as node:
        await node.generate(artifact_round(receiver.url))
        before = (await node.report.status())["session_id"]
        await node.generate(artifact_round(receiver.url, dist_threshold=0.2, p_mismatch=0.3))
        assert (await node.report.status())["session_id"] == before
        await node.generate(artifact_round(receiver.url, k_dim=K_DIM + 1))
        assert (await node.report.status())["session_id"] != before
        await asyncio.wait_for(node.stop(), 60)
