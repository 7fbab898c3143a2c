"""The steps around a model's forward pass that every engine in this process shares."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from pocqueue.engine.base import EngineInfo, check_batch
from pocqueue.errors import EngineError
from pocqueue.poc.config import PoCConfig
from pocqueue.poc.gpu_random import generate_inputs, generate_target, logits_to_distances

#: Targets kept, one a block: a worker meets few blocks at once, and one target is 0.6 MB at most.
_MAX_TARGETS = 8


class ProofMaths:
    """Inputs from nonces, and distances from logits, for one model on one device.

    Args:
        info: the model; its name stands in messages, its sizes are used.
        device: where inputs are wanted and logits come from.
        dtype: of the inputs.
    """

    def __init__(self, info: EngineInfo, device: torch.device, dtype: torch.dtype) -> None:
        self._info = info
        self._device = device
        self._dtype = dtype
        self._targets: OrderedDict[str, torch.Tensor] = OrderedDict()

    def distances(
        self,
        config: PoCConfig,
        nonces: Sequence[int],
        forward: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> list[float] | None:
        """Compute the distances of one batch in one pass; see ``Engine.distances``.

        Args:
            config: the round.
            nonces: at most ``config.batch_size`` of them.
            forward: embeddings [batch, seq_len, hidden] to logits [batch, vocab], or to None where
                this process is not the one that gets them.

        Returns:
            The distances, or None where ``forward`` gave none.

        Raises:
            InvalidRound: ``config.seq_len`` is above the model's limit, or there are too many nonces.
            EngineError: the batch does not fit into the device's memory.
        """
        check_batch(self._info, config, nonces)
        if not nonces:
            return []
        # Short batches repeat their last nonce up to the fixed shape, in every step: kernels choose
        # how to split a sum by the shape of the whole tensor, and so would its last bit.
        padded = [*nonces, *[nonces[-1]] * (config.batch_size - len(nonces))]
        try:
            logits = forward(self.make_inputs(config, padded))
            if logits is None:
                return None
            measured = self.measure(config, padded, logits)
            result: list[float] = measured[: len(nonces)].tolist()
        except torch.OutOfMemoryError as exc:
            raise EngineError(
                f"A batch of {config.batch_size} x {config.seq_len} tokens does not fit into the memory of "
                f"{self._info.device} beside model {self._info.model}. Use a smaller batch_size."
            ) from exc
        return result

    @torch.inference_mode()
    def make_inputs(self, config: PoCConfig, nonces: Sequence[int]) -> torch.Tensor:
        """Make the embeddings of nonces: [len(nonces), seq_len, hidden], the model's dtype."""
        return generate_inputs(
            config.block_hash,
            config.public_key,
            list(nonces),
            self._info.hidden_size,
            config.seq_len,
            self._device,
            self._dtype,
        )

    @torch.inference_mode()
    def measure(
        self, config: PoCConfig, nonces: Sequence[int], logits: torch.Tensor
    ) -> torch.Tensor:
        """Turn logits into distances.

        Args:
            config: names the block and the public key.
            nonces: one for each row.
            logits: any float [len(nonces), vocab].

        Returns:
            Distances, float32 [len(nonces)], on the model's device.
        """
        return logits_to_distances(
            config.block_hash,
            config.public_key,
            list(nonces),
            logits,
            self._target(config.block_hash),
        )

    def forget(self) -> None:
        """Free the targets."""
        self._targets.clear()

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


def warm_up_config(batch_size: int, seq_len: int) -> PoCConfig:
    """Return a round for a pass whose result nobody wants."""
    return PoCConfig(
        block_hash="warm-up",
        block_height=0,
        public_key="warm-up",
        r_target=1.0,
        batch_size=batch_size,
        seq_len=seq_len,
    )
