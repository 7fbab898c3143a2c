"""Names of tasks and queues on the wire. Versioned, as old and new workers may overlap."""

from __future__ import annotations

#: Searches one nonce range on a GPU.
RUN_RANGE = "pocqueue.run_range.v1"
#: Posts the unconfirmed proofs of one round to its callback URL.
DELIVER_PROOFS = "pocqueue.deliver_proofs.v1"
#: Queue of everything that needs no GPU.
IO_QUEUE = "io"
