"""What Prometheus is told about rounds, GPUs and sessions: computed from Redis when it asks.

All that is worth a graph is in Redis: rounds, totals, and each worker's last heartbeat. So one
endpoint covers any number of GPUs and hosts, any process can serve it, and it says the same whichever
does. Two of them scraped at once report the same figures: aggregate with `max`, not with `sum`.

Promises:
- Nothing of a customer is in a label: no names, tokens, keys, block hashes, round or session ids.
- While Redis is away there is `pocqueue_up 0` and nothing else, at HTTP 200.
- A scrape only reads.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    generate_latest,
    start_http_server,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from typing_extensions import override

from pocqueue.errors import SettingsError, StoreError
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.callbacks import CallbackProgress
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.records import OutstandingRange, RoundStatus
from pocqueue.rounds.spec import RoundState

logger = logging.getLogger(__name__)

#: Totals of the store (`RoundStore.totals`) -> name and meaning of its metric.
TOTALS = {
    "batches": ("pocqueue_batches_total", "batches counted"),
    "late_batches": (
        "pocqueue_late_batches_total",
        "batches dropped because they came after the deadline of their round",
    ),
    "checked": ("pocqueue_nonces_checked_total", "nonces counted, each once"),
    "valid": ("pocqueue_nonces_valid_total", "valid nonces found; of artifacts every one is"),
    "nonfinite": (
        "pocqueue_nonces_nonfinite_total",
        "nonces without a finite distance or artifact",
    ),
    "abandoned": ("pocqueue_nonces_abandoned_total", "nonces given up after failures in a row"),
    "ranges_returned": (
        "pocqueue_ranges_returned_total",
        "nonce ranges that came back from a GPU unfinished",
    ),
    "callbacks_given_up": (
        "pocqueue_callbacks_given_up_total",
        "rounds whose callback URL leads to an address that is not allowed, or does not take all in time",
    ),
    "auth_failures": ("pocqueue_auth_failures_total", "requests with a missing or wrong token"),
}

#: What `pocqueue_gpus` tells apart.
GPU_STATES = ("live", "draining", "hanging", "dead")


@dataclass(eq=False, repr=False)
class PoolCollector(Collector):
    """Collects everything from one backend. Safe to be asked from several threads."""

    backend: Backend  #: not closed by the collector

    @override
    def collect(self) -> Iterator[Metric]:
        # Read all of it before the first line is out: half a page would look like lost GPUs.
        found: list[Metric] = []
        try:
            found = self._read()
        except StoreError as exc:
            logger.debug("No metrics: %s", exc)
        meaning = "whether Redis answered when this was read"
        yield GaugeMetricFamily("pocqueue_up", meaning, bool(found))
        yield from found

    def _read(self) -> list[Metric]:
        store = self.backend.store
        rounds = store.snapshot()
        gpus = self.backend.pool.all()
        active = [status.round_id for status in rounds if status.state.is_active]
        outstanding = store.outstanding(active)
        progress = self.backend.callbacks.progress_of_all()
        return [
            *_totals(store.totals()),
            *_rounds(rounds),
            *_callbacks(rounds, progress),
            *_gpus(gpus, outstanding),
        ]


def render(*collectors: Collector) -> tuple[bytes, str]:
    """Return the page that Prometheus reads, and its content type."""
    return generate_latest(_registry(collectors)), CONTENT_TYPE_LATEST


@contextlib.contextmanager
def serving(address: str, port: int, *collectors: Collector) -> Iterator[int]:
    """Serve the page over HTTP from a thread; yield the port.

    Args:
        address: to listen on.
        port: 0 takes a free one.
        collectors: what the page is made of.

    Raises:
        SettingsError: address and port cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, address, _registry(collectors))
    except OSError as exc:
        raise SettingsError(
            f"Metrics cannot be served on {address}:{port} ({exc.strerror or exc}): set "
            "POCQUEUE_METRICS_PORT or --metrics-port to a free port, and POCQUEUE_METRICS_ADDRESS to "
            "an address of this machine."
        ) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(collectors: Iterable[Collector]) -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry


def _totals(totals: Mapping[str, int]) -> Iterator[Metric]:
    for field, (name, meaning) in TOTALS.items():
        # All of them, from zero on: a rate over a series that begins with its first event misses it.
        yield CounterMetricFamily(name, meaning, totals.get(field, 0))


def _by_state(name: str, meaning: str, states: Iterable[str], found: Iterable[str]) -> Metric:
    """Count what was found in each of these states, those in which nothing is among them."""
    counts = Counter(found)
    family = GaugeMetricFamily(name, meaning, labels=["state"])
    for state in states:
        family.add_metric([state], counts[state])
    return family


