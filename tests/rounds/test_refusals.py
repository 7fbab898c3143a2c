"""A Redis that answers but refuses: what it says is understood, whatever command meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from pydantic import SecretStr

from pocqueue import app as pocqueue_app
from pocqueue.errors import StoreForbidden, StoreReadOnly, StoreUnavailable, StoreUnfit
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.connection import connect
from pocqueue.rounds.records import AssignedRange
from pocqueue.rounds.refusals import check_rights
from pocqueue.rounds.scheduler_process import CelerySender
from tests.support.factories import make_gpu, make_spec, make_status
from tests.support.fixtures import SettingsFactory
from tests.support.refusing_redis import REFUSALS, Refusal, RefusingRedis, refusing_redis
from tests.support.rounds import assign, commit


@pytest.fixture
def server() -> Iterator[RefusingRedis]:
    """A server of this test's own."""
    with refusing_redis() as server:
        yield server


@pytest.fixture
def backend(server: RefusingRedis, settings_for: SettingsFactory) -> Iterator[Backend]:
    """A backend on it."""
    with Backend.open(settings_for(redis_url=SecretStr(server.url))) as backend:
        yield backend


@pytest.mark.parametrize("how", REFUSALS)
def test_every_refusal_is_one_that_passes(
    how: Refusal, server: RefusingRedis, backend: Backend
) -> None:
    """Whatever is written says so, and works again afterwards; nothing is half done."""
    store = backend.store
    round_id = store.create(make_spec(callback_url="http://h/"))
    out = assign(store, round_id, 20)
    commit(store, round_id, out.range_id, 0, 10, [1])
    writes: list[Any] = [
        lambda: store.create(make_spec()),
        lambda: commit(store, round_id, out.range_id, 10, 15, [11]),
        lambda: store.lead("a scheduler", 3.0),
        lambda: backend.pool.beat(make_gpu()),
        lambda: backend.callbacks.claim_due(60.0),
    ]
    with server.refusing(how):
        for write in writes:
            with pytest.raises(StoreUnavailable) as caught:
                write()
            assert isinstance(caught.value, StoreReadOnly) == (how != "MASTERDOWN")
            assert "\n" not in str(caught.value)
        if how != "MASTERDOWN":
            assert store.status(round_id).checked == 10
    assert store.list_ids() == [round_id]
    commit(store, round_id, out.range_id, 10, 20, [11])
    assert store.status(round_id).checked == 20


@pytest.mark.parametrize("how", REFUSALS)
def test_a_sender_says_in_our_words_that_it_cannot_send(
    how: Refusal,
    server: RefusingRedis,
    settings_for: SettingsFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the connection that it has and on a new one; it sends again when Redis takes it."""
    settings = settings_for(redis_url=SecretStr(server.url))
    monkeypatch.setattr(pocqueue_app, "settings", lambda: settings)
    ranges = [("gpu0", make_status("round-1"), AssignedRange(1, 0, 100))]
    with Celery("test", set_as_current=False) as app:
        app.conf.update(pocqueue_app.configuration() | {"include": []})
        for sent in (1, 2):
            with server.refusing(how):
                with pytest.raises(StoreUnavailable, match="Celery cannot send"):
                    CelerySender(app).send_ranges(ranges)
                with pytest.raises(StoreUnavailable, match="Celery cannot send"):
                    CelerySender(app).send_callback("round-1", "token")
            CelerySender(app).send_ranges(ranges)
            CelerySender(app).send_callback("round-1", "token")
            assert (server.client.llen("gpu0"), server.client.llen("io")) == (sent, sent)


# Eviction


@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-lfu", "volatile-ttl"])
def test_a_redis_that_may_forget_a_round_is_refused(
    policy: str, server: RefusingRedis, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """When a process starts and when a round does; the sentence names the setting and the remedy."""
    running = backend.store.create(make_spec())
    server.client.config_set("maxmemory-policy", policy)
    refusals: list[Callable[[], object]] = [
        lambda: connect(server.url, service=True),
        lambda: backend.store.create(make_spec()),
    ]
    for refused in refusals:
        with pytest.raises(StoreUnfit) as caught:
            refused()
        message = str(caught.value)
        assert f"maxmemory-policy {policy}" in message
        assert "CONFIG SET maxmemory-policy noeviction" in message
    # A command warns, as it may be to look at that round or to end it.
    with connect(server.url):
        assert f"maxmemory-policy {policy}" in caplog.text
    assert backend.store.status(running).state.is_active
    server.client.config_set("maxmemory-policy", "noeviction")
    backend.store.create(make_spec())


# Rights


def _user(server: RefusingRedis, *rights: str) -> str:
    """Make a user with these rights; return a URL with it."""
    admin: Any = server.client
    admin.execute_command("ACL", "SETUSER", "guest", "reset", "on", ">hunter2", *rights)
    return server.url.replace("unix://", "unix://guest:hunter2@")


@pytest.mark.parametrize(
    ("rights", "known"),
    [(["+@all", "-info"], True), (["+@all", "-@dangerous"], False)],
)
def test_who_may_not_ask_for_the_policy_is_warned_unless_there_is_another_way(
    rights: list[str], known: bool, server: RefusingRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """INFO first, then CONFIG; the version comes from a greeting that everybody may have."""
    url = _user(server, "~*", "&*", *rights)
    with connect(url) as client:
        assert client.ping()
    assert ("maxmemory-policy" in caplog.text) is not known
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    if known:
        with pytest.raises(StoreUnfit):
            connect(url, service=True)


@pytest.mark.parametrize("rights", [["~*", "resetchannels"], ["~other:*", "&*"]])
def test_a_worker_that_may_not_do_its_work_is_told_so(
    rights: list[str], server: RefusingRedis
) -> None:
    """Without channels there are no events and no remote control, without keys nothing at all."""
    url = _user(server, "+@all", *rights)
    with (
        connect(url) as client,
        pytest.raises(StoreForbidden, match=r"docs/operating\.md") as caught,
    ):
        check_rights(client, url)
    assert "hunter2" not in str(caught.value)


def test_a_worker_that_may_do_its_work_is_not_held_up(server: RefusingRedis) -> None:
    """Nothing is left of the look."""
    with connect(server.url) as client:
        check_rights(client, server.url)
        assert client.pubsub_numpat() == 0
