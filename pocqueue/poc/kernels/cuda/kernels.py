"""The proof's maths on a CUDA GPU, by Triton, which comes with a CUDA build of torch.

Promises those of `base`. Inputs are one kernel that writes into the buffer at hand. Permutations are a
sort made for what the keys are: uniform, so that their highest bits deal them evenly into buckets of
10 to 20, and all different, so that a key's place in its bucket is the number of smaller ones. It
moves an eighth of the bytes that torch.sort does: all keys and indices to and fro once for each of
four digits and once more for the rows. The distance is summed in float64, in the same order always.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from typing_extensions import override

from pocqueue.poc.kernels.base import Kernels
from pocqueue.poc.kernels.cuda import triton_kernels

#: No multiply-adds but those written as such. Without a word on it Triton 3.9 warns.
_EXACT = {"enable_fp_fusion": False}
#: Of `write_normals`: with one warp, 8 pairs a thread and row, so 16-byte stores of half precision.
_PAIRS, _ROWS = 256, 4
#: Keys of a program, in `count_buckets` and `fill_buckets`.
_KEYS = 1024
#: Members of a bucket that are compared at once, one a thread. Of the 10 to 20 that are expected in a
#: bucket there are more than 32 in one of 200 at most.
_TILE, _BUCKET_SIZE = 32, 20
#: Positions of a program of `sum_products`; fixed, so that a row is summed alike in any batch.
_CHUNK, _BLOCK = 8192, 1024


class CudaKernels(Kernels):
    """Kernels of one GPU, usable from any thread: they run on its current stream there.

    Tensors that a call returns belong to that stream, as all of torch's do.
    """

    name = "triton"

    def __init__(self, device: torch.device, bucket_size: int = _BUCKET_SIZE) -> None:
        """Name the device.

        Args:
            device: a CUDA device; without an index the calling thread's. Under Triton's interpreter
                (TRITON_INTERPRET=1), for tests, also the CPU.
            bucket_size: keys that are expected in a bucket of the sort at most.
        """
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        self._bucket_size = bucket_size

    @override
    def write_inputs(self, seeds: Sequence[int], out: torch.Tensor) -> None:
        rows, n = out.shape
        assert len(seeds) == rows
        assert out.is_contiguous()
        half = (n + 1) // 2
        with self._current():
            triton_kernels.write_normals[(_ceil_div(half, _PAIRS), _ceil_div(rows, _ROWS))](
                out,
                self._upload(seeds),
                rows,
                n,
                half,
                PAIRS=_PAIRS,
                ROWS=_ROWS,
                num_warps=1,
                **_EXACT,
            )

    @override
    def permutations(self, seeds: Sequence[int], vocab_size: int) -> torch.Tensor:
        return self._order(seeds, vocab_size, torch.int64)

    @override
    def prepare(self, seeds: Sequence[int], vocab_size: int) -> Any:
        return self._order(seeds, vocab_size, torch.int32)

    @override
    def _distances(self, logits: torch.Tensor, prepared: Any, target: torch.Tensor) -> torch.Tensor:
        rows, n = logits.shape
        chunks = _ceil_div(n, _CHUNK)
        sums = torch.empty(rows, 3, chunks, dtype=torch.float64, device=self._device)
        distances = torch.empty(rows, dtype=torch.float32, device=self._device)
        with self._current():
            triton_kernels.sum_products[(chunks, rows)](
                logits,
                *logits.stride(),
                prepared,
                target.contiguous(),
                sums,
                n,
                CHUNK=_CHUNK,
                BLOCK=_BLOCK,
                **_EXACT,
            )
            triton_kernels.finish_distances[(rows,)](sums, distances, chunks, BLOCK=128, **_EXACT)
        return distances

    def _order(self, seeds: Sequence[int], n: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the permutations. `dtype` ``[len(seeds), n]``, on the device."""
        rows = len(seeds)
        bits = max(1, (_ceil_div(n, self._bucket_size) - 1).bit_length())
        order = torch.empty(rows, n, dtype=dtype, device=self._device)
        members = torch.empty(rows, n, dtype=torch.int32, device=self._device)
        counts = torch.zeros(rows, 1 + 2**bits, dtype=torch.int32, device=self._device)
        with self._current():
            uploaded = self._upload(seeds)
            blocks = (_ceil_div(n, _KEYS), rows)
            # Until the last kernel writes it, `order` holds the numbers within the buckets.
            triton_kernels.count_buckets[blocks](
                order, counts, uploaded, n, SHIFT=32 - bits, BLOCK=_KEYS, **_EXACT
            )
            starts = torch.cumsum(counts, dim=1, dtype=torch.int32)
            triton_kernels.fill_buckets[blocks](
                order, members, starts, uploaded, n, SHIFT=32 - bits, BLOCK=_KEYS, **_EXACT
            )
            triton_kernels.order_buckets[(2**bits, rows)](
                order,
                members,
                starts,
                uploaded,
                n,
                SHIFT=32 - bits,
                TILE=_TILE,
                num_warps=1,
                **_EXACT,
            )
        return order

    def _upload(self, seeds: Sequence[int]) -> torch.Tensor:
        """Send seeds to the device without waiting. uint32 ``[len(seeds)]``."""
        pinned = self._device.type == "cuda"
        # torch's host allocator gives the pinned buffer to nobody else before the copy is done.
        staged = torch.tensor(seeds, dtype=torch.uint32, pin_memory=pinned)
        return staged.to(self._device, non_blocking=True)

    def _current(self) -> AbstractContextManager[object]:
        """Make the device the thread's current one, as Triton launches on that."""
        if self._device.type == "cuda":
            return torch.cuda.device(self._device)
        return nullcontext()


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
