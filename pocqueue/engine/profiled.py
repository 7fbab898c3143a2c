"""What an engine whose model is in this process says about its parts. Imports no torch: commands read these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pocqueue.poc.batch import Batch

#: What a batch goes through, in order.
STAGES = ("seeds", "inputs", "forward", "distances")


@dataclass(frozen=True, slots=True)
class MatmulParameters:
    """The parameters of a model that positions are multiplied with."""

    per_token: int  #: for every position: all matrices but embedding table and output layer
    last_token: int  #: for the last position of a nonce alone: the output layer
    counts_all_experts: bool = False  #: of a mixture whose active experts are not known

    def flop(self, seq_len: int) -> int:
        """Return the FLOP of one nonce: a multiplication and an addition for each of them."""
        return 2 * (self.per_token * seq_len + self.last_token)


class Timer(Protocol):
    """Times the parts of one engine's batches, between the engine's own."""

    def time_stages(self, batch: Batch, num_batches: int) -> dict[str, float]:
        """Run batches stage by stage, the device idle before and after each.

        Args:
            batch: at least one nonce; filled up to its size.
            num_batches: how often; >= 1.

        Returns:
            Median seconds of each of `STAGES`.

        Raises:
            EngineError: the engine is closed by now, or the batch does not fit into the device's memory.
        """
        ...

    def time_forward(self, batch: Batch, num_batches: int) -> float:
        """Run the model alone in a loop, on inputs in memory, logits included.

        Args:
            batch: names the inputs, as for `time_stages`.
            num_batches: passes; >= 1.

        Returns:
            Seconds of all passes together; the device is waited for at the end alone.

        Raises:
            EngineError: as `time_stages`.
        """
        ...

    def num_matmul_parameters(self) -> MatmulParameters | None:
        """Count the parameters of the whole model; None if they are packed and cannot be counted."""
        ...
