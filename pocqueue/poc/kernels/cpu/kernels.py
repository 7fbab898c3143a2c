"""The proof's maths on the CPU: numba compiles it, torch's own threads run it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from pocqueue.poc.kernels.base import Kernels
from pocqueue.poc.kernels.cpu.distance import distance_scratch_bytes, write_distances
from pocqueue.poc.kernels.cpu.normal import (
    BFLOAT16,
    BLOCK,
    FLOAT16,
    FLOAT32,
    SCRATCH_BYTES,
    write_normals,
)
from pocqueue.poc.kernels.cpu.permutations import digit_bits, sort_scratch_bytes, write_permutations
from pocqueue.poc.kernels.cpu.picks import MOST_PICKED, pick_scratch_bytes, write_picks
from pocqueue.poc.kernels.cpu.rotations import write_rotated
from pocqueue.poc.kernels.cpu.team import Team

_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


class CpuKernels(Kernels):
    """Compiled kernels. Safe for several threads at once; see `team.py` for what that costs."""

    name = "numba"

    def __init__(self) -> None:
        self._team = Team()
        self._results = _ReusedMemory()
        self.layer = self._team.layer  #: what runs the threads, for people

    @override
    def write_inputs(self, seeds: Sequence[int], out: torch.Tensor) -> None:
        assert out.is_contiguous()
        assert out.dtype in _KINDS
        assert len(out) == len(seeds)
        words, (rows, n) = _words(seeds), out.shape
        num_blocks = -(-((n + 1) // 2) // BLOCK)
        self._team.run(
            write_normals,
            rows * num_blocks,
            SCRATCH_BYTES,
            words.ctypes.data,
            out.data_ptr(),
            n,
            _KINDS[out.dtype],
        )

    @override
    def permutations(self, seeds: Sequence[int], vocab_size: int) -> torch.Tensor:
        words, rows, n = _words(seeds), len(seeds), vocab_size
        out = self._results.empty(rows, n)
        self._team.run(
            write_permutations,
            rows,
            sort_scratch_bytes(n),
            words.ctypes.data,
            out.data_ptr(),
            n,
            digit_bits(n),
        )
        return out

    @override
    def _pick(self, seeds: Sequence[int], n: int, k: int) -> torch.Tensor:
        if k > MOST_PICKED:
            return super()._pick(seeds, n, k)
        words, rows = _words(seeds), len(seeds)
        out = torch.empty(rows, k, dtype=torch.int64)
        self._team.run(
            write_picks,
            rows,
            pick_scratch_bytes(k),
            words.ctypes.data,
            out.data_ptr(),
            n,
            k,
        )
        return out

    @override
    def _rotated(
        self, hidden: torch.Tensor, dims: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        hidden, dims, vectors = hidden.contiguous(), dims.contiguous(), vectors.contiguous()
        (rows, n), k = hidden.shape, dims.shape[1]
        out = torch.empty(rows, k, dtype=torch.float32)
        self._team.run(
            write_rotated,
            rows,
            0,
            hidden.data_ptr(),
            dims.data_ptr(),
            vectors.data_ptr(),
            out.data_ptr(),
            n,
            k,
        )
        return out

    @override
    def prepare(self, seeds: Sequence[int], vocab_size: int) -> Any:
        return _words(seeds)

    @override
    def _distances(self, logits: torch.Tensor, prepared: Any, target: torch.Tensor) -> torch.Tensor:
        if logits.dtype not in _KINDS:
            logits = logits.to(torch.float32)
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        target = target.contiguous()
        assert target.dtype == torch.float32
        rows, n = logits.shape
        out = torch.empty(rows, dtype=torch.float32)
        self._team.run(
            write_distances,
            rows,
            distance_scratch_bytes(n),
            prepared.ctypes.data,
            logits.data_ptr(),
            target.data_ptr(),
            out.data_ptr(),
            n,
            digit_bits(n),
            _KINDS[logits.dtype],
            logits.stride(0) * logits.element_size(),
        )
        return out


class _ReusedMemory:
    """Memory for large results: that of one is given out again when nobody has it any more.

    Fresh memory costs a page fault every 4 KiB, together as much as sorting what goes into it.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray[Any, np.dtype[np.int64]]] = []

    def empty(self, rows: int, n: int) -> torch.Tensor:
        """Return int64 ``[rows, n]`` with anything in it."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, dtype=np.int64)
        if len(memory) < rows * n:
            memory = np.empty(rows * n, dtype=np.int64)
        # The tensor holds this very array for as long as any view of it is alive.
        result = memory[: rows * n].reshape(rows, n)
        weakref.finalize(result, self._keep, memory).atexit = False
        return torch.from_numpy(result)

    def _keep(self, memory: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._free[:] = [memory]


def _words(seeds: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[Any]]:
    return np.array(seeds, dtype=np.int64)
