"""What an agent and the gateway agree on beside their messages: numbers, close codes, texts, and what is signed.

Imports nothing that is not Python's: the messages are `hosts.wire` at the gateway, which checks what strangers send, and
`agent.messages` at the agent, which is to be small. A test holds the two to each other.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from urllib.parse import urlsplit

#: Ours. Agents that say nothing of it speak protocol 1.
PROTOCOL = 2
#: Seconds between two heartbeats of an agent.
HEARTBEAT_S = 15.0
#: Longest message, in bytes; longer ones end the socket with close code 1009.
MAX_MESSAGE_BYTES = 4 << 20
#: Most GPUs of one machine.
MAX_GPUS = 64
#: Most jobs that one machine can have at a time, waiting results included.
MAX_JOBS = 1024

#: Where a machine measures the way to a gateway: GET gives so many bytes, POST takes as many.
SPEED_PATH, SPEED_BYTES = "/api/speed", 1_000_000

#: What acknowledges a `job_result`.
RESULT_RECEIVED = "Job result received"


class CloseCode(IntEnum):
    """Why the gateway ends a socket. 1000 to 1015 are those of RFC 6455; the rest is ours."""

    NORMAL = 1000  #: after `bye`
    TOO_LARGE = 1009  #: a message is longer than `MAX_MESSAGE_BYTES`
    RESTART = 1012  #: the gateway ends; come back after a pause
    TRY_LATER = 1013  #: the gateway has as many sockets as it can hold
    REFUSED = 4401  #: token or signature is wrong; the same again would be refused again
    BANNED = 4403  #: the node or its wallet is banned
    REPLACED = 4409  #: the same node is connected by another socket
    TOO_FAST = 4429  #: more messages than a machine has reason to send, or too many connections


class ErrorText(StrEnum):
    """What an `error` says. Agents of protocol 1 know the first seven but for the one about expiry."""

    TOKEN_REQUIRED = "Token is required"  # noqa: S105 - a sentence
    INVALID_TOKEN = "Invalid token"  # noqa: S105
    TOKEN_USED = "Token already used"  # noqa: S105
    TOKEN_EXPIRED = "Token expired"  # noqa: S105
    INVALID_NODE = "Invalid node ID"
    JOB_NOT_FOUND = "Job not found"
    UNKNOWN_TYPE = "Unknown message type"
    INVALID_FORMAT = "Invalid message format"
    CONNECTED_ELSEWHERE = "Node is connected from elsewhere"
    INVALID_SIGNATURE = "Invalid signature"
    BANNED = "Node is banned"
    NOT_NOW = "The gateway cannot do that for now; try again"
    TOO_FAST = "Too many messages"


def signed_text(origin: str, node_id: str, nonce: str) -> bytes:
    """Return what an agent signs with its key to prove who it is.

    Args:
        origin: of the gateway as the agent calls it, see `origin_of`: a gateway that is not the one that was meant
            cannot pass the signature on.
        node_id: as in `resume`; empty in `register`.
        nonce: of the `challenge` on this socket.
    """
    return f"pocqueue-node-1\n{origin}\n{node_id}\n{nonce}".encode()


def rotation_text(origin: str, node_id: str, node_key: str) -> bytes:
    """Return what an agent signs with its new key, to show that it has it.

    Args:
        origin, node_id: as for `signed_text`.
        node_key: the new key's public half, as hex.
    """
    return f"pocqueue-node-key-1\n{origin}\n{node_id}\n{node_key}".encode()


def origin_of(endpoint: str) -> str:
    """Return the name that an endpoint is called by: its host in small letters, without port.

    The port is left out, as proxies before a gateway pass it on or not.

    >>> origin_of("wss://GPU.example.com:443/ws")
    'gpu.example.com'
    """
    return (urlsplit(endpoint).hostname or "").rstrip(".")
