"""What a small node counts for Prometheus. One registry a process; `render` is what `/metrics` answers."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class NodeMetrics:
    """The small node's figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.poll_lag = Gauge(
            "pocqueue_node_poll_lag_seconds",
            "Seconds since the big node last answered; 0 if none is asked.",
            registry=r,
        )
        self.messages = Gauge(
            "pocqueue_node_outbox_messages",
            "Signed batches on disk: waiting, refused or held.",
            ["state"],
            registry=r,
        )
        self.oldest = Gauge(
            "pocqueue_node_outbox_oldest_seconds",
            "Age of the oldest signed batch that waits for its receiver.",
            registry=r,
        )
        self.signed = Counter("pocqueue_node_signed", "Batches signed.", registry=r)
        self.signing = Histogram(
            "pocqueue_node_signing_seconds",
            "Time to sign one batch.",
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1),
            registry=r,
        )
        self.batches = Counter(
            "pocqueue_node_batches", "Batches received or found.", ["origin"], registry=r
        )
        self.nonces = Counter(
            "pocqueue_node_nonces", "Valid nonces received or found.", ["origin"], registry=r
        )
        self.delivered = Counter(
            "pocqueue_node_delivered", "Signed batches that the receiver took.", registry=r
        )
        self.delivery = Histogram(
            "pocqueue_node_delivery_seconds",
            "From a batch on disk to its receiver's 200.",
            buckets=_SECONDS,
            registry=r,
        )
        self.delegation_errors = Counter(
            "pocqueue_node_delegation_errors", "Failed requests to the big node.", registry=r
        )
        self.fraud = Counter(
            "pocqueue_node_fraud", "Sessions that were found to be fraud.", registry=r
        )
        self.sampled = Counter(
            "pocqueue_node_sampled_nonces", "Received nonces that were recomputed here.", registry=r
        )

    def count_delivery(self, latency_s: float) -> None:
        """Count a message that its receiver took, so many seconds after it was written."""
        self.delivered.inc()
        self.delivery.observe(latency_s)

    def render(self) -> tuple[bytes, str]:
        """Return the exposition text and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
