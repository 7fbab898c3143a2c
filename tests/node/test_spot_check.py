"""The sample that is recomputed: who is caught, who is not, and what cannot be checked."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from pocqueue.delegation.client import RemoteModel
from pocqueue.errors import DelegationError, OutboxError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.page_check import Fraud
from pocqueue.node.spot_check import SpotCheck
from pocqueue.poc.proofs import Proofs
from pocqueue.settings import DelegationSettings, Settings
from tests.support.factories import FINGERPRINT, OTHER_FINGERPRINT, make_info
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.node import batch, honest, made_up, make_request, make_round

SAME = RemoteModel(
    model="twin", model_fingerprint=FINGERPRINT, model_dtype="float32", model_runtime="twin"
)
SILENT = RemoteModel()
SAME_ENGINE = DelegationSettings()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.sqlite3") as outbox:
        outbox.open_session("s", "delegation", "{}")
        yield outbox


@asynccontextmanager
async def checking(
    settings: Settings,
    outbox: Outbox,
    distance: Callable[[int], float] = honest,
    model: RemoteModel = SAME,
    delegation: DelegationSettings = SAME_ENGINE,
    load: Callable[..., Any] | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[SpotCheck]:
    """Make a check that recomputes with a formula."""
    host = EngineHost(settings, load or (lambda *_: FakeEngine(distance, on_batch)))
    host.start()
    yield SpotCheck(
        host,
        make_request(model=model),
        "s",
        outbox,
        NodeMetrics(),
        delegation=delegation,
    )
    await host.close()


def proofs(num: int, dist: float = 0.5) -> list[Proofs]:
    found = batch(*range(num), dist=dist)
    return [Proofs(found["nonces"], found["dist"])]


async def verdict(check: SpotCheck, num: int, dist: float = 0.5) -> str | None:
    """Offer a whole session and return what comes of it."""
    try:
        await check.check(proofs(num, dist))
    except Fraud as exc:
        return str(exc)
    return None


async def test_an_honest_session(settings_for: SettingsFactory, outbox: Outbox) -> None:
    """About one nonce in fourteen is recomputed, and noted on disk."""
    async with checking(settings_for(), outbox) as check:
        assert await verdict(check, 2000) is None
        assert 70 < check.sampled < 250
        assert (check.invalid, check.error) == (0, None)
        session = outbox.session("s")
        assert session is not None
        assert (session.sampled, session.invalid) == (check.sampled, 0)


async def test_made_up_nonces(settings_for: SettingsFactory, outbox: Outbox) -> None:
    """Found out with the first pass, in words and numbers."""
    async with checking(settings_for(), outbox, made_up) as check:
        reason = await verdict(check, 2000)
        assert reason is not None
        assert f"{check.invalid} of {check.sampled} recomputed nonces are invalid" in reason
        assert check.invalid == check.sampled


async def test_nonces_that_cannot_be_computed_here(
    settings_for: SettingsFactory, outbox: Outbox
) -> None:
    """They say nothing; the others count, and only they."""

    def every_other(nonce: int) -> float:
        return math.nan if nonce % 2 else honest(nonce)

    async with checking(settings_for(), outbox, every_other) as check:
        assert await verdict(check, 4000) is None
        assert 60 < check.sampled < 190
        assert check.invalid == 0


async def test_a_check_goes_on_after_a_restart(
    settings_for: SettingsFactory, outbox: Outbox
) -> None:
    """What was found before counts."""
    outbox.add_check("s", sampled=3, invalid=3)
    async with checking(settings_for(), outbox) as check:
        assert (check.sampled, check.invalid) == (3, 3)
        reason = await verdict(check, 1000)
        assert reason is not None
        assert reason.startswith("3 of ")


async def test_another_model(settings_for: SettingsFactory, outbox: Outbox) -> None:
    """Its proofs would be worth nothing here; where any model will do, it cannot be checked."""
    other = SAME.model_copy(update={"model": "big", "model_fingerprint": OTHER_FINGERPRINT})
    async with checking(settings_for(), outbox, model=other) as check:
        with pytest.raises(DelegationError) as caught:
            await check.check(proofs(100))
        assert "searches with model 'big' ('fedcba987654'), this node's engine has twin" in str(
            caught.value
        )
    any_model = DelegationSettings(any_model=True)
    async with checking(settings_for(), outbox, made_up, other, any_model) as check:
        assert await verdict(check, 1000) is None
        assert check.error is not None
        assert "set POCQUEUE_MODEL to the same" in check.error
        assert check.sampled == 0


@pytest.mark.parametrize(
    ("claim", "ours"),
    [({"model_dtype": "bfloat16"}, "float32"), ({"model_runtime": "vllm"}, "twin")],
)
async def test_another_engine_than_the_operator_says(
    settings_for: SettingsFactory, outbox: Outbox, claim: dict[str, str], ours: str
) -> None:
    """By default this node's; the sentence names both, and the setting."""
    [(name, said)] = claim.items()
    setting = name.removeprefix("model_")
    model = SAME.model_copy(update=claim)
    async with checking(settings_for(), outbox, model=model) as check:
        with pytest.raises(DelegationError) as caught:
            await check.check(proofs(100))
    sentence = f"has {setting} {said!r}; this node expects {ours!r}, its own engine's"
    assert sentence in str(caught.value)
    assert f"DELEGATION_{setting.upper()}" in str(caught.value)
    configured = DelegationSettings.model_validate({setting: said})
    async with checking(settings_for(), outbox, model=model, delegation=configured) as check:
        assert await verdict(check, 2000) is None
    # And then it has to say so.
    async with checking(settings_for(), outbox, model=SAME, delegation=configured) as check:
        with pytest.raises(DelegationError, match=f"that of DELEGATION_{setting.upper()}"):
            await check.check(proofs(100))


