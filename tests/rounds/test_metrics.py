"""Metrics as Prometheus reads them, from a real store; commit latencies; the HTTP endpoint."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, strategies as st
from prometheus_client import ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from pocqueue.errors import SettingsError
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.metrics import PoolCollector, render, serving
from pocqueue.rounds.pool import BOUNDS_S, Gpu, Latency
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import Keys
from tests.support.factories import make_gpu, make_spec
from tests.support.rounds import assign, commit, pass_deadline

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(page: bytes) -> Samples:
    """Return the samples of a page by name and sorted labels, each there once."""
    samples: Samples = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = sample.value
    return samples


def read(backend: Backend) -> Samples:
    """Return what a scrape of this backend gives."""
    page, kind = render(PoolCollector(backend))
    assert kind.startswith("text/plain")
    return parse(page)


def total(samples: Mapping[tuple[str, tuple[tuple[str, str], ...]], float], name: str) -> float:
    """Return the value of a metric without labels."""
    return samples[name, ()]


def of(samples: Samples, name: str, **labels: str) -> float:
    """Return the value of one series."""
    return samples[name, tuple(sorted(labels.items()))]


def test_an_empty_redis_has_every_total_at_zero(backend: Backend) -> None:
    """A graph begins with the first event, not after it."""
    samples = read(backend)
    assert total(samples, "pocqueue_up") == 1
    for name in ("batches", "late_batches", "nonces_checked", "nonces_valid", "auth_failures"):
        assert total(samples, f"pocqueue_{name}_total") == 0
    assert of(samples, "pocqueue_rounds", state="active") == 0
    assert of(samples, "pocqueue_gpus", state="live") == 0


def test_what_was_committed_is_counted(backend: Backend) -> None:
    """Batches, nonces, valid and non-finite ones once; late and repeated batches as what they are."""
    store = backend.store
    first = store.create(make_spec())
    assign(store, first, 100)
    commit(store, first, 1, 0, 10, [1, 2, 3])
    commit(store, first, 1, 0, 10, [1, 2, 3])
    commit(store, first, 1, 10, 20, [11], nonfinite=2)
    second = store.create(make_spec())
    assign(store, second, 100)
    commit(store, second, 1, 0, 10)
    pass_deadline(backend, second)
    commit(store, second, 1, 10, 20, [11])
    samples = read(backend)
    found = {
        name: total(samples, f"pocqueue_{name}_total")
        for name in ("batches", "late_batches", "nonces_checked", "nonces_valid")
    }
    assert found == {"batches": 3, "late_batches": 1, "nonces_checked": 30, "nonces_valid": 4}
    assert total(samples, "pocqueue_nonces_nonfinite_total") == 2
    assert of(samples, "pocqueue_rounds", state="active") == 1
    assert of(samples, "pocqueue_rounds", state="expired") == 1
    # It was only looked at: nobody has closed the round that is over.
    assert backend.client.hget(Keys.of_round(second, "round"), "state") == "active"


def test_totals_outlive_rounds(backend: Backend) -> None:
    """Counters never go down, or rates over them would be nonsense."""
    round_id = backend.store.create(make_spec())
    assign(backend.store, round_id, 100)
    commit(backend.store, round_id, 1, 0, 10, [1])
    for key in backend.client.scan_iter(match=Keys.of_round(round_id, "*")):
        backend.client.delete(key)
    samples = read(backend)
    assert total(samples, "pocqueue_nonces_valid_total") == 1
    assert of(samples, "pocqueue_rounds", state="active") == 0


def test_ranges_that_come_back_and_nonces_given_up_are_counted(backend: Backend) -> None:
    """Four failures send a range back, the fifth gives it up."""
    round_id = backend.store.create(make_spec())
    for _ in range(5):
        out = assign(backend.store, round_id, 10)
        backend.store.release_range(round_id, out.range_id, failed=True)
    samples = read(backend)
    assert total(samples, "pocqueue_ranges_returned_total") == 4
    assert total(samples, "pocqueue_nonces_abandoned_total") == 10
    assert of(samples, "pocqueue_rounds", state="failed") == 1


def test_sessions_are_counted_without_their_names(backend: Backend) -> None:
    """By state; customer, key, block and ids are on no line."""
    spec = make_spec(customer="acme-corp", public_key="secret-key", block_hash="secret-block")
    ids = [backend.store.create(spec) for _ in range(3)]
    backend.store.create(make_spec())
    backend.store.close(ids[0], RoundState.STOPPED, "")
    samples = read(backend)
    assert of(samples, "pocqueue_sessions", state="active") == 2
    assert of(samples, "pocqueue_sessions", state="stopped") == 1
    assert of(samples, "pocqueue_rounds", state="active") == 3
    page = render(PoolCollector(backend))[0].decode()
    for word in ("acme", "secret", *ids):
        assert word not in page


def test_each_gpu_has_its_own_series(backend: Backend) -> None:
    """Rates, load, held and outstanding ranges, the pass at hand, counted nonces."""
    gpu = make_gpu(
        rates={"256x32": 50.0, "8x10": 100.0},
        best_rates={"256x32": 60.0, "8x10": 120.0},
        load=0.75,
        pass_s=0.25,
        held=("a:1",),
        checked=1234,
    )
    assert backend.pool.beat(gpu) is None
    assert backend.pool.beat(make_gpu("gpu1", draining=True)) is None
    # Too long for any pass, and for one at its known rate.
    assert backend.pool.beat(make_gpu("gpu2", pass_s=1e6)) is None
    assert backend.pool.beat(make_gpu("gpu3", ttl_ms=0, checked=7)) is None
    round_id = backend.store.create(make_spec())
    for _ in range(2):
        assign(backend.store, round_id, 10)
    samples = read(backend)
    for state in ("live", "draining", "hanging", "dead"):
        assert of(samples, "pocqueue_gpus", state=state) == 1
    found = {
        name: of(samples, f"pocqueue_gpu_{name}", queue="gpu0", host="host-1")
        for name in (
            "nonces_per_second",
            "best_nonces_per_second",
            "load_ratio",
            "pass_seconds",
            "ranges_held",
            "ranges_out",
            "nonces_checked_total",
        )
    }
    assert found == {
        "nonces_per_second": 100.0,
        "best_nonces_per_second": 120.0,
        "load_ratio": 0.75,
        "pass_seconds": 0.25,
        "ranges_held": 1,
        "ranges_out": 2,
        "nonces_checked_total": 1234,
    }
    assert ("pocqueue_gpu_load_ratio", (("host", "host-1"), ("queue", "gpu3"))) not in samples
    assert of(samples, "pocqueue_gpu_nonces_checked_total", queue="gpu3", host="host-1") == 7


def test_a_gpu_that_ran_nothing_has_no_rate(backend: Backend) -> None:
    """Zero, and no error."""
    assert backend.pool.beat(make_gpu(rate=None)) is None
    samples = read(backend)
    assert of(samples, "pocqueue_gpu_nonces_per_second", queue="gpu0", host="host-1") == 0
    assert of(samples, "pocqueue_gpu_best_nonces_per_second", queue="gpu0", host="host-1") == 0


def test_commit_latency_is_a_cumulative_histogram(backend: Backend) -> None:
    """It survives the heartbeat; each bucket holds those before it, the last one all."""
    commits = Latency().add(0.0005).add(0.001).add(0.03).add(60.0)
    assert backend.pool.beat(make_gpu(commits=commits)) is None
    samples = read(backend)

    def bucket(bound: str) -> float:
        name = "pocqueue_gpu_commit_seconds_bucket"
        return of(samples, name, queue="gpu0", host="host-1", le=bound)

    assert [bucket(le) for le in ("0.001", "0.02", "0.05", "5.0", "+Inf")] == [2, 2, 3, 3, 4]
    counts = [bucket(le) for le in [*map(str, BOUNDS_S), "+Inf"]]
    assert counts == sorted(counts)
    labels = {"queue": "gpu0", "host": "host-1"}
    assert of(samples, "pocqueue_gpu_commit_seconds_count", **labels) == 4
    assert of(samples, "pocqueue_gpu_commit_seconds_sum", **labels) == pytest.approx(60.0315)


def test_callbacks_that_wait_and_fail_are_told_apart(backend: Backend) -> None:
    """Also how many nonces their receivers are behind, and what was given up."""
    store, callbacks = backend.store, backend.callbacks
    ids = [store.create(make_spec(callback_url="http://callback.test")) for _ in range(4)]
    for round_id in ids:
        assign(store, round_id, 100)
        commit(store, round_id, 1, 0, 10, [1, 2])
    tokens = dict(callbacks.claim_due(60.0))
    callbacks.failed(ids[1], tokens[ids[1]], 0, "no answer")
    callbacks.delivered(ids[2], tokens[ids[2]], "1-1", 2)
    callbacks.give_up(ids[3], tokens[ids[3]], "no public address")
    samples = read(backend)
    states = {s: of(samples, "pocqueue_callbacks", state=s) for s in ("waiting", "failing")}
    assert states == {"waiting": 1, "failing": 1}
    assert of(samples, "pocqueue_callbacks", state="delivered") == 1
    assert total(samples, "pocqueue_callback_nonces_waiting") == 4
    assert total(samples, "pocqueue_callbacks_given_up_total") == 1


def test_redis_away_is_a_page_with_one_line(own_backend: Backend, own_redis: RedisServer) -> None:
    """Down, and nothing else; back by itself."""
    assert len(read(own_backend)) > 10
    own_redis.stop()
    assert read(own_backend) == {("pocqueue_up", ()): 0}
    own_redis.ensure()
    assert total(read(own_backend), "pocqueue_up") == 1


def test_names_carry_their_units(backend: Backend) -> None:
    """As Prometheus wants them: counters end in _total, times in _seconds; each has its meaning."""
    for family in PoolCollector(backend).collect():
        assert family.name.startswith("pocqueue_"), family.name
        assert family.documentation, family.name
        assert not family.name.endswith(("_ms", "_total")), family.name


def test_it_is_served_over_http(backend: Backend) -> None:
    """On a free port, with what the process itself uses; the port is free again afterwards."""
    with serving("127.0.0.1", 0, PoolCollector(backend), ProcessCollector(registry=None)) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            samples = parse(answer.read())
    assert total(samples, "pocqueue_up") == 1
    assert total(samples, "process_resident_memory_bytes") > 0
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_is_named(backend: Backend) -> None:
    """With the settings that choose it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port} .*--metrics-port"),
            serving("127.0.0.1", port, PoolCollector(backend)),
        ):
            pass


@given(st.lists(st.floats(min_value=0, max_value=100)))
def test_every_duration_is_in_its_bucket(durations: Iterable[float]) -> None:
    """The last cumulative count is their number, each other one those up to its bound."""
    latency = Latency()
    for seconds in (durations := list(durations)):
        latency = latency.add(seconds)
    assert latency.sum_s == pytest.approx(sum(durations))
    for bound, count in latency.cumulative():
        assert count == sum(seconds <= float(bound) for seconds in durations)


@pytest.mark.parametrize("commits", [None, {}, {"counts": [1, 2], "sum_s": 3.0}])
def test_a_heartbeat_of_another_version_is_understood(commits: object) -> None:
    """A worker that says nothing of its commits, or has other buckets, counts as one without any."""
    text = make_gpu().to_json()
    assert Gpu.from_json(text, 1, 2).commits == Latency()
    values = json.loads(text)
    del values["commits"]
    if commits is not None:
        values["commits"] = commits
    assert Gpu.from_json(json.dumps(values), 1, 2).commits == Latency()
