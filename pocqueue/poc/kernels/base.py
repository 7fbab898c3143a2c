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

#: Added to the norm that a hidden state or an artifact is divided by.
TINY = 1e-8


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

    def pick(self, seeds: Sequence[int], n: int, k: int) -> torch.Tensor:
        """Return which k of the numbers 0 … n-1 have the smallest hashes, in the network's order.

        Args:
            seeds: one per row.
            n: 1 … 2^31 - 1.
            k: 1 … n.

        Returns:
            int64 ``[len(seeds), k]`` on the device: ascending, but that the one with the largest hash of them
            stands last.

        Raises:
            InvalidRound: k is out of bounds.
        """
        if not 1 <= k <= n:
            raise InvalidRound("k_dim", k, f"1 to the model's hidden size, which is {n}")
        return self._pick(seeds, n, k)

    def _pick(self, seeds: Sequence[int], n: int, k: int) -> torch.Tensor:
        by_hash = self.permutations(seeds, n)[:, :k]
        return torch.cat((by_hash[:, :-1].sort(dim=1).values, by_hash[:, -1:]), dim=1)

    def rotated(
        self, hidden: torch.Tensor, dims: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        """Pick of hidden states of norm 1, rotate and normalise.

        Args:
            hidden: any float ``[rows, n]`` on the device; used as float32, unchanged.
            dims: int64 ``[rows, k]``, from `pick` for n.
            vectors: float32 ``[rows, k - 1, k]`` of norm 1: the reflections that a row's rotation consists of.

        Returns:
            float32 ``[rows, k]`` on the device, of norm 1; NaN where a hidden state is not finite.

        Raises:
            InvalidRound: there is not one hidden state for each row of `dims`.
        """
        if len(hidden) != len(dims):
            raise InvalidRound(
                "nonces", len(dims), f"one for each of the {len(hidden)} hidden states"
            )
        return self._rotated(hidden.to(torch.float32), dims, vectors)

    def _rotated(
        self, hidden: torch.Tensor, dims: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        norm = torch.linalg.vector_norm(hidden, dim=1, keepdim=True)
        x = hidden.gather(1, dims) / (norm + TINY)
        for v in vectors.unbind(1):
            x = torch.addcmul(x, (x * v).sum(-1, keepdim=True), v, value=-2)
        x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + TINY)
        # A norm is finite if and only if all numbers are, but for sums of squares beyond float32.
        artifacts: torch.Tensor = x.masked_fill_(~norm.isfinite(), torch.nan)
        return artifacts

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