async def test_unlike_engines(settings_for: SettingsFactory, outbox: Outbox) -> None:
    """An honest one puts a few nonces on the other side; a distance that is far off counts for all."""
    unlike = DelegationSettings(runtime="vllm")
    model = SAME.model_copy(update={"model_runtime": "vllm"})

    def near(nonce: int) -> float:
        return 0.5 + 0.005 * math.sin(nonce)

    async with checking(settings_for(), outbox, near, model, unlike) as check:
        assert await verdict(check, 4000) is None
        assert (check.sampled > 0, check.invalid) == (True, 0)

    def far_now_and_then(nonce: int) -> float:
        return 0.6 if nonce % 5 == 0 else near(nonce)

    async with checking(settings_for(), outbox, far_now_and_then, model, unlike) as check:
        reason = await verdict(check, 2000)
        assert reason is not None
        assert "recomputed nonces are invalid" in reason


async def test_unlike_engines_on_the_other_side(
    settings_for: SettingsFactory, outbox: Outbox
) -> None:
    """Claims that are a little too small, but for that always in the big node's favour."""
    unlike = DelegationSettings(dtype="bfloat16")
    async with checking(settings_for(), outbox, lambda _: 1.0005, SILENT, unlike) as check:
        reason = await verdict(check, 2000, dist=0.9999)
        assert reason is not None
        assert "are not valid; an honest node with another kind of engine" in reason


async def test_shaved_distances(settings_for: SettingsFactory, outbox: Outbox) -> None:
    """Engines of one kind: both are below r_target, and still too far apart to be float error."""
    bound = make_round().proof.honest_difference(make_info().vocab_size)
    async with checking(settings_for(), outbox, honest) as check:
        assert await verdict(check, 2000, dist=0.5 - 0.9 * bound) is None
    async with checking(settings_for(), outbox, honest) as check:
        reason = await verdict(check, 2000, dist=0.5 - 1.1 * bound)
        assert reason is not None
        assert "recomputed nonces are invalid" in reason


async def test_a_big_node_that_does_not_say(settings_for: SettingsFactory, outbox: Outbox) -> None:
    """A legacy one names no model: it has to have ours."""
    async with checking(settings_for(), outbox, model=SILENT) as check:
        assert await verdict(check, 1000) is None
        assert check.sampled > 0


async def test_an_engine_that_cannot_be_used(
    settings_for: SettingsFactory, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """That is no fraud, and is said."""

    def load(*_: object) -> FakeEngine:
        raise RuntimeError("no such model")

    async with checking(settings_for(), outbox, load=load) as check:
        assert await verdict(check, 1000) is None
        assert check.error is not None
        assert "no such model" in check.error

    def fail(_: int) -> None:
        raise RuntimeError("out of memory")

    async with checking(settings_for(), outbox, on_batch=fail) as check:
        assert await verdict(check, 1000) is None
        assert check.error is not None
        assert "out of memory" in check.error
        # What comes after that is not even tried.
        assert await verdict(check, 1000) is None
    assert caplog.text.count("cannot be checked") == 2


async def test_a_disk_in_trouble(
    settings_for: SettingsFactory, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The check goes on: fraud is found out with a full disk as well."""

    class Full(Outbox):
        @override
        def add_check(self, *_: Any, **__: Any) -> None:
            raise OutboxError("The outbox cannot be used: disk full.")

    outbox.close()
    with Full(outbox.path) as full:
        async with checking(settings_for(), full, made_up) as check:
            assert await verdict(check, 1000) is not None
    assert "disk full" in caplog.text
