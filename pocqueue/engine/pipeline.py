"""The steps around a model's forward pass that every engine in this process shares.

The host waits for the device once a batch, when it reads the values. What it can do before that, it
does: see `prefetch.py`. What the steps are is for the batch's proof scheme to say: see `poc/maths.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch

from pocqueue.engine.base import EngineInfo, check_batch
from pocqueue.engine.prefetch import Prefetch, SideStream
from pocqueue.errors import InvalidRound, PassTooLarge
from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels import Kernels, kernels_for
from pocqueue.poc.maths import Forward, SchemeMaths
from pocqueue.poc.scheme import scheme_class


class Pipeline:
    """From batches to values with one model on one device. For one thread.

    Args:
        info: the model; its name stands in messages, its sizes are used.
        device: where inputs are wanted and the model's outputs come from.
        dtype: of the inputs.
        kernels: the maths; None: what is best on `device`.
    """

    def __init__(
        self,
        info: EngineInfo,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels | None = None,
    ) -> None:
        self.info = info
        self.device = device
        self._kernels = kernels or kernels_for(device)
        self._dtype = dtype
        self._maths: dict[str, SchemeMaths] = {}
        side = SideStream(device) if device.type == "cuda" else None
        self._prefetch = Prefetch(self.maths, self.new_inputs, side)
        self._host = torch.empty(0)  #: where values of a GPU are read

    @torch.inference_mode()
    def values(
        self, batch: Batch, forward: Forward, upcoming: Batch | None = None
    ) -> list[Any] | None:
        """Compute the values of one batch in one pass; see ``Engine.values``.

        Args:
            batch: what is asked for.
            forward: the model.
            upcoming: the next batch, to be prefetched meanwhile.

        Returns:
            The values, or None if ``forward`` gave None.

        Raises:
            InvalidRound: the sequences are longer than the model takes, there are too many nonces, or the
                scheme is not known here.
            PassTooLarge: the batch does not fit into the device's memory.
        """
        check_batch(self.info, batch)
        maths = self.maths(batch.scheme)
        if not batch.nonces:
            return []
        with self.enough_memory(batch):
            # Short batches repeat their last nonce up to the fixed shape, in every step: kernels choose
            # how to split a sum by the shape of the whole tensor, and so would its last bit.
            prepared = self._prefetch.get(batch.padded())
            if upcoming is not None and upcoming.nonces:
                with suppress(InvalidRound):  # raised when it is asked for
                    self._prefetch.expect(upcoming.padded())
            output = forward(
                prepared.inputs,
                maths.reads,
                maths.after_layer(prepared.batch),
                partial(maths.token_ids, prepared.batch),
            )
            self._prefetch.make_expected()
            if output is None:
                return None
            values = maths.values(prepared.batch, prepared.rest, output)
            return maths.written(self._read(values)[: len(batch.nonces)])

    def maths(self, scheme: str) -> SchemeMaths:
        """Return the maths of a proof scheme for this model.

        Raises:
            InvalidRound: there is no such scheme.
        """
        if scheme not in self._maths:
            make: type[SchemeMaths] = resolve_name(scheme_class(scheme).maths)
            sizes = self.info.hidden_size, self.info.vocab_size
            self._maths[scheme] = make(self._kernels, *sizes, self.device)
        return self._maths[scheme]

    def new_inputs(self, batch: Batch) -> torch.Tensor:
        """Return a new buffer for the inputs of batches of this shape, [batch, seq_len, hidden]."""
        shape = (batch.batch_size, batch.seq_len, self.info.hidden_size)
        return torch.empty(shape, dtype=self._dtype, device=self.device)

    @contextmanager
    def enough_memory(self, batch: Batch) -> Iterator[None]:
        """Say in one sentence that a batch is too large for its device.

        Raises:
            PassTooLarge: in place of torch's error.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as exc:
            # On the CPU torch's error has no class of its own.
            is_full = isinstance(exc, torch.OutOfMemoryError | MemoryError)
            if not is_full and "DefaultCPUAllocator" not in str(exc):
                raise
            raise PassTooLarge(
                f"A batch of {batch.batch_size} x {batch.seq_len} tokens does not fit into the memory of "
                f"{self.info.device} beside model {self.info.model}. Use a smaller batch_size."
            ) from exc

    def forget(self) -> None:
        """Free buffers and whatever is kept for the next batch, which makes its own."""
        for maths in self._maths.values():
            maths.forget()
        self._prefetch.forget()

    def close(self) -> None:
        """Free what is held, for good."""
        self.forget()
        self._prefetch.close()

    def _read(self, values: torch.Tensor) -> list[Any]:
        """Bring a batch's values to the host; the one place where it waits for the device."""
        if values.device.type == "cuda":
            if self._host.shape != values.shape or self._host.dtype != values.dtype:
                self._host = torch.empty_like(values, device="cpu", pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            torch.cuda.current_stream(values.device).synchronize()
            values = self._host
        result: list[Any] = values.tolist()
        return result