def _rounds(rounds: Sequence[RoundStatus]) -> Iterator[Metric]:
    sessions = [status for status in rounds if status.spec.customer is not None]
    for name, kept, what in (
        ("pocqueue_rounds", rounds, "rounds"),
        ("pocqueue_sessions", sessions, "those of the rounds that small nodes started, sessions"),
    ):
        meaning = f"{what}, active and of the last hour, by state"
        states = [state.value for state in RoundState]
        yield _by_state(name, meaning, states, (status.state.value for status in kept))


def _callbacks(
    rounds: Iterable[RoundStatus], progress: Mapping[str, CallbackProgress]
) -> Iterator[Metric]:
    valid = {status.round_id: status.valid for status in rounds}
    behind = {
        round_id: max(0, valid.get(round_id, 0) - one.delivered)
        for round_id, one in progress.items()
    }
    yield _by_state(
        "pocqueue_callbacks",
        "rounds whose receiver took everything so far, is still to get some, or failed last time",
        ("delivered", "waiting", "failing"),
        (
            "failing" if one.attempts else "waiting" if behind[round_id] else "delivered"
            for round_id, one in progress.items()
        ),
    )
    yield GaugeMetricFamily(
        "pocqueue_callback_nonces_waiting",
        "valid nonces that callback receivers did not take yet",
        sum(behind.values()),
    )


def _gpus(gpus: Sequence[Gpu], outstanding: Iterable[OutstandingRange]) -> Iterator[Metric]:
    """Gauges are of live GPUs only; counters stay for the hour that a dead one is remembered."""
    yield _by_state("pocqueue_gpus", "GPU queues by state", GPU_STATES, map(_state, gpus))

    out = Counter(one.queue for one in outstanding)
    for name, meaning, value in GPU_GAUGES:
        family = GaugeMetricFamily(name, meaning, labels=["queue", "host"])
        for gpu in gpus:
            if gpu.is_live:
                family.add_metric([gpu.queue, gpu.host], value(gpu, out[gpu.queue]))
        yield family

    checked = CounterMetricFamily(
        "pocqueue_gpu_nonces_checked_total",
        "nonces counted since its worker started",
        labels=["queue", "host"],
    )
    commits = HistogramMetricFamily(
        "pocqueue_gpu_commit_seconds",
        "time from the first try to commit a batch to Redis's answer",
        labels=["queue", "host"],
    )
    gaps = HistogramMetricFamily(
        "pocqueue_gpu_gap_seconds",
        "idle time of the engine between two ranges of which the second one was there already",
        labels=["queue", "host"],
    )
    for gpu in gpus:
        checked.add_metric([gpu.queue, gpu.host], gpu.checked)
        commits.add_metric([gpu.queue, gpu.host], gpu.commits.cumulative(), gpu.commits.sum_s)
        gaps.add_metric([gpu.queue, gpu.host], gpu.gaps.cumulative(), gpu.gaps.sum_s)
    yield checked
    yield commits
    yield gaps


def _state(gpu: Gpu) -> str:
    if not gpu.is_live:
        return "dead"
    if gpu.hangs:
        return "hanging"
    return "draining" if gpu.draining else "live"


#: Name, meaning and value of each gauge of a live GPU; the value from its last heartbeat and from how
#: many ranges it was given and did not finish.
GPU_GAUGES: tuple[tuple[str, str, Callable[[Gpu, int], float]], ...] = (
    (
        "pocqueue_gpu_nonces_per_second",
        "nonces a second while it is busy, at the shape it ran last",
        lambda gpu, _: gpu.rates.get(_last_shape(gpu), 0.0),
    ),
    (
        "pocqueue_gpu_best_nonces_per_second",
        "its best rate so far at that shape",
        lambda gpu, _: gpu.best_rates.get(_last_shape(gpu), 0.0),
    ),
    ("pocqueue_gpu_load_ratio", "share of its time that it is busy", lambda gpu, _: gpu.load),
    ("pocqueue_gpu_ranges_out", "ranges given to it and not done", lambda _, num_out: num_out),
    (
        "pocqueue_gpu_ranges_held",
        "ranges it has taken from its queue: one running, one waiting",
        lambda gpu, _: len(gpu.held),
    ),
    (
        "pocqueue_gpu_pass_seconds",
        "how long the forward pass at hand has run",
        lambda gpu, _: gpu.pass_s,
    ),
    ("pocqueue_gpu_silent_seconds", "time since its last heartbeat", lambda gpu, _: gpu.silent_s),
)


def _last_shape(gpu: Gpu) -> str:
    """Return the shape that ran last, which workers keep at the end; empty before the first."""
    return next(reversed(gpu.rates), "")
