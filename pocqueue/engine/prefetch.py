"""Prefetching the next batch: its inputs and whatever else it needs beside the model.

- On CUDA they are made on a second stream while the model has the present batch. Two input buffers take
  turns; the streams wait for each other, the host for neither.
- On the CPU there is nothing to hide behind: the pass has all cores, and kernels of a second thread
  would take one of them from its team, which then waits for the last one (docs/benchmarks.md compares).
  Inputs are made between two passes instead, on all cores.
- Seeds are plain Python on short texts. A thread makes them ahead, while the pass has let go of the
  interpreter.
- If another batch comes than the expected one, what was made for that one is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pocqueue.poc.batch import Batch
from pocqueue.poc.maths import SchemeMaths


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch on its way into the model."""

    batch: Batch  #: padded
    #: Embeddings [batch, seq_len, hidden]; good until the model has the next batch.
    inputs: torch.Tensor
    rest: Any  #: from `SchemeMaths.prepare`


class SideStream:
    """A second CUDA stream, for work beside the model's.

    Memory that the allocator takes for one stream may be used on the other: all work here waits for
    the fork, and the fork for all that the model's stream did with that memory before.

    Args:
        device: the model's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._forked = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def fork(self) -> None:
        """Note that what the model's stream has been given so far has to come first."""
        self._forked.record(torch.cuda.current_stream(self._device))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Put the work of the block beside the model's, behind the last fork."""
        self._stream.wait_event(self._forked)
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Have the model's stream wait for all of that work."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


class Prefetch:
    """The batches of one model, each of which is padded. For one thread.

    Args:
        maths: what makes a batch, by its proof scheme.
        buffer: makes an input buffer [batch, seq_len, hidden] for batches of a shape.
        side: where to make batches ahead; None: nowhere.
    """

    def __init__(
        self,
        maths: Callable[[str], SchemeMaths],
        buffer: Callable[[Batch], torch.Tensor],
        side: SideStream | None = None,
    ) -> None:
        self._maths = maths
        self._buffer = buffer
        self._side = side
        self._seeder = ThreadPoolExecutor(1, thread_name_prefix="seeds")
        self._expected: tuple[Batch, Future[Any]] | None = None
        self._made: Prepared | None = None
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._current = 0  #: buffer of the batch that the model has

    def get(self, batch: Batch) -> Prepared:
        """Return what this batch needs, prefetched or made now."""
        made = self._drop_made()
        if made is not None and made.batch == batch:
            self._current = 1 - self._current
        else:
            made = self._make(batch, self._current)
        if self._side is not None:
            self._side.fork()
        return made

    def expect(self, batch: Batch) -> None:
        """Say which batch comes next, before the present one's pass; its seeds are made from now on."""
        self._expected = (batch, self._seeder.submit(self._maths(batch.scheme).seeds, batch))

    def make_expected(self) -> None:
        """Make the expected batch on the side, once the present one's pass is on the model's stream."""
        if self._side is None or self._expected is None:
            return
        batch, _ = self._expected
        try:
            with self._side.working():
                self._made = self._make(batch, 1 - self._current)
        except torch.OutOfMemoryError:
            # No room for a second batch beside the one at hand, which must not fail for that.
            self._buffers[1 - self._current] = None

    def forget(self) -> None:
        """Free the buffers; the next batch makes them again."""
        self._drop_made()
        self._expected = None
        self._buffers = [None, None]

    def close(self) -> None:
        """Free what is held, for good."""
        self.forget()
        self._seeder.shutdown(wait=False, cancel_futures=True)

    def _drop_made(self) -> Prepared | None:
        made, self._made = self._made, None
        if made is not None and self._side is not None:
            # Also if it is not wanted: its memory is used for others now.
            self._side.join()
        return made

    def _make(self, batch: Batch, slot: int) -> Prepared:
        """Make a batch on the current stream, in one of the two buffers."""
        maths = self._maths(batch.scheme)
        if self._expected is not None and self._expected[0] == batch:
            seeds = self._expected[1].result()
        else:
            seeds = maths.seeds(batch)
        inputs = self._buffers[slot]
        if inputs is None or inputs.shape[:2] != (batch.batch_size, batch.seq_len):
            self._buffers[slot] = None  # freed first
            inputs = self._buffers[slot] = self._buffer(batch)
        maths.write_inputs(seeds, inputs.view(batch.batch_size, -1))
        return Prepared(batch, inputs, maths.prepare(seeds))
