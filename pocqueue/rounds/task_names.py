"""Names of tasks and queues on the wire. Versioned, as old and new workers may overlap."""

from __future__ import annotations

#: Searches one nonce range on a GPU.
RUN_RANGE = "pocqueue.run_range.v1"
#: Posts the unconfirmed proofs of one round to its callback URL.
DELIVER_PROOFS = "pocqueue.deliver_proofs.v1"
#: Finds nodes for jobs of GPU hosts that wait for one.
PLACE_JOBS = "hosts.place_v1"
#: Brings an attempt of a job to its node, by the gateway that has the node's socket.
DELIVER_JOB = "hosts.deliver_v1"
#: What gateways look at every few seconds: leases that ran out, nodes that fell silent.
SWEEP_HOSTS = "hosts.sweep_v1"
#: Seconds after which a sweep or a placement that nobody has taken is worth nothing: the next sweep does it.
SWEEP_EXPIRES_S = 60.0
#: Queue of what any gateway can do; what is for one of them goes to its own.
HOSTS_QUEUE = "hosts"
RELAY_PREFIX = "relay."
#: Queue of everything that needs no GPU.
IO_QUEUE = "io"
