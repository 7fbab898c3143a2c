"""The gateway's figures for Prometheus. No wallet, host name or node is in a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from typing_extensions import override

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_JOB_SECONDS: Final = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 14_400, 86_400)


class Metrics:
    """What one gateway process counts. The rest is read from the database when it is asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        names = dict[str, list[str]](
            messages=["type"],
            job_attempts=["kind", "outcome"],
            jobs_requeued=["reason"],
            tokens=["outcome"],
            auth_failures=[],
            rate_limited=["route"],
            earned_micro=["kind"],
            self_test_failures=["row"],
        )
        self._counters = {
            name: Counter(
                f"pocqueue_hosts_{name}_total", _MEANING[name], labels, registry=self.registry
            )
            for name, labels in names.items()
        }
        #: What has been counted, by name and labels: the library takes longer to find it than to count.
        self._counted = dict[tuple[str, tuple[str, ...]], Counter]()
        self.dispatch = Histogram(
            "pocqueue_hosts_dispatch_seconds",
            "from the choice of a node to the message that its job goes out with",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.job_seconds = Histogram(
            "pocqueue_hosts_job_seconds",
            "from the message to the result, by the server's clock",
            ["kind"],
            buckets=_JOB_SECONDS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        #: Differences that the newest audit of the ledger has found; None: there was none yet.
        self.ledger_mismatch: int | None = None

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        """Add to a counter."""
        counter = self._counted.get((name, labels))
        if counter is None:
            counter = self._counters[name].labels(*labels) if labels else self._counters[name]
            self._counted[name, labels] = counter
        counter.inc(by)

    def gauges(
        self,
        *,
        nodes: Mapping[str, int],
        jobs: Mapping[tuple[str, str], int],
        num_connections: int,
    ) -> list[GaugeMetricFamily]:
        """Return the figures of the moment.

        Args:
            nodes: how many there are, by state.
            jobs: how many there are, by kind and state.
            num_connections: nodes that have a socket of this gateway.
        """
        found = [
            _gauge("nodes", "nodes", ("state",), (((state,), n) for state, n in nodes.items())),
            _gauge("jobs", "jobs", ("kind", "state"), jobs.items()),
            _gauge("connections", "sockets of this gateway", (), [((), num_connections)]),
        ]
        if self.ledger_mismatch is not None:
            meaning = "differences that the last audit of the ledger has found"
            found.append(_gauge("ledger_mismatch", meaning, (), [((), self.ledger_mismatch)]))
        return found

    def page(self, gauges: Iterable[GaugeMetricFamily]) -> bytes:
        """Return the figures in Prometheus's format, with some of the moment."""
        collector = _Given(list(gauges))
        self.registry.register(collector)
        try:
            return generate_latest(self.registry)
        finally:
            self.registry.unregister(collector)


_MEANING: Final = {
    "messages": "messages of agents",
    "job_attempts": "attempts that have ended",
    "jobs_requeued": "attempts after which the job waited again",
    "tokens": "node tokens that were asked for or used",
    "auth_failures": "wrong tokens and signatures",
    "rate_limited": "requests that came too often",
    "earned_micro": "micro-HYPER that attempts have earned",
    "self_test_failures": "rows of self-tests that failed",
}


class _Given(Collector):
    def __init__(self, found: list[GaugeMetricFamily]) -> None:
        self._found = found

    @override
    def collect(self) -> Iterator[Metric]:
        yield from self._found


def _gauge(
    name: str,
    meaning: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], float]],
) -> GaugeMetricFamily:
    """Make a figure of the moment, ``pocqueue_hosts_NAME``."""
    family = GaugeMetricFamily(f"pocqueue_hosts_{name}", meaning, labels=labels)
    for found, value in values:
        family.add_metric(list(found), value)
    return family
