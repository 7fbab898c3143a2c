"""The torch engine: a transformers causal language model behind the engine protocol."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from pocqueue.engine.base import EngineInfo
from pocqueue.engine.pipeline import ProofMaths
from pocqueue.engine.profiled import MatmulParameters
from pocqueue.engine.stages import StageTimer, count_matmul_parameters
from pocqueue.errors import EngineError
from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels import Kernels


class TorchEngine:
    """A transformers model as a function from nonces to distances.

    Not safe for several threads: callers hold a lock around each call.

    A distance repeats bit for bit and its bits depend on neither number nor values of the other
    nonces. In float32 the place in the batch may move the last bit (2.4e-7 at most was seen, with
    AVX2 matrix kernels, which treat the last rows of a block apart; none in bfloat16).
    """

    def __init__(self, model: Any, info: EngineInfo, kernels: Kernels | None = None) -> None:
        """Take over a loaded model.

        Args:
            model: a causal language model of transformers in eval mode, on ``info.device``.
            info: what it is.
            kernels: the proof's maths; None: what is best on the device.
        """
        self._model: Any = model
        self._info = info
        self._device = torch.device(info.device)
        self._dtype: torch.dtype = model.dtype
        self._kernels = kernels
        self._maths = ProofMaths(info, self._device, model.dtype, kernels)
        # Without it a model computes logits of every position; the last one is taken either way.
        takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if takes_keep else {}

    @property
    def info(self) -> EngineInfo:
        """What is deployed here."""
        return self._info

    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        """Compute the values of one batch; see ``Engine.values``.

        Raises:
            InvalidRound: ``seq_len`` is above the model's limit, or there are too many nonces.
            EngineError: the engine is closed, or the batch does not fit into the device's memory.
        """
        values = self._maths.values(batch, self.forward, upcoming)
        assert values is not None  # only ranks of a group give none
        return values

    @property
    def kernels(self) -> str:
        """Name what does the proof's maths, as ``Kernels.name``."""
        return self._maths.kernels

    def with_kernels(self, kernels: Kernels) -> TorchEngine:
        """Return an engine over the same model whose maths others do; for comparisons."""
        return TorchEngine(self._model, self._info, kernels)

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

    def warm_up(self, batch_size: int, seq_len: int) -> None:
        """Run one pass of this shape and drop the result.

        Raises:
            InvalidRound: ``seq_len`` is above the model's limit, or ``batch_size`` below 1.
            EngineError: the engine is closed, or the batch does not fit into the device's memory.
        """
        self.values(Batch.warm_up(batch_size, seq_len))

    def time_stages(self, batch: Batch, num_batches: int) -> dict[str, float]:
        """Return median seconds by stage; see ``Profiled.time_stages``."""
        return self._timer().time_stages(batch, num_batches)

    def time_forward(self, batch: Batch, num_batches: int) -> float:
        """Return the seconds of so many passes alone; see ``Profiled.time_forward``."""
        return self._timer().time_forward(batch, num_batches)

    def num_matmul_parameters(self) -> MatmulParameters | None:
        """Count the parameters that positions are multiplied with; see ``Profiled``.

        Raises:
            EngineError: the engine is closed.
        """
        if self._model is None:
            raise EngineError("This engine is closed; load the model again.")
        return count_matmul_parameters(self._model, self._info)

    def _timer(self) -> StageTimer:
        # The buffers of a batch would be held beside the timer's.
        self._maths.forget()
        return StageTimer(self._info, self._dtype, self._device, self.forward, self._kernels)

    def close(self) -> None:
        """Free the model and its device memory."""
        self._model = None
        self._maths.close()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
