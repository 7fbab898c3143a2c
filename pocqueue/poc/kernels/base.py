"""What a device has to offer for the proof's maths around the forward pass.

Promises of every implementation: a row depends on its own seed (and logits) alone, bit for bit, and
on neither the other rows nor the number of threads. Against the reference permutations are
equal, inputs are within one unit in the last place of bfloat16 on at most 1 element in 100,000 and
equal elsewhere, and distances are within 2e-6. On CUDA everything runs on the current stream, without
synchronising or reading back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from pocqueue.errors import InvalidRound


class Kernels(ABC):
    """The proof's maths for one device. Seeds are 0 … 2^32 - 1, one for each row (nonce)."""

    #: What does the work: "numba", "triton" or "reference".
    name: ClassVar[str]

    @abstractmethod
    def write_inputs(self, seeds: Sequence[int], out: torch.Tensor) -> None:
        """Fill each row with the standard normal numbers of its seed.

        Args:
            seeds: one per row.
            out: float32, bfloat16 or float16 ``[len(seeds), n]`` on the device, contiguous, n >= 1;
                written over. The numbers are made in float32 and rounded to its dtype.
        """

    def write_pieces(self, seeds: Sequence[Sequence[int]], out: torch.Tensor) -> None:
        """Fill each row with pieces of equal length, one for each of its seeds in turn.

        A piece has the numbers that `write_inputs` gives to a row of its length. The last ones are shorter, or
        missing, if a row cannot be divided.

        Args:
            seeds: as many for each row.
            out: as for `write_inputs`.
        """
        rows, n = out.shape
        num_pieces = len(seeds[0]) if rows else 1
        if n % num_pieces == 0:
            flat = [seed for words in seeds for seed in words]
            self.write_inputs(flat, out.view(rows * num_pieces, n // num_pieces))
            return
        for row, words in zip(out, seeds, strict=True):
            for word, piece in zip(words, row.split(-(-n // num_pieces)), strict=False):
                self.write_inputs([word], piece.unsqueeze(0))

    def smallest(self, seeds: Sequence[int], n: int, k: int) -> torch.Tensor:
        """Return which k of the numbers 0 … n-1 have the smallest hashes, in ascending order of hash.

        Args:
            seeds: one per row.
            n: 1 … 2^31 - 1.
            k: 1 … n.

        Returns:
            int64 ``[len(seeds), k]`` on the device.
        """
        return self.permutations(seeds, n)[:, :k]

    @abstractmethod
    def permutations(self, seeds: Sequence[int], vocab_size: int) -> torch.Tensor:
        """Return the permutation of each seed.

        Args:
            seeds: one per row.
            vocab_size: 1 … 2^31 - 1.

        Returns:
            int64 ``[len(seeds), vocab_size]`` on the device.
        """

    @abstractmethod
    def prepare(self, seeds: Sequence[int], vocab_size: int) -> Any:
        """Do what `distances` needs and what can be done before the logits are there.

        Args:
            seeds: of the permutations, one per row.
            vocab_size: 1 … 2^31 - 1.

        Returns:
            What `distances` of the same object takes; of no meaning to others.
        """

    def distances(self, logits: torch.Tensor, prepared: Any, target: torch.Tensor) -> torch.Tensor:
        """Measure how far the permuted unit logits are from the target.

        Args:
            logits: any float ``[rows, vocab_size]`` on the device, of any strides; not changed.
            prepared: from `prepare`, for as many rows and the same vocabulary.
            target: float32 ``[vocab_size]`` on the device, of norm 1.

        Returns:
            float32 ``[rows]`` on the device, in [0, 2]; NaN for logits that are all zero or not finite.

        Raises:
            InvalidRound: there are other logits than that.
        """
        check_logits(logits, len(prepared), target)
        return self._distances(logits, prepared, target)

    @abstractmethod
    def _distances(self, logits: torch.Tensor, prepared: Any, target: torch.Tensor) -> torch.Tensor:
        """Measure distances of logits that have the right shape."""


def check_logits(logits: torch.Tensor, num_rows: int, target: torch.Tensor) -> None:
    """Refuse logits of another vocabulary or another number of nonces.

    Checked, because more logits than the round has would quietly be left out of a distance.

    Raises:
        InvalidRound: `logits` is not ``[num_rows, len(target)]``.
    """
    if logits.shape != (num_rows, len(target)):
        raise InvalidRound(
            "vocab_size",
            len(target),
            f"that of the model's logits, which are {list(logits.shape)} for {num_rows} nonces",
        )
