"""The device part of a proof scheme: what is computed of a batch around a model's forward pass.

Each scheme has one in its folder, named by `ProofScheme.maths`. An engine's pipeline calls it in this order:

    seeds         of a batch, in plain Python; perhaps ahead and in another thread
    write_inputs  into the buffer that the model gets; perhaps ahead, on a stream of its own
    prepare       whatever else can be made before the pass; like `write_inputs`
    values        from the model's output at the last position, on the model's stream
    written       once the host has read them
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels import Kernels

#: What a scheme reads of a pass, of each sequence's last position: float logits [batch, vocab], or the
#: hidden state behind the final norm, what the output layer gets, [batch, hidden].
Output = Literal["logits", "hidden"]

#: What becomes of an activation [..., hidden] behind the decoder layer of this number, from 0; it is not changed.
AfterLayer = Callable[[int, torch.Tensor], torch.Tensor]

#: Makes the token ids, int32 [batch, seq_len], that stand beside the embeddings of a batch if a model asks for some;
#: None: the scheme has none.
TokenIds = Callable[[], torch.Tensor | None]

#: A model: runs on embeddings [batch, seq_len, hidden] in its dtype, which it may overwrite, and does something behind
#: its layers, or nothing; returns what is wanted, or None on a rank of a group that does not get it.
Forward = Callable[[torch.Tensor, Output, AfterLayer | None, TokenIds], torch.Tensor | None]


def no_token_ids() -> None:
    """Make none."""


@dataclass(eq=False)
class SchemeMaths(ABC):
    """One scheme's maths for one model on one device. For one thread, but for `seeds`."""

    reads: ClassVar[Output] = "logits"  #: what is read of a pass

    kernels: Kernels  #: of the device
    hidden_size: int  #: width of one input embedding
    vocab_size: int  #: number of logits
    device: torch.device  #: where inputs are wanted and the model's outputs come from

    @abstractmethod
    def seeds(self, batch: Batch) -> Any:
        """Return what the other steps need of a padded batch's texts. Called from any thread."""

    @abstractmethod
    def write_inputs(self, seeds: Any, out: torch.Tensor) -> None:
        """Fill the embeddings of a batch.

        Args:
            seeds: of the batch.
            out: [batch, seq_len * hidden] in the model's dtype, on the device.
        """

    def prepare(self, seeds: Any) -> Any:
        """Make what `values` needs and what does not depend on the model."""
        return seeds

    def after_layer(self, batch: Batch) -> AfterLayer | None:
        """Return what is done behind each decoder layer in the pass of a batch; None: nothing."""
        return None

    def token_ids(self, batch: Batch) -> torch.Tensor | None:
        """Make the token ids of a padded batch, for a model that asks for some; None: the scheme has none."""
        return None

    @abstractmethod
    def values(self, batch: Batch, prepared: Any, output: torch.Tensor) -> torch.Tensor:
        """Compute the values of a batch, without waiting for the device.

        Args:
            batch: padded.
            prepared: from `prepare`.
            output: what the model gave of it; see `reads`.

        Returns:
            [batch, …] on the device: a row a value.
        """

    def written(self, rows: list[Any]) -> list[Any]:
        """Return rows of `values`, as the host has read them, as values that JSON can hold."""
        return rows

    def forget(self) -> None:
        """Free what is kept between two batches."""
        return
