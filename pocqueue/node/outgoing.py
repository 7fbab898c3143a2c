"""The way out of the small node: what signs a body, keeps it on disk and has it sent, and counts that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.keys import SigningKey
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import NewMessage, Outbox
from pocqueue.node.signing import sign_body
from pocqueue.poc.callback import Kind


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Key, outbox, dispatcher and metrics of a node; every search and every verdict uses the same."""

    key: SigningKey
    outbox: Outbox
    dispatcher: Dispatcher
    metrics: NodeMetrics

    def message(self, position: str, kind: Kind, url: str, body: Mapping[str, Any]) -> NewMessage:
        """Return a message with a body, signed.

        Args:
            position: of the batch in its session; once for each kind.
            kind: of the body.
            url: callback URL.
            body: a batch or verdict, as `sign_body` takes it.
        """
        with self.metrics.signing.time():
            signed = sign_body(body, self.key)
        self.metrics.signed.inc()
        return NewMessage(position, kind, url, signed, len(signed["nonces"]))
