"""What a batch needs beside the model, its inputs and permutations, made out of the model's way.

- On CUDA the next batch's inputs and permutations are made on a stream of their own while the model has
  the present one. Two input buffers take turns; the streams wait for each other, the host for neither.
- On the CPU there is nothing to hide behind: the pass has all cores, and kernels of a second thread
  would take one of them from its team, which then waits for the last one (docs/benchmarks.md compares).
  Inputs are made between two passes instead, on all cores. Seeds are plain Python on short texts; they
  are made ahead by a thread, which works while the pass has let go of the interpreter.
- A batch that was announced and does not come costs what was made for it, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels import Kernels
from pocqueue.poc.seeds import input_seeds, permutation_seeds


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch on its way into the model."""

    batch: Batch  #: padded
    inputs: (
        torch.Tensor
    )  #: embeddings [batch, seq_len, hidden]; good until the model has the next batch
    order: object  #: what `Kernels.distances` wants to know of the permutations


@dataclass(frozen=True, slots=True)
class _Seeds:
    inputs: list[int]
    permutations: list[int]

    @classmethod
    def of(cls, batch: Batch) -> _Seeds:
        names = (batch.block_hash, batch.public_key, batch.nonces)
        return cls(input_seeds(*names), permutation_seeds(*names))


class Aside(Protocol):
    """Work beside the model's, on the same device."""

    def mark(self) -> None:
        """Note that what the model's stream has been given so far has to come first."""

    def working(self) -> AbstractContextManager[None]:
        """Put the work of the block beside the model's, behind what was marked."""

    def join(self) -> None:
        """Have the model's stream wait for all of that work."""


class CudaAside:
    """A second stream.

    Memory that the allocator takes for one stream may be used on the other: all work here waits for
    the mark, and the mark for all that the model's stream did with that memory before.

    Args:
        device: the model's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._marked = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def mark(self) -> None:
        self._marked.record(torch.cuda.current_stream(self._device))

    @contextmanager
    def working(self) -> Iterator[None]:
        self._stream.wait_event(self._marked)
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


class Preparation:
    """Inputs and permutations of one model's batches, each of which is padded. For one thread.

    Args:
        kernels: the proof's maths on `device`.
        hidden_size: of the model.
        vocab_size: of the model.
        device: the model's.
        dtype: of the inputs.
        aside: where to make batches ahead; None: nowhere.
    """

    def __init__(
        self,
        kernels: Kernels,
        hidden_size: int,
        vocab_size: int,
        device: torch.device,
        dtype: torch.dtype,
        aside: Aside | None = None,
    ) -> None:
        self._kernels = kernels
        self._hidden_size = hidden_size
        self._vocab_size = vocab_size
        self._device = device
        self._dtype = dtype
        self._aside = aside
        self._seeder = ThreadPoolExecutor(1, thread_name_prefix="seeds")
        self._announced: tuple[Batch, Future[_Seeds]] | None = None
        self._made: Prepared | None = None
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._current = 0  #: buffer of the batch that the model has

    def take(self, batch: Batch) -> Prepared:
        """Return what this batch needs, as made ahead or made now."""
        made = self._drop_made()
        if made is not None and made.batch == batch:
            self._current = 1 - self._current
        else:
            made = self._make(batch, self._current)
        if self._aside is not None:
            self._aside.mark()
        return made

    def announce(self, batch: Batch) -> None:
        """Have the seeds of the next batch made, from before the pass of the present one."""
        self._announced = (batch, self._seeder.submit(_Seeds.of, batch))

    def advance(self) -> None:
        """Make the batch that was announced, once the present one's pass is on the model's stream."""
        if self._aside is None or self._announced is None:
            return
        batch, _ = self._announced
        try:
            with self._aside.working():
                self._made = self._make(batch, 1 - self._current)
        except torch.OutOfMemoryError:
            # No room for a second batch beside the one at hand, which shall not fail for it.
            self._buffers[1 - self._current] = None

    def forget(self) -> None:
        """Free the buffers; the next batch makes them again."""
        self._drop_made()
        self._announced = None
        self._buffers = [None, None]

    def close(self) -> None:
        """Free what is held, for good."""
        self.forget()
        self._seeder.shutdown(wait=False, cancel_futures=True)

    def _drop_made(self) -> Prepared | None:
        made, self._made = self._made, None
        if made is not None and self._aside is not None:
            # Also where it is not wanted: its memory is given to others now.
            self._aside.join()
        return made

    def _make(self, batch: Batch, slot: int) -> Prepared:
        """Make a batch on the current stream, in one of the two buffers."""
        seeds = self._seeds(batch)
        shape = (batch.batch_size, batch.seq_len, self._hidden_size)
        inputs = self._buffers[slot]
        if inputs is None or inputs.shape != shape:
            self._buffers[slot] = None  # freed first
            inputs = torch.empty(shape, dtype=self._dtype, device=self._device)
            self._buffers[slot] = inputs
        self._kernels.write_inputs(seeds.inputs, inputs.view(batch.batch_size, -1))
        return Prepared(batch, inputs, self._kernels.prepare(seeds.permutations, self._vocab_size))

    def _seeds(self, batch: Batch) -> _Seeds:
        if self._announced is not None and self._announced[0] == batch:
            return self._announced[1].result()
        return _Seeds.of(batch)
