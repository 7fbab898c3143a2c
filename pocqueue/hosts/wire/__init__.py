"""The messages of a GPU host's WebSocket, both directions: what they are called, what is in them, how they are read.

Two generations of agents speak here. Those of protocol 1, which others have written, send `register` with a token and
are told `registered`; they live until their socket ends. Ours, protocol 2, have a key as well, and come back with it:

    agent    hello {protocol, nodeKey, nodeId?}
    gateway  challenge {nonce}
    agent    register {token, hostInfo, nodeKey, signature, …}    the first time, or
             resume {nodeId, hostInfo, signature, jobs, …}        whenever it comes back
    gateway  registered {nodeId, message, serverMs, nodeKey}, or an error and close code 4401; upgrade, to an agent that is older
    agent    heartbeat every `HEARTBEAT_S` seconds, job_started, job_result … as things happen

The signature is ed25519, as hex, over `signed_text`. A `register` with a token that this very key has used already is
a `resume`: the answer was lost on its way. A `job` may come twice, after a reconnect say; an agent of protocol 2 knows it by
(`id`, `attempt`), runs it once, and sends its result, again after each reconnect, until the `ack` with the same two comes.

A node takes another key so: the agent puts the new one on its disk, beside the one that it has; then `new_key`, and the
gateway's `key`; then the new one takes the old one's place. Whatever ends in between, a `resume` is signed by both, and
the `nodeKey` of `registered` says which of them counts. `rotate_key` asks an agent to do it.

Fields are camelCase on the wire. Unknown fields are ignored, unknown types answered with `ErrorText.UNKNOWN_TYPE`, what is
no such message with `ErrorText.INVALID_FORMAT`; the socket stays. Needs pydantic alone.
"""

from __future__ import annotations

from pocqueue.hosts.protocol import (
    HEARTBEAT_S,
    MAX_GPUS,
    RESULT_RECEIVED,
    CloseCode,
    ErrorText,
    origin_of,
    rotation_text,
    signed_text,
)
from pocqueue.hosts.wire.fields import (
    MAX_LOG,
    BadMessage,
    Message,
    one_line,
)
from pocqueue.hosts.wire.from_agent import (
    Bye,
    Draining,
    FromAgent,
    Heartbeat,
    Hello,
    JobLog,
    JobRefused,
    JobResult,
    JobStarted,
    NewKey,
    Register,
    Resume,
    SelfTest,
    read_from_agent,
    read_heartbeat,
)
from pocqueue.hosts.wire.from_gateway import (
    Ack,
    Challenge,
    Drain,
    Error,
    Job,
    JobCancel,
    Key,
    Limits,
    Registered,
    Replaced,
    RotateKey,
    Upgrade,
)
from pocqueue.hosts.wire.machine import (
    GpuLoad,
    HostGpu,
    HostInfo,
    JobRef,
    TestRow,
)

__all__ = [
    "HEARTBEAT_S",
    "MAX_GPUS",
    "MAX_LOG",
    "RESULT_RECEIVED",
    "Ack",
    "BadMessage",
    "Bye",
    "Challenge",
    "CloseCode",
    "Drain",
    "Draining",
    "Error",
    "ErrorText",
    "FromAgent",
    "GpuLoad",
    "Heartbeat",
    "Hello",
    "HostGpu",
    "HostInfo",
    "Job",
    "JobCancel",
    "JobLog",
    "JobRef",
    "JobRefused",
    "JobResult",
    "JobStarted",
    "Key",
    "Limits",
    "Message",
    "NewKey",
    "Register",
    "Registered",
    "Replaced",
    "Resume",
    "RotateKey",
    "SelfTest",
    "TestRow",
    "Upgrade",
    "one_line",
    "origin_of",
    "read_from_agent",
    "read_heartbeat",
    "rotation_text",
    "signed_text",
]
