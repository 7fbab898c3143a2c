"""Samples of artifacts: by the bounds of the pool that made them, not by those of the whole network."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.page_check import Fraud
from pocqueue.node.sampling import SESSION_NONCES, sample_size
from pocqueue.node.spot_check import SpotCheck, bounds_here
from pocqueue.poc.artifact.data import encode
from pocqueue.poc.distance.scheme import Distance
from pocqueue.poc.proofs import Proofs
from pocqueue.settings import DelegationSettings
from tests.support.artifacts import artifact_round
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.node import host_of, make_request

K_DIM = 12
NUM = 20_000
RNG = np.random.default_rng(5)
#: Artifacts as a model has them, of length 1, and how far float error takes those of another GPU: seldom beyond 0.3.
OURS = RNG.standard_normal((NUM, K_DIM))
OURS /= np.linalg.norm(OURS, axis=1, keepdims=True)
THEIRS = OURS + RNG.standard_normal((NUM, K_DIM)) * 0.05
UNRELATED = np.roll(OURS, 1, axis=0)
MEASURED = DelegationSettings(dist_threshold=0.3, p_mismatch=0.005)
OF_THE_CHAIN = DelegationSettings()


def own_value(nonce: int) -> str:
    [text] = encode(OURS[nonce : nonce + 1])
    return text


async def verdict(
    settings_for: SettingsFactory,
    folder: Path,
    made_up: float,
    delegation: DelegationSettings,
    num: int = NUM,
) -> tuple[str | None, SpotCheck]:
    """Offer a session with so many made-up artifacts, spread at random; return what comes of it."""
    host = host_of(settings_for(), FakeEngine(own_value))
    host.start()
    with Outbox(folder / f"outbox-{made_up}-{delegation.p_mismatch}-{num}") as outbox:
        outbox.open_session("s", "delegation", "{}")
        request = make_request(artifact_round(k_dim=K_DIM, batch_size=64))
        check = SpotCheck(host, request, "s", outbox, NodeMetrics(), delegation=delegation)
        is_made_up = np.random.default_rng(6).random(num) < made_up
        vectors = np.where(is_made_up[:, None], UNRELATED[:num], THEIRS[:num])
        try:
            await check.check([Proofs([*range(num)], encode(vectors))])
        except Fraud as exc:
            return str(exc), check
        finally:
            await host.close()
    return None, check


async def test_honest_gpus_pass(settings_for: SettingsFactory, tmp_path: Path) -> None:
    """By either bounds; as many are recomputed as the bounds take."""
    for delegation, size in ((MEASURED, sample_size(0.005)), (OF_THE_CHAIN, sample_size(0.1))):
        found, check = await verdict(settings_for, tmp_path, 0.0, delegation, num=SESSION_NONCES)
        assert found is None
        assert abs(check.sampled - size) < 6 * size**0.5
        assert check.error is None


async def test_small_cheats_are_found_by_the_bounds_of_the_pool(
    settings_for: SettingsFactory, tmp_path: Path
) -> None:
    """5 % made up: in the chain's bounds it hides among what those allow for."""
    found, check = await verdict(settings_for, tmp_path, 0.05, MEASURED)
    assert found is not None
    assert f"{check.invalid} of {check.sampled} recomputed nonces are invalid" in found
    hidden, _ = await verdict(settings_for, tmp_path, 0.05, OF_THE_CHAIN)
    assert hidden is None


async def test_large_cheats_are_found_by_any(settings_for: SettingsFactory, tmp_path: Path) -> None:
    """20 % made up, by the bounds of a round of today."""
    found, _ = await verdict(settings_for, tmp_path, 0.2, OF_THE_CHAIN)
    assert found is not None


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda text: own_value(3) if text == own_value(4) else text,
        lambda text: base64.b64encode(base64.b64decode(text)[:-2] + b"\0\x7c").decode(),
    ],
)
def test_what_is_far(spoilt: Callable[[str], str]) -> None:
    """Another nonce's vector, and one that is not finite."""
    proof = bounds_here(artifact_round(k_dim=K_DIM).proof, MEASURED)
    assert proof.is_mismatch(spoilt(own_value(4)), own_value(4))
    assert not proof.is_mismatch(own_value(4), own_value(4))


def test_bounds_are_those_that_are_set() -> None:
    """One of them, both, none; and none for a proof that has no such bounds."""
    proof = artifact_round().proof
    set_both = bounds_here(proof, MEASURED).model_dump()
    assert set_both == proof.model_dump() | {"dist_threshold": 0.3, "p_mismatch": 0.005}
    one = bounds_here(proof, DelegationSettings(p_mismatch=0.02)).model_dump()
    assert one == proof.model_dump() | {"p_mismatch": 0.02}
    assert bounds_here(proof, OF_THE_CHAIN) == proof
    distance = Distance(r_target=1.0)
    assert bounds_here(distance, MEASURED) == distance
