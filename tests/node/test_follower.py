"""What follows a search: each page once on disk and signed, whatever the source or the disk does."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from pocqueue.errors import DelegationError, PocqueueError
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.follower import Follower
from pocqueue.node.keys import SigningKey
from pocqueue.node.messages import Origin
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.pauses import Pauses
from pocqueue.node.round import NodeRound, SearchRequest
from pocqueue.node.signing import verify_body
from pocqueue.node.sources import Page, Source
from pocqueue.node.spot_check import SpotCheck
from pocqueue.rounds.store import KEEP_ENDED_MS
from pocqueue.settings import DelegationSettings
from tests.support.artifacts import artifact_batch, artifact_round, received_artifacts
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.node import (
    TroubledOutbox,
    batch,
    host_of,
    made_up,
    make_request,
    make_round,
    messages_in,
    nonces_in,
    received,
)
from tests.support.waiting import until

KEY = SigningKey.generate()


class ScriptedSource(Source):
    """Hands out pages and errors in turn, and waits for ever after the last.

    Attributes:
        read_from: cursors that it was read from.
        stops: errors that a stop still meets, in order.
        stopped: a stop arrived.
        held: reads wait here while it is cleared.
    """

    def __init__(
        self, *script: Page | Exception, origin: Origin = "delegation", must_end: bool = False
    ) -> None:
        self.origin = origin
        self.session_id = "s"
        self.gpu_count = 1
        self.must_end = must_end
        self.script = list(script)
        self.read_from: list[str] = []
        self.stops: list[Exception] = []
        self.stopped = False
        self.closed = False
        self.held = asyncio.Event()
        self.held.set()

    @override
    async def read(self, cursor: str) -> Page:
        self.read_from.append(cursor)
        await self.held.wait()
        if not self.script:
            await asyncio.Event().wait()
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    @override
    async def stop(self) -> None:
        if self.stops:
            raise self.stops.pop(0)
        self.stopped = True

    @override
    async def close(self) -> None:
        self.closed = True


#: Outages are short.
QUICK = Pauses(first_s=0.002, longest_s=0.002, refused_s=0.002, disk_s=0.002, last_s=0.002)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[TroubledOutbox]:
    """An outbox with an open session."""
    with TroubledOutbox(tmp_path / "outbox.sqlite3") as outbox:
        outbox.open_session("s", "delegation", "{}")
        yield outbox


def page(cursor: str, *batches: dict[str, Any], over: bool = False) -> Page:
    return Page(cursor, [received(found) for found in batches], over, "generating")


def follow(
    source: ScriptedSource,
    outbox: Outbox,
    node_round: NodeRound | None = None,
    left_s: float = 0.0,
    on_lost: Callable[[Follower], Any] | None = None,
    spot_check: SpotCheck | None = None,
    request: SearchRequest | None = None,
) -> Follower:
    """Begin to follow a search whose window closes in so many seconds."""
    follower = Follower(
        source,
        request or make_request(node_round, left_s=left_s),
        Dispatcher(outbox, KEY, NodeMetrics()),
        spot_check=spot_check,
        on_lost=on_lost,
        pauses=QUICK,
    )
    follower.start()
    return follower


async def followed(source: ScriptedSource, outbox: Outbox, **options: Any) -> Follower:
    """Follow a search to its end."""
    follower = follow(source, outbox, **options)
    await until(lambda: follower.is_done)
    assert follower.over
    assert source.closed
    return follower


def bodies(outbox: Outbox) -> list[Any]:
    """Return the bodies in the outbox, each signed with our key."""
    import json

    found = [json.loads(message.body) for message in messages_in(outbox, "s")]
    assert {verify_body(body) for body in found} <= {KEY.public_hex}
    return found


def state(outbox: Outbox) -> str:
    session = outbox.session("s")
    assert session is not None
    return session.state


async def test_pages_become_messages(outbox: TroubledOutbox) -> None:
    """Each page one message, or more where there are many nonces; the cursor goes along."""
    many = range(100, 2600)
    source = ScriptedSource(
        page("1", batch(0, 1), batch(2)), page("2"), page("3", batch(*many), over=True)
    )
    follower = await followed(source, outbox)
    found = bodies(outbox)
    assert [len(body["nonces"]) for body in found] == [3, 1000, 1000, 500]
    assert nonces_in(found) == [0, 1, 2, *many]
    assert {body["r_target"] for body in found} == {1.0}
    assert source.read_from == ["", "1", "2"]
    assert (state(outbox), follower.error, follower.lost) == ("closed", None, False)
    assert (follower.batches, follower.nonces) == (3, 2503)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (batch(3, block_hash="other"), "a batch is of another round (block 'other')"),
        (batch(3, block_height=8), "a batch is of another round"),
        (batch(3, public_key="other"), "a batch is of another round"),
        (batch(4), "nonce 4 is not one of node 0 of 3"),
        (batch(-3), "nonce -3 is not one of node 0"),
        (batch(3 * 2**63), "is not one of node 0"),
        (batch(3, dist=1.0), "nonce 3 claims distance 1.0, which is not valid"),
        (batch(3, dist=-0.1), "nonce 3 claims distance -0.1, which is not valid"),
        (batch(3, dist=float("nan")), "nonce 3 claims distance nan, which is not valid"),
        (batch(3, 6) | {"dist": [0.5]}, "a batch has not one distance for each nonce"),
    ],
)
async def test_what_cannot_be_true_is_fraud(
    outbox: TroubledOutbox, bad: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of that page is kept, what waits is held, the source is stopped, once."""
    source = ScriptedSource(page("1", batch(0)), page("2", batch(9), bad))
    source.stops = [DelegationError("away", is_final=False)]
    outbox.trouble = 1
    lost: list[Follower] = []

    async def on_lost(follower: Follower) -> None:
        lost.append(follower)

    follower = await followed(source, outbox, node_round=make_round(node_count=3), on_lost=on_lost)
    assert follower.fraud is not None
    assert said in follower.fraud
    assert follower.error == follower.fraud
    assert (state(outbox), outbox.counts().held, outbox.counts().waiting) == ("fraud", 1, 0)
    assert source.stopped
    assert lost == [follower]
    assert f"DELEGATION session s node 0: FRAUD: {follower.fraud}" in caplog.text


