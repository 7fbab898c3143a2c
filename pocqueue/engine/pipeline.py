"""The steps around a model's forward pass that every engine in this process shares.

The host waits for the device once a batch, when it reads the distances. What it can do before that, it
does: see `preparation.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pocqueue.engine.base import EngineInfo, check_batch
from pocqueue.engine.prefetch import CudaAside, Preparation
from pocqueue.errors import EngineError
from pocqueue.poc.batch import Batch
from pocqueue.poc.gpu_random import generate_target
from pocqueue.poc.kernels import Kernels, kernels_for

#: Targets kept, one a block: a worker meets few blocks at once, and one target is 0.6 MB at most.
_MAX_TARGETS = 8


class ProofMaths:
    """Inputs from nonces, and distances from logits, for one model on one device. For one thread.

    Args:
        info: the model; its name stands in messages, its sizes are used.
        device: where inputs are wanted and logits come from.
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
        self._info = info
        self._device = device
        self._kernels = kernels or kernels_for(device)
        self._preparation = Preparation(
            self._kernels,
            info.hidden_size,
            info.vocab_size,
            device,
            dtype,
            CudaAside(device) if device.type == "cuda" else None,
        )
        self._targets: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._host = torch.empty(0)  #: where distances of a GPU are read

    @property
    def kernels(self) -> str:
        """Name the kernels in use."""
        return self._kernels.name

    @torch.inference_mode()
    def values(
        self,
        batch: Batch,
        forward: Callable[[torch.Tensor], torch.Tensor | None],
        upcoming: Batch | None = None,
    ) -> list[float] | None:
        """Compute the distances of one batch in one pass; see ``Engine.values``.

        Args:
            batch: what is asked for.
            forward: embeddings [batch, seq_len, hidden] to logits [batch, vocab], or to None where
                this process is not the one that gets them. It may overwrite the embeddings.
            upcoming: the next batch, to be made ready meanwhile.

        Returns:
            The distances, or None where ``forward`` gave none.

        Raises:
            InvalidRound: the sequences are longer than the model takes, or there are too many nonces.
            EngineError: the batch does not fit into the device's memory.
        """
        check_batch(self._info, batch)
        if not batch.nonces:
            return []
        with enough_memory(self._info, batch):
            # Short batches repeat their last nonce up to the fixed shape, in every step: kernels choose
            # how to split a sum by the shape of the whole tensor, and so would its last bit.
            prepared = self._preparation.take(batch.padded())
            if upcoming is not None and upcoming.nonces:
                self._preparation.announce(upcoming.padded())
            logits = forward(prepared.inputs)
            self._preparation.advance()
            if logits is None:
                return None
            target = self._target(batch.block_hash)
            measured = self._kernels.distances(logits, prepared.order, target)
            return self._read(measured)[: len(batch.nonces)]

    def forget(self) -> None:
        """Free targets and buffers; the next batch makes its own."""
        self._targets.clear()
        self._preparation.forget()

    def close(self) -> None:
        """Free what is held, for good."""
        self._targets.clear()
        self._preparation.close()

    def _read(self, distances: torch.Tensor) -> list[float]:
        """Bring a batch's distances to the host; the one place where it waits for the device."""
        if distances.device.type == "cuda":
            if self._host.shape != distances.shape:
                self._host = torch.empty_like(distances, device="cpu", pin_memory=True)
            self._host.copy_(distances, non_blocking=True)
            torch.cuda.current_stream(distances.device).synchronize()
            distances = self._host
        result: list[float] = distances.tolist()
        return result

    def _target(self, block_hash: str) -> torch.Tensor:
        """Return a block's unit target, float32 [vocab], made once for each of the last few blocks."""
        target = self._targets.get(block_hash)
        if target is None:
            target = generate_target(block_hash, self._info.vocab_size, self._device)
            self._targets[block_hash] = target
            if len(self._targets) > _MAX_TARGETS:
                self._targets.popitem(last=False)
        else:
            self._targets.move_to_end(block_hash)
        return target


@contextmanager
def enough_memory(info: EngineInfo, batch: Batch) -> Iterator[None]:
    """Say in one sentence that a batch is too large for its device.

    Raises:
        EngineError: in place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise EngineError(
            f"A batch of {batch.batch_size} x {batch.seq_len} tokens does not fit into the memory of "
            f"{info.device} beside model {info.model}. Use a smaller batch_size."
        ) from exc
