"""What a small node counts for Prometheus, in a registry of its own."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class NodeMetrics:
    """The small node's figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        gauge = partial(Gauge, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.poll_lag = gauge(
            "pocqueue_node_poll_lag_seconds",
            "Seconds since the big node last answered; 0 if none is asked.",
        )
        self.messages = gauge(
            "pocqueue_node_outbox_messages",
            "Batches and verdicts on disk: waiting, refused or held.",
            ["state"],
        )
        self.oldest = gauge(
            "pocqueue_node_outbox_oldest_seconds",
            "Age of the oldest one that waits for its receiver.",
        )
        self.signed = counter("pocqueue_node_signed", "Batches signed.")
        self.signing = histogram(
            "pocqueue_node_signing_seconds",
            "Time to sign one batch.",
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1),
        )
        self.batches = counter("pocqueue_node_batches", "Batches received or found.", ["origin"])
        self.nonces = counter("pocqueue_node_nonces", "Valid nonces received or found.", ["origin"])
        self.delivered = counter(
            "pocqueue_node_delivered", "Batches and verdicts that the receiver took."
        )
        self.delivery = histogram(
            "pocqueue_node_delivery_seconds",
            "From a batch on disk to its receiver's 200.",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self.delegation_errors = counter(
            "pocqueue_node_delegation_errors", "Failed requests to the big node."
        )
        self.fraud = counter("pocqueue_node_fraud", "Sessions that were found to be fraud.")
        self.sampled = counter(
            "pocqueue_node_sampled_nonces", "Received nonces that were recomputed here."
        )