async def test_local_work_is_not_suspected(outbox: TroubledOutbox) -> None:
    """Only what comes from elsewhere is checked."""
    source = ScriptedSource(page("1", batch(4), over=True), origin="engine")
    follower = await followed(source, outbox, node_round=make_round(node_count=3))
    assert (follower.fraud, nonces_in(bodies(outbox))) == (None, [4])


async def test_a_repeated_nonce_is_kept_once(
    outbox: TroubledOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Within a batch, within a page, and from page to page."""
    source = ScriptedSource(
        page("1", batch(0, 0), batch(1, 0)), page("2", batch(1)), page("3", batch(2), over=True)
    )
    caplog.set_level("INFO", logger="pocqueue")
    await followed(source, outbox)
    assert nonces_in(bodies(outbox)) == [0, 1, 2]
    assert "1 nonce came twice; kept once" in caplog.text


async def test_a_page_read_twice_is_kept_once(outbox: TroubledOutbox) -> None:
    """The cursor on disk is what counts; nothing of what follows is missed."""
    source = ScriptedSource(page("1", batch(0)), page("2", batch(0, 1), over=True))
    source.held.clear()
    follower = follow(source, outbox)
    await until(lambda: source.read_from)
    assert outbox.accept("s", "", "elsewhere", [])
    source.held.set()
    await until(lambda: follower.is_done)
    assert source.read_from == ["", "elsewhere"]
    assert nonces_in(bodies(outbox)) == [0, 1]


async def test_a_cursor_for_two_pages_ends_it(outbox: TroubledOutbox) -> None:
    """A source that goes round in circles is not followed for ever."""
    source = ScriptedSource(page("1", batch(0)), page("2", batch(1)), page("1", batch(2)))
    follower = await followed(source, outbox)
    assert follower.error == "The source gives cursor '1' for two pages"
    assert (follower.lost, state(outbox)) == (True, "closed")


async def test_an_outage_is_waited_out(
    outbox: TroubledOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """With one warning; the same cursor is asked for again."""
    caplog.set_level(logging.INFO)
    away = DelegationError("Connection refused", is_final=False)
    source = ScriptedSource(page("1", batch(0)), away, away, away, page("2", batch(1), over=True))
    follower = await followed(source, outbox)
    assert source.read_from == ["", "1", "1", "1", "1"]
    assert nonces_in(bodies(outbox)) == [0, 1]
    assert follower.error is None
    assert caplog.text.count("waits: Connection refused") == 1
    assert caplog.text.count("goes on") == 1


async def test_a_final_error_ends_it(outbox: TroubledOutbox) -> None:
    """What was read is still sent; whoever may take over is told."""
    gone = DelegationError("Session s not found", is_final=True, status=404)
    lost: list[Follower] = []

    async def on_lost(follower: Follower) -> None:
        lost.append(follower)

    source = ScriptedSource(page("1", batch(0)), gone)
    follower = await followed(source, outbox, on_lost=on_lost)
    assert (follower.error, follower.lost, lost) == ("Session s not found", True, [follower])
    assert (state(outbox), outbox.counts().waiting) == ("closed", 1)


async def test_a_refused_token_is_waited_for(outbox: TroubledOutbox) -> None:
    """Somebody may be changing it on both nodes; a restart with the right one goes on."""
    wrong = DelegationError("Invalid auth token", is_final=True, status=401)
    source = ScriptedSource(wrong, wrong, page("1", batch(0), over=True))
    follower = await followed(source, outbox)
    assert (follower.lost, nonces_in(bodies(outbox))) == (False, [0])


async def test_an_absent_source_is_given_up_in_the_end(outbox: TroubledOutbox) -> None:
    """Once it cannot have kept anything."""
    away = DelegationError("Connection refused", is_final=False)
    follower = await followed(ScriptedSource(away), outbox, left_s=-KEEP_ENDED_MS / 1000)
    assert (follower.error, state(outbox)) == ("Connection refused", "closed")


async def test_a_full_disk_is_waited_for(
    outbox: TroubledOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """With the page at hand: it may be one that is handed out once."""
    outbox.trouble = 3
    source = ScriptedSource(page("poll-1", batch(0)), page("poll-2", batch(1), over=True))
    follower = await followed(source, outbox)
    assert source.read_from == ["", "poll-1"]
    assert (nonces_in(bodies(outbox)), follower.error) == ([0, 1], None)
    assert caplog.text.count("disk full") == 1


async def test_our_own_bug_is_seen(
    outbox: TroubledOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """In log and status; the session stays open for the next run."""
    follower = await followed(ScriptedSource(ZeroDivisionError("oh")), outbox)
    assert follower.error == "The session is not followed any more: oh"
    assert state(outbox) == "open"
    assert "Traceback" in caplog.text


async def test_a_stop_in_the_middle_of_an_outage(outbox: TroubledOutbox) -> None:
    """It arrives as soon as it can, and what was found is read."""
    away: PocqueueError = DelegationError("Connection refused", is_final=False)
    source = ScriptedSource(away, away, away)
    source.stops = [away, away]
    follower = follow(source, outbox)
    follower.stop()
    follower.stop()
    assert not follower.is_searching
    await follower.stop_arrived(20.0)
    assert source.stopped
    source.script.append(page("1", batch(0), over=True))
    await until(lambda: follower.is_done)
    assert nonces_in(bodies(outbox)) == [0]


async def test_a_stop_that_comes_too_late(outbox: TroubledOutbox) -> None:
    """A search that is over needs none, and a session that is not known cannot be."""
    away = DelegationError("Connection refused", is_final=False)
    source = ScriptedSource(page("1", over=True))
    source.held.clear()
    source.stops = [away] * 10_000
    follower = follow(source, outbox)
    follower.stop()
    await until(lambda: len(source.stops) < 9_999)
    source.held.set()
    await until(lambda: follower.is_done)
    assert source.stops
    again = ScriptedSource(page("1", over=True))
    again.stops = [DelegationError("Session s not found", is_final=True, status=404)]
    other = follow(again, outbox)
    other.stop()
    await until(lambda: other.is_done)
    follower.stop()


@pytest.mark.parametrize("must_end", [True, False])
async def test_the_end_of_the_process(outbox: TroubledOutbox, must_end: bool) -> None:
    """A reply that comes once is waited for and kept; one that can be had again is cut off."""
    source = ScriptedSource(page("1", batch(0)), must_end=must_end)
    source.held.clear()
    follower = follow(source, outbox)
    await until(lambda: source.read_from)
    closing = asyncio.create_task(follower.close())
    if must_end:
        await asyncio.sleep(0.02)
        assert not closing.done()
        source.held.set()
    await closing
    assert nonces_in(bodies(outbox)) == ([0] if must_end else [])
    assert (state(outbox), source.closed, source.stopped) == ("open", True, False)


async def test_the_end_of_the_process_in_a_pause(outbox: TroubledOutbox) -> None:
    """Nobody waits for a source that is away."""
    away = DelegationError("Connection refused", is_final=False)
    source = ScriptedSource(*[away] * 100_000)
    follower = follow(source, outbox)
    await until(lambda: len(source.read_from) > 3)
    await follower.close()
    assert (state(outbox), source.closed) == ("open", True)


@pytest.fixture
def judged() -> Iterator[threading.Event]:
    """What the engine of `slow_check` waits for."""
    judged = threading.Event()
    yield judged
    judged.set()


@pytest.fixture
async def slow_check(
    outbox: TroubledOutbox, settings_for: SettingsFactory, judged: threading.Event
) -> AsyncIterator[SpotCheck]:
    """A check whose engine finds out, in the end, that everything is made up."""

    def wait(_: int) -> None:
        judged.wait(60)

    host = host_of(settings_for(), FakeEngine(made_up, wait))
    host.start()
    yield SpotCheck(
        host, make_request(), "s", outbox, NodeMetrics(), delegation=DelegationSettings()
    )
    judged.set()
    await host.close()


async def test_a_page_is_not_held_for_ever(
    outbox: TroubledOutbox,
    slow_check: SpotCheck,
    judged: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the window is over it goes out; what its sample shows later still ends the session."""
    source = ScriptedSource(page("1", batch(*range(2000))))
    follower = follow(source, outbox, spot_check=slow_check)
    await until(lambda: outbox.counts().waiting == 2)
    assert "the time is over before 2,000 nonces could be judged: sent" in caplog.text
    judged.set()
    source.script.append(page("2", over=True))
    await until(lambda: follower.is_done)
    assert (follower.fraud is not None, state(outbox), outbox.counts().held) == (True, "fraud", 2)


async def test_a_page_is_held_while_it_is_still_taken(
    outbox: TroubledOutbox, slow_check: SpotCheck
) -> None:
    """A chain takes artifacts for a stage, which is over long before the window."""
    request = SearchRequest.begin(artifact_round(), window_s=330.0, stage_s=0.001)
    page = Page("1", [received_artifacts(artifact_batch(0, 1, node_id=0))], over=False)
    follower = follow(ScriptedSource(page), outbox, spot_check=slow_check, request=request)
    await until(lambda: outbox.counts().waiting == 1)
    assert request.left_s > 0
    await follower.close()


def test_how_long_a_page_is_held() -> None:
    """It goes in time, and keeps half of a short time to be sent in."""
    pauses = Pauses(last_s=10.0)
    held = {100.0: 90.0, 20.0: 10.0, 12.0: 6.0, 1.0: 0.5, 0.0: 10.0, -5.0: 10.0}
    assert {left_s: pauses.judging_s(left_s) for left_s in held} == held


@pytest.mark.parametrize("is_only_copy", [False, True])
async def test_the_end_of_the_process_while_a_page_is_held(
    outbox: TroubledOutbox, slow_check: SpotCheck, is_only_copy: bool
) -> None:
    """It is read again by the next run; one that is handed out once is kept as it is."""
    held = replace(page("1", batch(*range(2000))), is_only_copy=is_only_copy)
    follower = follow(ScriptedSource(held), outbox, left_s=60.0, spot_check=slow_check)
    await until(lambda: len(follower.check.seen) == 2000)
    await follower.close()
    assert len(nonces_in(bodies(outbox))) == (2000 if is_only_copy else 0)
    assert state(outbox) == "open"
