"""How long a gateway waits for what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayTimings:
    """Seconds."""

    flush_s: float = 5.0  #: between two times that what was heard is written down
    loads_s: float = 60.0  #: between two figures of how busy a GPU is
    first_job_s: float = 5.0  #: from a node's registration to its test job
    test_job_s: int = 5  #: that a test job sleeps
    ping_s: float = 5.0  #: an older socket of a node has to answer within this, or loses the node
    register_s: float = 30.0  #: a socket has to become a node's within this
    send_s: float = 10.0  #: a message has to be taken within this
    retry_s: float = 1.0  #: between two tries to keep a result
    first_audit_s: float = 60.0  #: to the first look at the ledger: nodes come back before it
    audit_s: float = 3600.0  #: between two looks at the ledger
