"""The torch engine: a transformers causal language model behind the engine protocol."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from pocqueue.engine.base import EngineInfo, check_batch
from pocqueue.errors import EngineError
from pocqueue.poc.config import PoCConfig
from pocqueue.poc.gpu_random import generate_inputs, generate_target, logits_to_distances

#: Targets kept, one a block: a worker meets few blocks at once, and one target is 0.6 MB at most.
_MAX_TARGETS = 8


class TorchEngine:
    """A transformers model as a function from nonces to distances.

    Not safe for several threads: callers hold a lock around each call. The three steps of
    ``distances`` are methods of their own so that a pipeline may run them for different batches at
    the same time, each step in one thread.

    A distance repeats bit for bit and its bits depend on neither number nor values of the other
    nonces. In float32 the place in the batch may move the last bit (2.4e-7 at most was seen, with
    AVX2 matrix kernels, which treat the last rows of a block apart; none in bfloat16).
    """

    def __init__(self, model: Any, info: EngineInfo) -> None:
        """Take over a loaded model.

        Args:
            model: a causal language model of transformers in eval mode, on ``info.device``.
            info: what it is.
        """
        self._model: Any = model
        self._info = info
        self._device = torch.device(info.device)
        self._dtype: torch.dtype = model.dtype
        # Without it a model computes logits of every position; the last one is taken either way.
        takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if takes_keep else {}
        self._targets: OrderedDict[str, torch.Tensor] = OrderedDict()

    @property
    def info(self) -> EngineInfo:
        """What is deployed here."""
        return self._info

    @torch.inference_mode()
    def distances(self, config: PoCConfig, nonces: Sequence[int]) -> list[float]:
        """Compute the distances of one batch; see ``Engine.distances``.

        Raises:
            InvalidRound: ``config.seq_len`` is above the model's limit, or there are too many nonces.
            EngineError: the engine is closed, or the batch does not fit into the device's memory.
        """
        check_batch(self._info, config, nonces)
        if not nonces:
            return []
        # Short batches repeat their last nonce up to the fixed shape, in every step: kernels choose
        # how to split a sum by the shape of the whole tensor, and so would its last bit.
        padded = [*nonces, *[nonces[-1]] * (config.batch_size - len(nonces))]
        try:
            logits = self.forward(self.make_inputs(config, padded))
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
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run the model: causal attention, no padding mask, no cache.

        Args:
            inputs: embeddings [batch, seq_len, hidden] in the model's dtype, on its device.

        Returns:
            Logits of the last position, float32 [batch, vocab].

        Raises:
            EngineError: the engine is closed.
        """
        if self._model is None:
            raise EngineError("This engine is closed; load the model again.")
        positions = torch.arange(inputs.shape[1], device=inputs.device).unsqueeze(0)
        output = self._model(
            inputs_embeds=inputs, position_ids=positions, use_cache=False, **self._last_only
        )
        logits: torch.Tensor = output.logits[:, -1, :]
        return logits.float()

    @torch.inference_mode()
    def measure(
        self, config: PoCConfig, nonces: Sequence[int], logits: torch.Tensor
    ) -> torch.Tensor:
        """Turn logits into distances.

        Args:
            config: names the block and the public key.
            nonces: one for each row.
            logits: float32 [len(nonces), vocab].

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

    def warm_up(self, batch_size: int, seq_len: int) -> None:
        """Run one pass of this shape and drop the result.

        Raises:
            InvalidRound: ``seq_len`` is above the model's limit, or ``batch_size`` below 1.
            EngineError: the engine is closed, or the batch does not fit into the device's memory.
        """
        config = PoCConfig(
            block_hash="warm-up",
            block_height=0,
            public_key="warm-up",
            r_target=1.0,
            batch_size=batch_size,
            seq_len=seq_len,
        )
        self.distances(config, [0])

    def close(self) -> None:
        """Free the model and its device memory."""
        self._model = None
        self._targets.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

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
